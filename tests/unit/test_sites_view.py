"""What people and programs see of the sites: each of them, all together, and what is wrong there."""

import math
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from builders import a_version, an_evaluation
from event_files import points_in
from federation_states import a_view, told
from rich.console import Console

from fluffle.events import Committed, Evaluated, Validated
from fluffle.fields import Metrics
from fluffle.metrics.meters import Meter
from fluffle.plan import Plan
from fluffle.record import Contributor, Evaluation, ModelVersion
from fluffle.secure.plan import SecurePlan
from fluffle.sites import Gain, Pooling, SiteMetric, SiteReport
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.terminal import plain_line, render
from fluffle_cli.watching.view import FederationView, Version
from fluffle_worker.curves import Curves


def by_sites(version: int, metrics: Mapping[str, float]) -> Evaluation:
    """Return an evaluation by all sites."""
    return an_evaluation(version, metrics, evaluator="sites")


def a_site(version: int, accuracy: float, *, examples: int = 10, auc: float = 0.5) -> SiteReport:
    """Return a site with an accuracy, which sites sum up, and an AUC, which they do not."""

    def metric(name: str, pooling: Pooling, value: float) -> SiteMetric:
        return SiteMetric(name, pooling, value * examples, examples)

    metrics = (metric("auc", "site_mean", auc), metric("accuracy", "mean", accuracy))
    return SiteReport(1, version, examples, metrics, gains_version=1, gains=(Gain("accuracy", 0.5, 0.75),))


def a_record(**changed: Any) -> ModelVersion:
    """Return a version that three sites have evaluated, and no evaluator."""
    sites = {"ward-1": a_site(8, 0.9), "ward-2": a_site(9, 0.6), "ward-3": a_site(9, 0.75, examples=20)}
    record = replace(
        a_version(9),
        plan=Plan(sites_decide=True),
        sites=sites,
        site_evaluation=by_sites(9, {"sites.accuracy": 0.75, "worst.accuracy": 0.6}),
        best=by_sites(7, {"sites.accuracy": 0.8, "worst.accuracy": 0.7}),
        best_by="worst.accuracy:max",
        contributors={name: Contributor(5, 50) for name in (*sites, "ward-4")},
    )
    return replace(record, **changed)


def drawn(view: FederationView) -> str:
    written = StringIO()
    Console(file=written, width=80).print(render(view))
    return written.getvalue()


def test_programs_get_the_worst_sites_first_and_each_metric_over_all_of_them() -> None:
    found: Any = as_json(a_view(a_record()))["sites"]

    assert found["metric"] == "accuracy"
    assert [(row["name"], row["version"], row["age"]) for row in found["rows"]] == [
        ("ward-2", 9, 0),
        ("ward-3", 9, 0),
        ("ward-1", 8, 1),
    ]
    accuracy, auc = found["over"]
    assert (accuracy["name"], accuracy["pooling"], accuracy["lowest_site"]) == ("accuracy", "mean", "ward-2")
    assert accuracy["mean"] == 0.75
    assert (auc["name"], auc["pooling"]) == ("auc", "site_mean")
    assert found["gain"] == 0.25
    assert as_json(a_view(a_version()))["sites"] is None


def test_the_evaluations_by_the_sites_are_the_curve_where_they_decide() -> None:
    state = FederationState("digits", 0.0)
    state.read(Version.of(a_record()))
    told(state, Evaluated(10, {"sites.accuracy": 0.8, "worst.accuracy": 0.9}, "sites"))
    told(state, Evaluated(11, {"accuracy": 0.1}))

    view = state.view(0.0)

    assert view.evaluation is not None
    assert view.best is not None
    assert (view.metric, view.evaluation.version, view.best.version) == ("worst.accuracy", 10, 10)
    assert [each.version for each in view.evaluations] == [7, 9, 10]
    assert "worst.accuracy 0.9000 (version 10)" in plain_line(view)


