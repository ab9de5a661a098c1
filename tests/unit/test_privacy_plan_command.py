"""`fluffle privacy plan`: what a promise costs, which promise noise gives, and what is warned about."""

import json
import math
import re
import tracemalloc
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fluffle.errors import ConfigError
from fluffle.privacy.gaussian import mu_of
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Steps
from fluffle.privacy.noise import NoiseSequence
from fluffle.privacy.promise import Mechanism
from fluffle.settings import load_settings
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.main import app
from fluffle_cli.privacy.planning import PrivateRun, numbers_for_epsilon, numbers_for_noise

ROOT = Path(__file__).parent.parent.parent
LINES = ("--epsilon 8", "--noise 2.7 --clip 0.3", "--noise 4 --dp-noise plain", "--noise 4 --mechanism local")
RUN = ("--workers", "1000", "--buffer-size", "50", "--parameters", "100000")


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["privacy", "plan", *arguments])


def told(*arguments: str) -> str:
    """Return what the command prints, on one line and without the lines of its tables."""
    done = plan(*arguments)
    assert done.exit_code == 0, done.stderr
    return " ".join(re.sub("[━╇┃│]", " ", done.stdout).split())


def as_json(*arguments: str) -> dict[str, object]:
    done = plan(*RUN, *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def a_run(mechanism: Mechanism = "central", *, correlated: bool = False) -> PrivateRun:
    return PrivateRun(
        workers=1000,
        buffer_size=50,
        parameters=100_000,
        updates=8,
        separation=10,
        clip=0.5,
        delta=1e-5,
        mechanism=mechanism,
        correlated=correlated,
        honest=25,
    )


def test_it_prints_the_promise_and_compares_correlated_with_plain_noise() -> None:
    said = told(*RUN, "--epsilon", "8")

    assert said.startswith("Whoever sees all versions of the model and guesses whether the updates of one")
    assert "is right at most 80 times in 100, where tossing a coin is right 50 times (epsilon 8," in said
    assert "1,000 workers make 160 versions of 50 updates: each worker sends at most 8 updates, at" in said
    assert "correlated noise plain noise noise multiplier 2.58 1.70" in said
    assert "noise to updates 0.338 0.849" in said
    assert "bands 6 1 memory of the noise at the aggregator 4.8 MB 0 bytes" in said
    # Epsilon, guesses, multipliers, noise to updates.
    assert "16 93 1.48 0.973 0.194 0.487" in said
    assert "100 80 0.252 0.600 1,000 200 40 0.196 0.424 2,000 (too few workers)" in said
    assert "warning" not in said


def test_plain_noise_has_the_multiplier_of_the_formula() -> None:
    found = as_json("--epsilon", "2", "--dp-noise", "plain", "--max-updates", "5", "--clip", "0.1")

    assert found["separation"] == 1
    assert found["by_noise"] == {
        "plain": {
            "noise_multiplier": pytest.approx(math.sqrt(5) / mu_of(2.0, 1e-5)),
            "std": pytest.approx(0.1 * math.sqrt(5) / mu_of(2.0, 1e-5)),
            "bands": 1,
            "memory_bytes": 0,
            "right_guesses_in_100": 60,
            # The deviation of 100 sums' noise, in 100,000 dimensions, beside 100 times 50 clips.
            "noise_to_updates": pytest.approx(
                math.sqrt(5) / mu_of(2.0, 1e-5) * math.sqrt(100 * 100_000) / (100 * 50)
            ),
            "useful_buffer_size": 407,
        }
    }


@pytest.mark.parametrize("line", LINES)
def test_the_aggregator_command_makes_the_same_noise(line: str) -> None:
    asked = line.split()
    found = as_json(*asked)
    command = str(found["aggregator_command"])

    words = command.removeprefix("fluffle aggregator ").split()
    given = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    settings = load_settings(AggregatorSettings, {**given, "task": "digits"})
    begun = settings.new_privacy_plan()

    assert begun is not None
    assert settings.buffer_size == 50
    by_noise = found["by_noise"]
    assert isinstance(by_noise, dict)
    assert by_noise[found["noise"]]["std"] == begun.std
    assert by_noise[found["noise"]]["bands"] == begun.bands
    assert f"To begin with it: {command}" in told(*RUN, *asked)


def test_the_command_for_noise_in_shares_has_what_secure_aggregation_needs() -> None:
    text = told(*RUN, "--epsilon", "8", "--mechanism", "distributed")

    assert "fluffle aggregator --dp distributed --secure-min-workers 25 --buffer-size 50" in text
    assert "--secure-registry FILE --secure-operator FILE --secure-aggregation" in text


def test_the_memory_of_the_noise_is_what_it_takes() -> None:
    run = replace(a_run(correlated=True), parameters=2**20)
    noise, chosen = run.noise_for(8.0, "correlated"), numbers_for_epsilon(run, 8.0).chosen
    assert isinstance(noise, GaussianNoise)
    total: Steps = np.zeros(run.parameters, np.int64)
    sequence = NoiseSequence(
        noise.coefficients, 2.0**25, run.parameters, kept=noise.kept_sums(run.parameters)
    )

    tracemalloc.start()
    for step in range(2 * noise.bands):
        sequence.add_next(step.to_bytes(16), total)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert taken == pytest.approx(chosen.memory_bytes, rel=0.1)


@pytest.mark.parametrize(("size", "sums"), [(2**20, 6), (2**24, 5), (2**27, 0)])
def test_the_memory_of_the_noise_has_a_limit(size: int, sums: int) -> None:
    chosen = numbers_for_epsilon(replace(a_run(correlated=True), parameters=size), 8.0).chosen

    assert chosen.run.bands == 6
    assert chosen.memory_bytes == sums * 8 * size


def test_json_has_all_numbers_of_the_tables() -> None:
    found = as_json("--epsilon", "3", "--mechanism", "distributed", "--honest", "40")

    assert (found["epsilon"], found["mechanism"], found["noise"]) == (3.0, "distributed", "plain")
    assert (found["honest"], found["bits"], found["versions"]) == (40, 16, 160)
    by_epsilon, by_buffer = found["by_epsilon"], found["by_buffer_size"]
    assert isinstance(by_epsilon, list)
    assert isinstance(by_buffer, list)
    assert [row["epsilon"] for row in by_epsilon] == [0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0]
    assert {50, 100, 400} < {row["buffer_size"] for row in by_buffer}
    assert all(row["by_noise"]["plain"]["right_guesses_in_100"] is None for row in by_epsilon)


a_central_or_local_run = st.builds(
    PrivateRun,
    workers=st.just(100),
    buffer_size=st.just(4),
    parameters=st.just(1000),
    updates=st.integers(1, 40),
    separation=st.integers(1, 30),
    clip=st.just(0.3),
    delta=st.floats(-9, -2).map(lambda power: 10.0**power),
    mechanism=st.sampled_from(["central", "local"]),
    correlated=st.booleans(),
    honest=st.just(2),
).map(lambda run: replace(run, correlated=run.correlated and run.mechanism == "central"))


@settings(deadline=None)
@given(a_central_or_local_run, st.floats(0.05, 100.0))
def test_the_epsilon_of_noise_is_that_for_which_the_noise_was_made(run: PrivateRun, epsilon: float) -> None:
    made = numbers_for_epsilon(run, epsilon)

    back = numbers_for_noise(run, made.chosen.multiplier)

    assert back.epsilon == pytest.approx(epsilon, rel=1e-6)
    assert back.chosen.multiplier == pytest.approx(made.chosen.multiplier, rel=1e-6)
    assert back.chosen.run.bands == made.chosen.run.bands


@settings(deadline=None)
@given(a_central_or_local_run, st.floats(0.5, 30.0))
def test_the_noise_of_an_epsilon_is_that_from_which_the_epsilon_came(
    run: PrivateRun, multiplier: float
) -> None:
    found = numbers_for_noise(run, multiplier)

    assert numbers_for_epsilon(run, found.epsilon).chosen.multiplier == pytest.approx(multiplier, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 50.0), st.integers(1, 20), st.integers(1, 50), st.integers(1, 10**7))
