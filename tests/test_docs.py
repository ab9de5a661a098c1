"""README and docs are true: links, commands, flags, variables, files, tests and names in them exist."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

import typer.main
from typer.core import TyperCommand, TyperGroup

from fluffle.events import AFTER_THE_END
from fluffle_cli.main import app
from fluffle_cli.rejected import MOVED_BECAUSE
from fluffle_spark.command import command as spark_command

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "broker_config").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
# The changelog also names what is gone.
PAGES_OF_NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]

LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a command of Fluffle prints.
SAMPLE = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(?:^|\s)fluffle ((?:[a-z\[(]|-).*)")
FLAG = re.compile(r"--[a-z][a-z-]+")
FOLDERS = (
    "shared|aggregator|worker|helper|cli|spark|tests|docs"
    "|examples|monitoring|broker_config|scripts|benchmarks"
)
# A folder, a file, or a decision by its number.
PLACE = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*(?:/|\.[a-z]+|/[0-9]{{4}}))(?![\w/])")
DOTTED = re.compile(r"\b(fluffle(?:_aggregator|_worker|_helper|_cli|_spark)?(?:\.(?!toml)\w+)+)")
# Two words or more that are no command: a log line, an error, or a column of a table.
PHRASE = re.compile(r"(?!(?:fluffle|docker|make|pip|process|rabbitmqctl) )[A-Za-z][\w']*(?: [\w']+)+")

# Flags of docker, rabbitmqctl, pip, tensorboard and spark-submit.
FOREIGN_FLAGS = frozenset(
    f"--{name}"
    for name in (
        *("archives", "deploy-mode", "master", "py-files"),
        *("apply-to", "build", "cap-drop", "env-file", "force-recreate", "gpus", "init", "logdir"),
        *(
            "no-cache-dir",
            "no-deps",
            "priority",
            "profile",
            "queue-pattern",
            "read-only",
            "restart",
            "rm",
            "scale",
        ),
        *("target", "tmpfs", "user"),
    )
)
# Made on the machine of whoever runs the commands.
GENERATED = {"benchmarks/results/", "broker_config/generated/"}
# Stands for what an f-string fills in.
BLANK = "◊"
# The code puts these phrases of a sample together from parts.
MADE_OF_PARTS = {
    "refused messages kept",
    "accuracy has fallen from about",
    "loss has risen from about",
}

Command = TyperCommand | TyperGroup


def test_every_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    assert not faults_by_page(PAGES, broken_links)


def test_every_command_and_flag_in_the_docs_exists() -> None:
    assert not faults_by_page(PAGES_OF_NOW, unknown_commands_and_flags)


def test_every_variable_in_the_docs_is_a_setting_or_stands_in_the_code() -> None:
    assert not faults_by_page(PAGES_OF_NOW, unknown_variables)


def test_every_make_target_in_the_docs_exists() -> None:
    assert not faults_by_page(PAGES_OF_NOW, unknown_targets)


def test_every_file_test_and_name_of_the_code_in_the_docs_exists() -> None:
    assert not faults_by_page(PAGES_OF_NOW, missing_names)


def test_every_log_line_and_error_that_the_docs_quote_stands_in_the_code() -> None:
    assert not faults_by_page(PAGES_OF_NOW, unknown_phrases)


def test_every_sample_of_output_is_what_the_code_prints() -> None:
    assert not faults_by_page(PAGES_OF_NOW, stale_samples)


NAMING_REASONS = (
    *("intake.py", "leader.py", "surveying.py", "secure/securing.py", "secure/state.py"),
    "sealed/fitting.py",
)


def test_the_page_of_refused_updates_has_every_reason() -> None:
    folder = ROOT / "aggregator/fluffle_aggregator"
    files = [*sorted((folder / "gates").glob("*.py")), *(folder / name for name in NAMING_REASONS)]
    constants = [
        each for file in files for each in re.findall(r'^[A-Z_]+ = "([a-z-]+)"$', text_of(file), re.M)
    ]
    rows = re.findall(r"^\| (`[a-z][a-z`, -]+`) \|", text_of(ROOT / "docs/how-to/refused-updates.md"), re.M)

    assert sorted(reason for row in rows for reason in INLINE.findall(row)) == sorted(
        [*constants, AFTER_THE_END, *MOVED_BECAUSE]
    )


def test_every_page_that_the_code_names_exists() -> None:
    named = {
        (str(file.relative_to(ROOT)), place)
        for file in code_files()
        for place in re.findall(r"\bdocs/[\w./-]*\w", text_of(file))
    }

    assert not {(file, place) for file, place in named if not exists(place)}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = text_of(ROOT / "mkdocs.yml").partition("\nnav:\n")[2]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]

    assert not [
        page for page in pages if f": {page}\n" not in navigation and not page.startswith("decisions/0")
    ]


def test_the_list_of_decisions_has_each_of_them_under_its_title() -> None:
    folder = ROOT / "docs/decisions"
    titles = {page.name: text_of(page).splitlines()[0].removeprefix("# ") for page in folder.glob("0*.md")}

    lines = text_of(folder / "index.md").splitlines()

    assert [line for line in lines if line.startswith("- ")] == [
        f"- [{name[:4]}]({name}): {title}" for name, title in sorted(titles.items())
    ]


def faults_by_page(pages: list[Path], faults_of: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    return {str(page.relative_to(ROOT)): faults for page in pages if (faults := faults_of(page))}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(FENCED.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            broken.append(target)
    return broken


def unknown_commands_and_flags(page: Path) -> list[str]:
    commands = {" ".join(words): fault_of(words) for words in commands_in(page)}
    known = known_options() | FOREIGN_FLAGS
    return [
        *(f"fluffle {command}: {fault}" for command, fault in commands.items() if fault),
        *(flag for code in code_in(page) for flag in FLAG.findall(code) if flag not in known),
    ]


def unknown_variables(page: Path) -> list[str]:
    names = names_of_parameters(command_line()) | names_of_parameters(spark_program())
    settings = {f"FLUFFLE_{name.upper()}" for name in names}
    named = set(re.findall(r"FLUFFLE_\w+", text_of(page)))
    return sorted(named - settings - words_of_the_code())


def unknown_targets(page: Path) -> list[str]:
    targets = re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    named = {name for code in code_in(page) for name in re.findall(r"(?:^|&& )make ([a-z-]+)", code)}
    return sorted(named.difference(targets))


def missing_names(page: Path) -> list[str]:
    missing = []
    for code in code_in(page):
        missing += [place for place in PLACE.findall(code) if place not in GENERATED and not exists(place)]
        missing += [name for name in re.findall(r"\btest_\w+", code) if name not in words_of_the_code()]
        missing += [name for name in DOTTED.findall(code) if not is_defined(name)]
    return missing


def unknown_phrases(page: Path) -> list[str]:
    quoted = [" ".join(code.split()) for code in INLINE.findall(FENCED.sub("", text_of(page)))]
    phrases = [each for each in quoted if PHRASE.fullmatch(each)]
    code = product_code()
    return [each for each in phrases if each not in code and each.replace(" ", "_") not in code]


def stale_samples(page: Path) -> list[str]:
    """Return the phrases of outputs most of which no text in the code has, in runs of three words."""
    samples = "\n".join(SAMPLE.findall(text_of(page)))
    phrases = set(re.findall(r"\b[a-z']+(?: [a-z']+){2,}(?![\w-])", samples.lower())) - MADE_OF_PARTS
    return [phrase for phrase in phrases if not is_printed(phrase.split())]


def is_printed(words: list[str]) -> bool:
    known = runs_of_three_words()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    found = [
        run for run in runs if known & {run, (BLANK, *run[1:]), (run[0], BLANK, run[2]), (*run[:2], BLANK)}
    ]
    return len(found) >= len(runs) / 2


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def code_in(page: Path) -> Iterator[str]:
    """Return the lines of code blocks, and each piece of code in a sentence."""
    for block in FENCED.findall(text_of(page)):
        yield from block.replace("\\\n", " ").splitlines()
    for code in INLINE.findall(FENCED.sub("", text_of(page))):
        yield " ".join(code.split())


def commands_in(page: Path) -> Iterator[list[str]]:
    """Return the words of each `fluffle ...` in a page, without what follows it on the line."""
    for line in code_in(page):
        for found in COMMAND.findall(line):
            words = shlex.shlex(found, posix=True, punctuation_chars="|&;>")
            words.whitespace_split = True
            taken: list[str] = []
            for word in words:
                if word[0] in "|&;>":
                    break
                taken.append(word)
            yield taken


def fault_of(words: list[str]) -> str | None:
    """Return what is wrong with a command as the docs write it."""
    command: Command = command_line()
    rest = list(words)
    while (below := commands_below(command)) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in below:
            return f"there is no command {name!r}"
        command = below[name]
    flags = [word.split("=")[0] for word in rest if word.startswith("-")]
    unknown = [flag for flag in flags if flag not in options_of(command)]
    return f"it has no option {', '.join(unknown)}" if unknown else None


@cache
def command_line() -> TyperGroup:
    return cast(TyperGroup, typer.main.get_command(app))


@cache
def spark_program() -> Command:
    """Return the program that spark-submit starts, which is no command of `fluffle`."""
    program = typer.Typer()
    program.command()(spark_command)
    return cast(Command, typer.main.get_command(program))


def commands_below(command: Command) -> dict[str, Command]:
    return cast(dict[str, Command], command.commands) if isinstance(command, TyperGroup) else {}


def options_of(command: Command) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}


@cache
def known_options() -> frozenset[str]:
    return frozenset(all_options(command_line()) | options_of(spark_program()))


def all_options(command: Command) -> set[str]:
    return options_of(command).union(*(all_options(each) for each in commands_below(command).values()))


def names_of_parameters(command: Command) -> set[str]:
    names = {each.name for each in command.params if each.name}
    return names.union(*(names_of_parameters(each) for each in commands_below(command).values()))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def code_files() -> tuple[Path, ...]:
    kinds = {".py", ".sh", ".yml", ".conf"}
    folders = (ROOT / name for name in FOLDERS.split("|"))
    found = (path for folder in folders for path in folder.rglob("*") if path.suffix in kinds)
    return (*found, *ROOT.glob("*.yml"), ROOT / "Makefile", ROOT / "Dockerfile")


@cache
def product_code() -> str:
    """Return the code of what is used, without that of the tests, which may quote what is gone."""
    return "\n".join(f"{file.stem} {text_of(file)}" for file in code_files() if is_product(file))


@cache
def runs_of_three_words() -> frozenset[tuple[str, ...]]:
    """Return the words side by side in the product's texts, BLANK for what an f-string fills in."""
    texts = []
    for file in code_files():
        if file.suffix == ".py" and is_product(file):
            texts += [text_in(node) for node in ast.walk(ast.parse(text_of(file)))]
    words = [re.findall(rf"[a-z']+|{BLANK}", text.lower()) for text in texts]
    return frozenset(run for each in words for run in zip(each, each[1:], each[2:], strict=False))


def text_in(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_in(part) or BLANK for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def all_code() -> str:
    return "\n".join(f"{file.stem} {text_of(file)}" for file in code_files())


@cache
def words_of_the_code() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", all_code()))


def is_product(file: Path) -> bool:
    return file.relative_to(ROOT).parts[0] not in ("tests", "docs")


def exists(place: str) -> bool:
    return (ROOT / place).exists() or any(ROOT.glob(f"{place}-*.md"))


def is_defined(name: str) -> bool:
    """Say whether a module has the name that follows it, as in fluffle.wire.encode_update."""
    parts = name.split(".")
    place = ROOT / {"fluffle": "shared"}.get(parts[0], parts[0].removeprefix("fluffle_"))
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
            continue
        is_module = (place / f"{part}.py").exists()
        file = place / (f"{part}.py" if is_module else "__init__.py")
        rest = parts[number + 1 :] if is_module else parts[number:]
        return file.exists() and all(re.search(rf"\b{each}\b", text_of(file)) for each in rest)
    return True
