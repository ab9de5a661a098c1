"""What is said to be wrong with a federation: each of these, and nothing of one that is well."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privately import a_privacy_plan

from fluffle.plan import Plan
from fluffle.record import Contributor
from fluffle_cli.history import EvaluatedVersion
from fluffle_cli.watching.findings import (
    FEWEST_UPDATES,
    MOST_WAITING_EACH,
    SILENT_AFTER_S,
    TIMES_ITS_SHARE,
    Finding,
    findings_of,
)
from fluffle_cli.watching.progress import progress_of
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates, Version, Worker
from fluffle_cli.words import MOST_NAMED

GOOD = {"accuracy": [1 - math.exp(-number / 20) for number in range(30)]}


def some_workers(contributors: Mapping[str, Contributor]) -> Mapping[str, Worker]:
    """Return workers that have given this, of which nothing was heard since long."""
    state = FederationState("digits", 0.0)
    state.read(Version(federation="digits", version=1, term=1, contributors=contributors))
    return state.view(0.0).workers


def a_view(
    metrics: Mapping[str, Sequence[float]] = GOOD, *, best_by: str = "accuracy:max", best: int = 29
) -> FederationView:
    """Return a federation of two workers with 20 updates, all of whose versions were evaluated."""
    evaluations = [
        EvaluatedVersion(version, 10.0 * version, dict(zip(metrics, values, strict=True)))
        for version, values in enumerate(zip(*metrics.values(), strict=True))
    ]
    newest = evaluations[-1] if evaluations else None
    version = newest.version + 1 if newest else 0
    return FederationView(
        federation="digits",
        taken_at=0.0,
        newest=Version(
            federation="digits", version=version, term=1, updates=20, best_by=best_by, training_s=300.0
        ),
        queues=QueueStates(aggregator_active=True),
        workers=some_workers({name: Contributor(10, 100, 0, 10.0) for name in ("w1", "w2")}),
        evaluation=newest,
        best=next((each for each in evaluations if best_by and each.version == best), None),
        evaluations=evaluations,
    )


def newest_of(view: FederationView) -> Version:
    assert view.newest is not None
    return view.newest


def over(view: FederationView) -> FederationView:
    """Return the same federation after its end."""
    return replace(view, newest=replace(newest_of(view), finished="enough"))


def in_rounds(view: FederationView) -> FederationView:
    """Return the same federation with synchronous rounds."""
    return replace(view, newest=replace(newest_of(view), plan=Plan(one_update_per_version=True)))


def with_workers(view: FederationView, *workers: Worker) -> FederationView:
    """Return the same federation with these workers in place of those of the same names."""
    return replace(view, workers={**view.workers, **{each.name: each for each in workers}})


def kinds_of(view: FederationView) -> list[str]:
    return [found.kind for found in findings_of(view)]


def the_finding(view: FederationView) -> Finding:
    [found] = findings_of(view)
    return found


def test_a_healthy_federation_has_no_findings() -> None:
    assert findings_of(a_view()) == []
    assert progress_of(a_view()).state == "improving"


def test_a_missing_aggregator_is_found_until_the_end() -> None:
    alone = replace(a_view(), queues=QueueStates(updates_waiting=3))

    assert the_finding(alone).says == "No aggregator is active; 3 messages waiting."
    assert kinds_of(over(alone)) == []


def test_what_secure_aggregation_waits_for_is_found_until_the_end() -> None:
    waiting = replace(a_view(), sum_waits="helpers: h2 or h3, for 20 s")

    assert the_finding(waiting).says == "Secure aggregation waits: helpers: h2 or h3, for 20 s."
    assert kinds_of(over(waiting)) == []


def test_helpers_that_are_gone_are_found_until_the_end() -> None:
    def without(*helpers: str) -> FederationView:
        return replace(a_view(), queues=QueueStates(aggregator_active=True, absent_helpers=helpers))

    one, two = without("h2"), without("h2", "h3")

    assert the_finding(one).says == "h2 opened the last sum, and is not connected."
    assert the_finding(two).says == "h2, h3 opened the last sum, and are not connected."
    assert kinds_of(over(two)) == []


def test_an_evaluation_that_is_not_finite_is_found_with_its_version_and_likely_causes() -> None:
    view = a_view({"accuracy": [0.5, 0.6, 0.7], "loss": [0.5, math.nan, math.inf]}, best=2)

    found = the_finding(view)

    assert (found.kind, found.says) == (
        "not-finite",
        "2 evaluations are not finite: loss of version 2 is infinity.",
    )
    assert "learning rate" in found.do


def test_progress_is_not_finite_when_the_metric_that_counts_is_not() -> None:
    view = a_view({"accuracy": [0.5, math.nan]}, best=0)

    assert progress_of(view).says == "accuracy of version 1 is NaN."


def test_workers_whose_training_gives_nan_are_found() -> None:
    w1, w2 = a_view().workers.values()
    one = with_workers(a_view(), replace(w2, loss=math.nan))

    assert the_finding(one).says == "The training loss of w2 is not finite."
    assert the_finding(with_workers(one, replace(w1, loss=math.inf))).says == (
        "The training loss of w1, w2 is not finite."
    )


def test_a_worker_whose_messages_were_all_refused_is_found_with_the_reason() -> None:
    refused = Worker(name="w9", rejected=1, refusal="bad-layout: other shapes")

    found = the_finding(with_workers(a_view(), refused))

    assert found.says == "The only message of w9 was refused. The last reason is bad-layout: other shapes."


def test_two_processes_under_one_name_are_found() -> None:
    view = with_workers(a_view(), replace(a_view().workers["w1"], is_of_two=True))

    assert the_finding(view).says == "Two processes train as w1: their rounds take turns."


def test_a_worker_with_few_examples_and_much_weight_is_found() -> None:
    tiny = some_workers({"tiny": Contributor(98, 3, 0, 98.0), "large": Contributor(2, 1497, 0, 2.0)})
    view = replace(a_view(), workers=tiny)
    few = replace(view, newest=replace(newest_of(view), updates=FEWEST_UPDATES - 1))

    found = the_finding(view)

    assert found.says == "tiny has 98 % of the weight, but 0.2 % of the examples (3)."
    assert "--limit-share" in found.do
    assert kinds_of(few) == []


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.floats(0, 1e6), st.integers(1, 10**6))))
def test_exactly_the_workers_above_three_times_their_share_are_found(
    given: dict[str, tuple[float, int]],
) -> None:
    contributors = {name: Contributor(10, n, 0, weight) for name, (weight, n) in given.items()}
    workers = some_workers(contributors)

    found = [each for each in findings_of(replace(a_view(), workers=workers)) if each.kind == "above-share"]

    weight = sum(weight for weight, _ in given.values())
    examples = sum(n for _, n in given.values())
    above = [
        name for name, (own, n) in given.items() if weight and own / weight / (n / examples) > TIMES_ITS_SHARE
    ]
    assert len(found) == min(len(above), MOST_NAMED + 1)
    assert all(any(each.says.startswith(f"{name} has") for name in above) for each in found[:MOST_NAMED])
    # Weighing by examples is the default: to advise it would help nobody.
    assert all(each.do.endswith("and without --weigh-by none.") for each in found[:MOST_NAMED])


def test_a_silent_worker_is_found_and_that_synchronous_rounds_wait_for_it() -> None:
    w1, w2 = a_view().workers.values()
    silent = with_workers(a_view(), replace(w1, seen_s=1.0), replace(w2, seen_s=10 * SILENT_AFTER_S))

    assert the_finding(silent).says == "w2 has been silent for 10 min."
    assert the_finding(in_rounds(silent)).do.startswith("Each version waits for it.")
    both = with_workers(silent, replace(w1, seen_s=9 * SILENT_AFTER_S))
    assert the_finding(in_rounds(both)).do.startswith("Each version waits for them. Are they at work")
    assert kinds_of(over(silent)) == []
    assert kinds_of(with_workers(silent, replace(w2, seen_s=999.0, state="left: enough"))) == []


def test_a_slow_worker_counts_as_silent_only_after_several_of_its_rounds() -> None:
    # Ten updates in 10,000 s.
    slow = replace(a_view(), newest=replace(newest_of(a_view()), training_s=10_000.0))
    w1 = slow.workers["w1"]

    assert kinds_of(with_workers(slow, replace(w1, seen_s=4_000.0))) == []
    assert kinds_of(with_workers(slow, replace(w1, seen_s=6_000.0))) == ["silent"]


def test_the_slowest_worker_of_synchronous_rounds_is_found() -> None:
    rounds = (("w1", 1.0), ("w2", 9.0), ("w3", 2.0))
    waiting = with_workers(a_view(), *(Worker(name=name, round_s=seconds) for name, seconds in rounds))
    view = in_rounds(waiting)

    assert the_finding(view).says == "Each version waits for w2: its round took 9 s, and that of others 2 s."
    assert kinds_of(waiting) == []


def test_an_aggregator_that_cannot_keep_up_is_found() -> None:
    queues = QueueStates(aggregator_active=True, updates_waiting=5 * MOST_WAITING_EACH + 1)
    waiting = replace(a_view(), queues=queues)

    assert the_finding(waiting).says == "21 messages wait for the aggregator."


def test_a_loss_that_rises_for_long_is_found_while_another_metric_improves() -> None:
    loss = [0.5 + 0.02 * max(0, version - 5) for version in range(30)]
    rising = a_view({**GOOD, "loss": loss})

    found = the_finding(rising)

    assert (found.kind, found.says) == (
        "getting-worse",
        "loss has risen from about 0.5000 to 0.9400 since version 0.",
    )
    assert progress_of(rising).state == "improving"


def test_noise_is_named_where_a_model_with_differential_privacy_gets_worse() -> None:
    view = a_view({"accuracy": [*[0.9] * 10, *[0.5] * 20]}, best=0)
    private = replace(view, newest=replace(newest_of(view), plan=Plan(privacy=a_privacy_plan())))

    assert "fewer local epochs" in the_finding(view).do
    assert "noise of differential privacy adds up in the model" in the_finding(private).do


def test_a_model_that_gets_worse_or_no_better_is_found() -> None:
    fallen = a_view({"accuracy": [*[0.9] * 10, *[0.5] * 20]}, best=0)
    flat = a_view({"accuracy": [*GOOD["accuracy"], *[0.7] * 20]})

    assert kinds_of(fallen) == ["getting-worse"]
    assert progress_of(fallen).says == "accuracy has fallen from about 0.9000 to 0.5000 since version 0."
    assert the_finding(flat).says == ("accuracy has not improved for 20 versions, since version 29.")
    assert progress_of(over(flat)).says == (
        "accuracy did not improve in the last 20 versions, since version 29."
    )
    assert kinds_of(over(flat)) == []


@pytest.mark.parametrize(("version", "expected"), [(9, []), (10, ["not-evaluated"])])
def test_versions_that_nobody_evaluates_are_found(version: int, expected: list[str]) -> None:
    view = a_view({}, best_by="")
    view = replace(view, newest=replace(newest_of(view), version=version))

    assert kinds_of(view) == expected
    assert progress_of(view).says == "No version is evaluated yet."


def test_no_version_is_best_when_no_direction_of_the_metric_is_known() -> None:
    view = a_view({"bleu": [0.1, 0.2]}, best_by="")

    assert the_finding(view).do == 'Start the aggregators with --best "bleu:max" or --best "bleu:min".'
    assert progress_of(view).state == "unknown"


def test_a_metric_by_which_versions_are_compared_and_that_no_evaluation_has_is_found() -> None:
    view = a_view({"accuracy": [0.1, 0.2]}, best_by="f1:max")

    assert the_finding(view).kind == "no-metric"
    assert the_finding(view).says == (
        "The evaluations have no f1, by which versions are compared: they have accuracy."
    )


def test_progress_is_judged_by_one_record_when_few_evaluations_were_seen() -> None:
    def looked_at(newest: int, best: int) -> FederationView:
        found = a_view({}, best_by="loss:min")
        return replace(
            found,
            newest=replace(newest_of(found), version=newest + 1),
            evaluation=EvaluatedVersion(newest, 0.0, {"loss": 0.3}),
            best=EvaluatedVersion(best, 0.0, {"loss": 0.2}),
        )

    assert progress_of(looked_at(0, 0)).state == "early"
    assert progress_of(looked_at(5, 5)).says == "The newest evaluated version is the best one."
    assert progress_of(looked_at(8, 5)).state == "early"
    assert progress_of(looked_at(50, 5)).state == "flat"
    assert progress_of(looked_at(50, 5)).says == "loss was best at version 5 of 50."


def test_workers_that_all_train_a_part_are_found_with_the_largest() -> None:
    w1, w2 = a_view().workers.values()
    parts = with_workers(a_view(), replace(w1, model_share=0.1), replace(w2, model_share=0.25))

    found = the_finding(parts)

    assert found.says.startswith("All workers train the last layers alone, at most 25 % of the model:")
    assert found.do == "Start a worker without --train-share."
    assert kinds_of(with_workers(parts, w2)) == kinds_of(over(parts)) == []
