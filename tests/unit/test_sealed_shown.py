"""What is sealed, and how far its range is used: on the terminal, in JSON, for Prometheus."""

from dataclasses import replace
from io import StringIO

import pytest
from builders import a_version
from federation_states import a_view
from rich.console import Console
from sealing import KEY, a_sealed_version

from fluffle.events import SumSealed
from fluffle.metrics.meters import Meter
from fluffle.record import ModelVersion
from fluffle.sealed.parameters import LARGEST_VALUE, bytes_of
from fluffle.sealed.plan import SealedState
from fluffle_aggregator.effects import Tell
from fluffle_aggregator.told import told_of_commit
from fluffle_cli.watching.as_json import with_workers
from fluffle_cli.watching.sealed import sealed_model
from fluffle_cli.watching.terminal import render
from fluffle_cli.watching.view import Version


def half_used() -> ModelVersion:
    """Return a version whose sum may have come to half of its range."""
    version = a_sealed_version(5, (1.0,) * 4, weights=64)
    state = SealedState(weights=64, counted_from=64, largest=LARGEST_VALUE / 2, refreshes=1, asked="w1")
    return replace(version, sealed=state)


def text_of(version: ModelVersion) -> str:
    console = Console(width=300, record=True, file=StringIO())
    console.print(render(a_view(version)))
    return console.export_text()


def test_a_version_says_what_is_sealed_and_how_large_it_is() -> None:
    found = sealed_model(Version.of(half_used()))

    assert found is not None
    assert (found.key, found.sealed_parameters, found.parameters) == (KEY, 4, 4)
    assert found.sum_bytes == bytes_of(4)
    assert found.range_used == pytest.approx(0.5)
    assert found.in_words == (
        "sealed with the key 01234567: 4 of 4 parameters are encrypted, 0.06 MB in each update and version; "
        "50% of the range is used, encrypted anew 1 time, w1 is asked to do so now"
    )


def test_a_model_of_which_a_part_is_sealed_shows_how_much() -> None:
    version = half_used()
    assert version.plan.sealed is not None
    plan = replace(version.plan, sealed=replace(version.plan.sealed, only=("no such",)))

    found = sealed_model(Version.of(replace(version, plan=plan)))

    assert found is not None
    assert (found.sealed_parameters, found.sum_bytes) == (0, 0)


def test_terminal_and_json_show_it_and_nothing_of_it_where_nothing_is_sealed() -> None:
    assert "sealed with the key 01234567" in text_of(half_used())
    assert "sealed" not in text_of(a_version(5))
    shown = with_workers(a_view(half_used()))["sealed"]
    assert isinstance(shown, dict)
    assert shown["refreshes"] == 1
    assert with_workers(a_view(a_version(5)))["sealed"] is None


def test_the_leader_tells_prometheus_how_far_the_range_is_used() -> None:
    meter = Meter("aggregator", "digits", "a1")
    told = [
        each.event
        for each in told_of_commit(half_used(), 0.1)
        if isinstance(each, Tell) and isinstance(each.event, SumSealed)
    ]

    meter(told[0])

    labels = {"federation": "digits", "aggregator": "a1"}
    found = {
        name: meter.registry.get_sample_value(f"fluffle_sealed_{name}", labels)
        for name in ("bytes", "range_used", "refreshes")
    }
    assert found == {"bytes": bytes_of(4), "range_used": pytest.approx(0.5), "refreshes": 1}
    assert not [
        each
        for each in told_of_commit(a_version(5), 0.1)
        if isinstance(each, Tell) and isinstance(each.event, SumSealed)
    ]
