"""A misspelt variable of the environment is named, with the one that was probably meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fluffle.command_line import new_app, settings_command, unknown_variables
from fluffle.settings import KNOWN_SETTINGS, SharedSettings, known_names
from fluffle_cli.broker_command import app as broker
from scripts.reference import PAGE, known_settings, page

KNOWN = known_names("variables")


def test_the_names_of_all_settings_are_current() -> None:
    assert KNOWN_SETTINGS.read_text() == known_settings(), "run `make reference`"


def test_the_reference_of_the_settings_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make reference`"


def test_the_reference_has_the_settings_of_the_parts_and_of_commands_in_groups() -> None:
    lines = page().splitlines()

    assert "## `fluffle aggregator`" in lines
    assert "## `fluffle federation delete` and `fluffle federation reset`" in lines
    assert any(
        line.startswith("| `--max-staleness` | `FLUFFLE_MAX_STALENESS` | INTEGER, ≥ 0 |") for line in lines
    )
    assert any(
        line.startswith("| `--reuse-limit` | `FLUFFLE_REUSE_LIMIT` | NUMBER, > 0 | `1.0` |") for line in lines
    )
    assert any(line.startswith("| `NAME` |  | TEXT | required | Name of the user") for line in lines)


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    found = list(
        unknown_variables(["FLUFFLE_STRATGY", "fluffle_Task", "PATH", "FLUFFLE_QQQQ", "FLUFFLE_SEED"])
    )

    assert found == [
        ("FLUFFLE_QQQQ", ""),
        ("FLUFFLE_STRATGY", "FLUFFLE_STRATEGY"),
    ]


@given(st.sampled_from(sorted(KNOWN)), st.integers(8, 60))
def test_a_known_variable_is_never_named_and_one_that_lacks_a_letter_is(name: str, at: int) -> None:
    misspelt = name[:at] + name[at + 1 :]

    assert list(unknown_variables([name])) == []
    assert [name for name, _ in unknown_variables([misspelt])] == [misspelt] * (misspelt not in KNOWN)


def test_a_command_warns_of_it_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_STRATGY", "fedasync")
    monkeypatch.setenv("FLUFFLE_EMPTI", "")
    app = new_app()
    app.command("one")(settings_command(SharedSettings, lambda _: None, about="Do it."))

    done = CliRunner().invoke(app, [])

    assert done.exit_code == 0
    assert (
        "unknown environment variable  variable=FLUFFLE_STRATGY  did_you_mean=FLUFFLE_STRATEGY" in done.stderr
    )
    assert "EMPTI" not in done.stderr


def test_a_command_without_settings_warns_of_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_BROKER_FOLDR", "/elsewhere")

    done = CliRunner().invoke(broker, ["status"])

    assert "variable=FLUFFLE_BROKER_FOLDR  did_you_mean=FLUFFLE_BROKER_FOLDER" in done.stderr
