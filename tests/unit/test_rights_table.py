"""The tables of rights that people read say what `fluffle.rights` grants."""

from pathlib import Path

from typer.testing import CliRunner

from fluffle_cli.main import app
from fluffle_cli.users import rights_by_role

ROOT = Path(__file__).resolve().parents[2]


def markdown_table() -> str:
    """Return the table of broker_config/README.md."""
    lines = [["role", "configure", "write", "read", "tags"], ["---"] * 5]
    for role, names_by_kind in rights_by_role():
        quoted = (
            [each if each == "everything" else f"`{each}`" for each in names]
            for names in names_by_kind.values()
        )
        lines.append([role, *map(", ".join, quoted)])
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def test_the_table_in_the_broker_configs_readme_says_what_each_role_may_do() -> None:
    assert markdown_table() in (ROOT / "broker_config" / "README.md").read_text(encoding="utf-8")


def test_each_role_has_the_names_that_its_patterns_match() -> None:
    rights = dict(rights_by_role())

    assert {"F.models", "F.records"} <= set(rights["worker"]["read"])
    assert rights["monitor"]["read"] == ["F.events", "F.events.ANYTHING", "F.records"]
    assert [rights["aggregator"][kind] for kind in ("configure", "write", "read")] == [["F.*"]] * 3
    assert [rights["operator"][kind] for kind in ("configure", "write", "read")] == [["everything"]] * 3


def test_the_help_of_user_add_has_the_same_rights() -> None:
    shown = " ".join(
        CliRunner().invoke(app, ["user", "add", "--help"], env={"COLUMNS": "200"}).output.split()
    )

    for role, names_by_kind in rights_by_role():
        said = [f"{kind} {', '.join(names)}" for kind, names in names_by_kind.items() if names]
        assert f"{role}: {'; '.join(said)}" in shown