def test_an_evaluator_decides_where_nothing_says_that_the_sites_do() -> None:
    view = a_view(
        a_record(plan=Plan(), evaluation=an_evaluation(9, {"accuracy": 0.5}), best=None, best_by="")
    )

    assert view.evaluation is not None
    assert view.evaluation.metrics == {"accuracy": 0.5}


def test_the_terminal_shows_the_sites_with_what_their_own_rounds_make_of_the_model() -> None:
    text = drawn(a_view(a_record()))

    lines = [line.split() for line in text.splitlines()]
    assert ["ward-2", "9", "10", "0.6000", "0.5000", "0.7500"] in lines
    assert ["ward-1", "8,", "1", "ago", "10", "0.9000", "0.5000", "0.7500"] in lines
    assert ["mean", "0.7500", "0.5000"] in lines
    assert "not summed up, but the mean of the sites: auc" in text


def test_a_site_that_is_not_finite_is_named() -> None:
    record = a_record()
    record = replace(record, sites={**record.sites, "broken": a_site(9, math.nan)})
    view = a_view(record)
    sites: Any = as_json(view)["sites"]

    assert sites["rows"][0]["name"] == "broken"
    [found] = [each for each in findings_of(view) if each.kind == "site-not-finite"]
    assert found.says == "accuracy is not finite at broken: a target of it counts as missed."


def test_workers_that_hold_out_nothing_are_named_where_the_goal_needs_them() -> None:
    [found] = [each for each in findings_of(a_view(a_record())) if each.kind == "site-not-evaluated"]
    others = findings_of(a_view(a_record(plan=Plan())))

    assert "1 of 4 workers evaluate nothing: ward-4" in found.says
    assert "--local-validation" in found.do
    assert not [each for each in others if each.kind == "site-not-evaluated"]


def test_sums_without_what_sites_measure_are_named_where_the_goal_needs_it() -> None:
    plan = Plan(sites_decide=True, secure=SecurePlan(epoch=1, clip=1.0, metrics=("accuracy",)))
    record = replace(a_record(plan=plan), sites={}, site_evaluation=None)

    [found] = [each for each in findings_of(a_view(record)) if each.kind == "site-not-evaluated"]
    others = findings_of(a_view(replace(record, site_evaluation=an_evaluation(3, {"sites.accuracy": 0.5}))))

    assert "in no sum has any of them evaluated" in found.says
    assert "--local-validation" in found.do
    assert not [each for each in others if each.kind == "site-not-evaluated"]


def test_prometheus_counts_what_a_worker_measures_and_what_all_sites_do() -> None:
    worker, leader = Meter("worker", "digits", "w1"), Meter("aggregator", "digits", "a1")
    metrics: Metrics = {"accuracy": 0.75}
    worker(Validated(3, 0.5, 20, metrics))
    leader(Evaluated(3, {"sites.accuracy": 0.75, "worst.accuracy": 0.5}, "sites"))
    leader(Evaluated(3, {"accuracy": 0.6}))
    leader(Committed(4, 1, 0.1, 1.0, 0, -1))

    def value(meter: Meter, name: str, **labels: str) -> float | None:
        part = {"federation": "digits", **labels}
        return meter.registry.get_sample_value(name, part)

    assert value(worker, "fluffle_worker_validation", worker="w1", metric="accuracy") == 0.75
    assert value(worker, "fluffle_worker_validation_version", worker="w1") == 3
    for metric, measured in {"sites.accuracy": 0.75, "worst.accuracy": 0.5, "accuracy": 0.6}.items():
        assert value(leader, "fluffle_evaluation", aggregator="a1", metric=metric) == measured


def test_tensorboard_has_the_curves_of_all_sites_and_of_each(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.note(a_record(), None)
    curves.close()

    found = points_in(tmp_path)
    assert found["worst/accuracy"] == [(9, 0.6000000238418579)]
    ward = points_in(tmp_path / "workers" / "ward-3")
    assert ward["site/accuracy"] == [(9, 0.75)]
    assert ward["site/version"] == [(9, 9.0)]
