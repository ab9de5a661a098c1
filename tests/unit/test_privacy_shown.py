"""What is spent of a promise of differential privacy: on the terminal, in JSON, in files, for Prometheus."""

from dataclasses import replace
from io import StringIO

import pytest
from builders import a_version
from federation_states import a_view
from privately import SECRET, a_privacy_plan
from rich.console import Console

from fluffle.events import Spent
from fluffle.metrics.meters import Meter
from fluffle.plan import Plan
from fluffle.privacy.plan import Participation, PrivacyState
from fluffle.record import Contributor, ModelVersion
from fluffle_aggregator.effects import Tell
from fluffle_aggregator.told import told_of_commit
from fluffle_cli.watching.as_json import with_workers
from fluffle_cli.watching.privacy import about_privacy, spent_by_worker, spent_privacy
from fluffle_cli.watching.terminal import render
from fluffle_cli.watching.view import Version

PLAN = a_privacy_plan(epsilon=8.0, updates=4)


def a_private_version() -> ModelVersion:
    """Return a version in which one worker has spent all, and another one half of it."""
    state = PrivacyState(
        commitment=SECRET.commitment,
        steps=5,
        participations={"w1": Participation(4, 5), "w2": Participation(2, 3)},
    )
    known = {"w1": Contributor(updates=4), "w2": Contributor(updates=2)}
    return replace(a_version(5), plan=Plan(privacy=PLAN), privacy=state, contributors=known)


def test_what_the_federation_has_spent_is_what_its_most_active_worker_has() -> None:
    found = spent_privacy(Version.of(a_private_version()))

    assert found is not None
    assert found.spent == pytest.approx(8.0)
    assert (found.workers, found.workers_spent, found.steps) == (2, 1, 5)
    assert found.in_words == (
        "privacy: epsilon 8 of 8 spent (delta 1e-05), at most 4 of 4 updates of a worker, "
        "1 of 2 workers done, mechanism central"
    )


def test_each_worker_shows_what_it_has_spent() -> None:
    view = a_view(a_private_version())

    shown = with_workers(view)

    workers = shown["workers"]
    assert isinstance(workers, dict)
    assert workers["w1"]["epsilon"] == pytest.approx(8.0)
    assert 0 < workers["w2"]["epsilon"] < 8
    assert isinstance(shown["privacy"], dict)
    assert shown["privacy"]["promise"] == PLAN.promise
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(view))
    assert "privacy: epsilon 8 of 8 spent" in console.export_text()


def test_without_a_promise_nothing_is_shown_of_privacy() -> None:
    view = a_view(replace(a_version(5), contributors={"w1": Contributor(updates=4)}))

    shown = with_workers(view)

    assert shown["privacy"] is None
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(view))
    assert "epsilon" not in console.export_text()


def test_a_file_with_a_model_says_what_was_spent_and_what_is_not_covered() -> None:
    version = a_private_version()
    assert version.privacy is not None

    assert about_privacy(PLAN, version.privacy) == {
        "privacy": "epsilon 8, delta 1e-05",
        "privacy.promised": "epsilon 8, delta 1e-05",
        "privacy.unit": "one worker with all its updates",
        "privacy.mechanism": f"central, {PLAN.noise_in_words}, clip 1",
        "privacy.not_covered": "who sends updates, and when",
    }


def test_noise_at_the_workers_and_an_adaptive_clip_are_named_where_privacy_is_shown() -> None:
    local, adaptive = a_privacy_plan(mechanism="local"), a_privacy_plan(clip=0.1, adaptive=True)
    state = PrivacyState(commitment="", participations={"w1": Participation(2)})
    of_local = spent_privacy(Version.of(replace(a_version(), plan=Plan(privacy=local), privacy=state)))
    moved = replace(state, clip=0.25)
    of_adaptive = spent_privacy(Version.of(replace(a_version(), plan=Plan(privacy=adaptive), privacy=moved)))

    assert about_privacy(local, state)["privacy.mechanism"] == "local, plain Gaussian noise, clip 1"
    assert about_privacy(adaptive, moved)["privacy.mechanism"].endswith("adaptive clip 0.25")
    assert of_local is not None
    assert of_local.in_words.endswith("0 of 1 worker done, mechanism local")
    assert of_adaptive is not None
    assert of_adaptive.in_words.endswith("mechanism central, clip 0.25")
    assert of_adaptive.noise == adaptive.std_at(0.25)


def test_the_leader_tells_prometheus_what_is_spent() -> None:
    meter = Meter("aggregator", "digits", "a1")
    [told] = [
        each.event
        for each in told_of_commit(a_private_version(), 0.1)
        if isinstance(each, Tell) and isinstance(each.event, Spent)
    ]

    meter(told)

    labels = {"federation": "digits", "aggregator": "a1"}
    by_mechanism = {**labels, "mechanism": "central"}
    epsilon = meter.registry.get_sample_value("fluffle_privacy_epsilon", by_mechanism)
    assert epsilon == pytest.approx(8.0)
    assert meter.registry.get_sample_value("fluffle_privacy_sums", labels) == 5


def test_what_workers_have_spent_is_told_the_most_first() -> None:
    found = spent_by_worker(Version.of(a_private_version()))

    assert [(each.name, each.updates) for each in found] == [("w1", 4), ("w2", 2)]
    assert found[0].epsilon > found[1].epsilon > 0
    assert spent_by_worker(Version.of(a_version())) == []