def test_so_it_is_with_noise_in_shares_to_a_fiftieth(
    epsilon: float, updates: int, honest: int, size: int
) -> None:
    run = replace(a_run("distributed"), updates=updates, honest=honest, parameters=size)

    noise = run.noise_for(epsilon, "plain")
    back = run.epsilon(run.noise_of(run.multiplier(noise), "plain"))

    # Other bits may be chosen, whose rounding costs more.
    assert back == pytest.approx(epsilon, rel=0.02)


def test_noise_is_told_with_the_epsilon_that_it_gives() -> None:
    said = told(*RUN, "--noise", "1.7", "--dp-noise", "plain")

    assert said.startswith("epsilon 7.99 with a noise multiplier of 1.7. Whoever sees all versions")
    assert "(epsilon 7.98695, delta 1e-05" in said


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ("0.0002", r"epsilon is 2\.\d+e\+08, and it must be above 0 and at most 1000: take more noise"),
        ("10000000", "epsilon is 0, and it must be above 0 and at most 1000: take less noise"),
    ],
)
def test_noise_that_promises_nothing_or_all_is_refused(noise: str, says: str) -> None:
    done = plan(*RUN, "--noise", noise)

    assert done.exit_code == 2
    assert re.search(says, done.stderr)


def test_noise_in_shares_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"so much noise as 1e\+09 cannot be drawn exactly"):
        a_run("distributed").noise_of(1e9, "plain")


