"""A misspelt variable of the environment is named, with the one that was probably meant."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fluffle.command_line import new_app, settings_command
from fluffle.known_variables import KNOWN, OTHERS, SETTINGS, UnknownVariable, unknown_variables
from fluffle.settings import SharedSettings
from fluffle_cli.broker_command import app as broker

PACKAGES = ("fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli")


def settings_classes(of: type[SharedSettings] = SharedSettings) -> Iterator[type[SharedSettings]]:
    yield of
    for each in of.__subclasses__():
        if each.__module__.startswith("fluffle"):
            yield from settings_classes(each)


def test_the_settings_of_every_part_and_command_are_known_and_no_others() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if module.name.rpartition(".")[2].startswith(("settings", "program")) or "command" in module.name:
                importlib.import_module(module.name)

    assert {name for each in settings_classes() for name in each.model_fields} == SETTINGS
    assert not SETTINGS & OTHERS


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    found = list(
        unknown_variables(["FLUFFLE_STRATGY", "fluffle_Task", "PATH", "FLUFFLE_QQQQ", "FLUFFLE_SEED"])
    )

    assert found == [
        UnknownVariable("FLUFFLE_QQQQ", ""),
        UnknownVariable("FLUFFLE_STRATGY", "FLUFFLE_STRATEGY"),
    ]


@given(st.sampled_from(sorted(KNOWN)), st.integers(8, 60))
def test_a_known_variable_is_never_named_and_one_that_lacks_a_letter_is(name: str, at: int) -> None:
    misspelt = name[:at] + name[at + 1 :]

    assert list(unknown_variables([name])) == []
    assert [each.name for each in unknown_variables([misspelt])] == [misspelt] * (misspelt not in KNOWN)


def test_a_command_warns_of_it_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_STRATGY", "fedasync")
    monkeypatch.setenv("FLUFFLE_EMPTI", "")
    app = new_app()
    app.command("one")(settings_command(SharedSettings, lambda _: None, about="Do it."))

    done = CliRunner().invoke(app, [])

    assert done.exit_code == 0
    assert "is no setting  variable=FLUFFLE_STRATGY  did_you_mean=FLUFFLE_STRATEGY" in done.stderr
    assert "EMPTI" not in done.stderr


def test_a_command_without_settings_warns_of_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUFFLE_BROKER_FOLDR", "/elsewhere")

    done = CliRunner().invoke(broker, ["status"])

    assert "variable=FLUFFLE_BROKER_FOLDR  did_you_mean=FLUFFLE_BROKER_FOLDER" in done.stderr