def test_it_warns_of_a_large_delta_of_too_few_workers_and_of_noise_that_is_too_strong() -> None:
    few = told("--workers", "200", "--buffer-size", "50", "--parameters", "100000", "--epsilon", "2")
    strong = told(*RUN, "--epsilon", "1", "--delta", "0.01", "--dp-noise", "plain")

    assert "warning: 200 workers are too few: 10 versions in a row, of 50 updates each, need 500" in few
    assert "warning: the noise is so strong that little can be learnt: after 32 versions it is" in few
    assert "warning: delta 0.01 is more than 1 / 1000 workers" in strong
    assert re.search(r"so strong that little can be learnt: .* take a buffer_size of \d+ or more", strong)


def test_it_warns_of_a_clip_that_rounding_would_lose() -> None:
    said = told(
        *("--workers", "10", "--buffer-size", "2", "--parameters", "100000000", "--epsilon", "0.001"),
        *("--max-updates", "100", "--dp-noise", "plain"),
    )

    assert "warning: the clip of 1 is lost in the noise of a model of 100000000 parameters" in said


def test_the_noise_of_workers_that_nobody_counts_on_comes_on_top() -> None:
    all_honest = as_json("--epsilon", "8", "--mechanism", "distributed", "--honest", "50")
    half = as_json("--epsilon", "8", "--mechanism", "distributed")

    def numbers(found: dict[str, object]) -> dict[str, float]:
        by_noise = found["by_noise"]
        assert isinstance(by_noise, dict)
        plain: dict[str, float] = by_noise["plain"]
        return plain

    assert half["honest"] == 25
    assert numbers(half)["noise_multiplier"] == pytest.approx(numbers(all_honest)["noise_multiplier"])
    assert numbers(half)["std"] == pytest.approx(math.sqrt(2) * numbers(all_honest)["std"])
    assert numbers(all_honest)["std"] == pytest.approx(numbers(all_honest)["noise_multiplier"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either epsilon, such as 8, or noise, a noise multiplier"),
        (("--epsilon", "8", "--noise", "1"), "give either epsilon"),
        (("--epsilon", "0"), "epsilon must be above 0 and at most 1000, not 0"),
        (("--epsilon", "8", "--delta", "1"), "delta must be above 0 and below 1"),
        (("--epsilon", "8", "--clip", "0"), "--clip must be greater than or equal to 0.000000001"),
        (("--epsilon", "8", "--max-updates", "100001", "--separation", "10"), "max_updates times separation"),
        (
            ("--epsilon", "8", "--mechanism", "distributed", "--honest", "51"),
            "honest is 51, more than the 50",
        ),
        (
            ("--epsilon", "8", "--mechanism", "local", "--dp-noise", "plain"),
            "dp_noise has no effect with the mechanism local",
        ),
        (("--epsilon", "8", "--mechanism", "none"), "must be 'central', 'distributed' or 'local'"),
        (("--epsilon", "8", "--out", "plan.png"), "out must end with .html or .svg, not 'plan.png'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments: tuple[str, ...], says: str) -> None:
    done = plan(*RUN, *arguments)

    assert done.exit_code == 2
    assert says in done.stderr
    assert not list(Path().iterdir())


def test_a_file_has_the_settings_too() -> None:
    Path("fluffle.toml").write_text(
        "[privacy]\nbuffer_size = 50\nworkers = 1000\nparameters = 100000\nepsilon = 4.0\n"
    )

    assert "(epsilon 4, delta 1e-05" in told()


def test_the_page_has_the_promise_the_warnings_the_tables_and_two_pictures() -> None:
    told(*RUN, "--epsilon", "1", "--out", "plan.html")

    page = Path("plan.html").read_text()
    assert "right at most 56 times in 100" in page
    assert '<p class="reason">the noise is so strong that little can be learnt' in page
    assert page.count("<table>") == 3
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "<script" not in page


@pytest.mark.parametrize("mechanism", ["central", "distributed", "local"])
def test_the_picture_is_a_file_of_its_own_whose_colours_every_program_knows(mechanism: str) -> None:
    told(*RUN, "--epsilon", "8", "--mechanism", mechanism, "--out", "plan.svg")

    text = Path("plan.svg").read_text()
    drawn = ET.fromstring(text)
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn.findall(".//{*}circle")) == 1
    # Each curve has a line in the legend too; the second picture has the updates besides.
    assert len(drawn.findall(".//{*}polyline")) == (10 if mechanism == "central" else 6)
    assert "var(" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workers", "10000000", "--buffer-size", "1"),
        ("--workers", "10000000", "--buffer-size", "10000", "--max-updates", "100000"),
        ("--workers", "1", "--buffer-size", "10000000", "--max-updates", "1"),
        ("--workers", "100", "--buffer-size", "3", "--separation", "100000", "--max-updates", "10"),
        ("--workers", "100", "--buffer-size", "3", "--mechanism", "distributed", "--clip", "1e30"),
        ("--workers", "100", "--buffer-size", "3", "--delta", "1e-300", "--clip", "1e-9"),
    ],
)
def test_no_federation_is_too_large_or_too_small_to_compute(arguments: tuple[str, ...]) -> None:
    said = told(*arguments, "--parameters", "1", "--epsilon", "1000", "--out", "plan.html")

    assert "(epsilon 1000," in said
    assert "nan" not in said
    assert "nan" not in Path("plan.html").read_text()


def documented() -> list[tuple[str, str]]:
    """Return each block of commands in the page, with the output that follows it or nothing."""
    page = (ROOT / "docs/how-to/privacy-numbers.md").read_text()
    found = re.findall(r"^```\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.MULTILINE | re.DOTALL)
    return [(commands, output) for commands, output in found]


@pytest.mark.parametrize(("commands", "output"), documented())
def test_the_commands_in_the_documentation_run_and_print_what_stands_there(
    commands: str, output: str
) -> None:
    for command in commands.splitlines():
        words = command.partition(" > ")[0].split()
        assert words[0] == "fluffle"

        done = CliRunner().invoke(app, words[1:])

        assert done.exit_code == 0, done.stderr
        if output:
            assert [line.rstrip() for line in done.stdout.splitlines()] == output.splitlines()
