"""What is said to be wrong with a federation: each of these, and nothing of one that is well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.record import Contributor
from fluffle_cli.findings import (
    FEWEST_UPDATES,
    MOST_WAITING_EACH,
    SILENT_AFTER_S,
    TIMES_ITS_SHARE,
    Finding,
    findings_of,
)
from fluffle_cli.history import EvaluatedVersion, History
from fluffle_cli.standing import Standing, progress_of
from fluffle_cli.words import MOST_NAMED
from fluffle_cli.workers import WorkerFacts, facts_of

GOOD = {"accuracy": [1 - math.exp(-number / 20) for number in range(30)]}


def some_workers(**weights: float) -> dict[str, WorkerFacts]:
    """Return workers with ten updates of 100 examples, each with the weight that is given."""
    given = {name: Contributor(10, 100, 0, weight) for name, weight in weights.items()}
    return facts_of(given, now=0.0)


def a_standing(
    metrics: Mapping[str, Sequence[float]] = GOOD, *, best_by: str = "accuracy:max", best: int = 29
) -> Standing:
    """Return a federation of two workers with 20 updates, all of whose versions were evaluated."""
    history = History()
    for version, values in enumerate(zip(*metrics.values(), strict=True)):
        history.note_seconds(version, 10.0 * version)
        history.note_evaluation(version, dict(zip(metrics, values, strict=True)))
    seen = {each.version: each for each in history.evaluations}
    newest = history.evaluations[-1] if history.evaluations else None
    return Standing(
        is_over=False,
        version=newest.version + 1 if newest else 0,
        updates=20,
        workers=some_workers(w1=10.0, w2=10.0),
        evaluation=newest,
        best=seen.get(best) if best_by else None,
        best_by=best_by,
        history=history,
        training_s=300.0,
    )


def kinds_of(standing: Standing) -> list[str]:
    return [found.kind for found in findings_of(standing)]


def the_finding(standing: Standing) -> Finding:
    [found] = findings_of(standing)
    return found


def test_of_a_federation_that_is_well_nothing_is_found() -> None:
    assert findings_of(a_standing()) == []
    assert progress_of(a_standing()).state == "improving"


def test_nobody_leads_is_found_until_the_end() -> None:
    alone = replace(a_standing(), is_led=False, updates_waiting=3)

    assert the_finding(alone).says == "No aggregator is active; 3 updates waiting."
    assert kinds_of(replace(alone, is_over=True)) == []


def test_an_evaluation_that_is_not_finite_is_found_with_its_version_and_its_likely_causes() -> None:
    standing = a_standing({"accuracy": [0.5, 0.6, 0.7], "loss": [0.5, math.nan, math.inf]}, best=2)

    found = the_finding(standing)

    assert (found.kind, found.says) == (
        "not-finite",
        "2 evaluations are not finite: loss of version 2 is infinity.",
    )
    assert "learning rate" in found.do


def test_progress_is_not_finite_when_the_metric_that_counts_is_not() -> None:
    standing = a_standing({"accuracy": [0.5, math.nan]}, best=0)

    assert progress_of(standing).says == "accuracy of version 1 is NaN."


def test_workers_whose_training_gives_nan_are_found() -> None:
    told, recorded = a_standing(), a_standing()
    told.history.note_round("w2", "r", math.nan)
    given = {name: replace(facts, loss=math.inf) for name, facts in recorded.workers.items()}

    assert the_finding(told).says == "The training loss of w2 is not finite."
    assert the_finding(replace(recorded, workers=given)).says == (
        "The training loss of w1, w2 is not finite."
    )


def test_a_worker_of_which_nothing_is_in_the_model_is_found_with_the_reason() -> None:
    refused = facts_of({"w9": Contributor(rejected=1, refusal="bad-layout: other shapes")}, now=0.0)
    standing = a_standing()

    found = the_finding(replace(standing, workers={**standing.workers, **refused}))

    assert found.says == "The only message of w9 was refused. The last reason is bad-layout: other shapes."


def test_two_processes_under_one_name_are_found() -> None:
    standing = a_standing()
    for run in "abab":
        standing.history.note_round("w1", run, 0.5)

    assert the_finding(standing).says == "Two processes train as w1: their rounds take turns."


def test_a_tiny_fast_worker_is_found() -> None:
    tiny = facts_of({"tiny": Contributor(98, 3, 0, 98.0), "large": Contributor(2, 1497, 0, 2.0)}, now=0.0)

    found = the_finding(replace(a_standing(), workers=tiny, updates=100))

    assert found.says == "tiny has 98 % of the weight, but 0.2 % of the examples (3)."
    assert "--limit-share" in found.do
    assert kinds_of(replace(a_standing(), workers=tiny, updates=FEWEST_UPDATES - 1)) == []


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.floats(0, 1e6), st.integers(1, 10**6))))
def test_exactly_those_with_three_times_their_share_are_found(given: dict[str, tuple[float, int]]) -> None:
    contributors = {name: Contributor(10, n, 0, weight) for name, (weight, n) in given.items()}
    workers = facts_of(contributors, now=0.0)

    found = [
        each for each in findings_of(replace(a_standing(), workers=workers)) if each.kind == "above-share"
    ]

    weight = sum(weight for weight, _ in given.values())
    examples = sum(n for _, n in given.values())
    above = [
        name for name, (own, n) in given.items() if weight and own / weight / (n / examples) > TIMES_ITS_SHARE
    ]
    assert len(found) == min(len(above), MOST_NAMED + 1)
    assert all(any(each.says.startswith(f"{name} has") for name in above) for each in found[:MOST_NAMED])
    # Weighing by examples is the default: to advise it would help nobody.
    assert all(each.do.endswith("and without --weigh-by none.") for each in found[:MOST_NAMED])


def test_a_worker_that_is_silent_is_found_and_who_waits_for_it() -> None:
    silent = replace(a_standing(), silent_s={"w1": 1.0, "w2": 10 * SILENT_AFTER_S})

    assert the_finding(silent).says == "Nothing was heard of w2 for 10 min."
    assert the_finding(replace(silent, takes_rounds=True)).do.startswith("Each version waits for it.")
    assert kinds_of(replace(silent, is_over=True)) == []


def test_a_worker_whose_rounds_take_long_is_silent_only_after_several_of_them() -> None:
    # Ten updates in 10,000 s.
    slow = replace(a_standing(), training_s=10_000.0, silent_s={"w1": 4_000.0})

    assert kinds_of(slow) == []
    assert kinds_of(replace(slow, silent_s={"w1": 6_000.0})) == ["silent"]


def test_in_synchronous_rounds_the_worker_that_all_wait_for_is_found() -> None:
    standing = replace(a_standing(), takes_rounds=True)
    for name, seconds in (("w1", 1.0), ("w2", 9.0), ("w3", 2.0)):
        standing.history.note_round(name, "r", 0.5, seconds)

    assert (
        the_finding(standing).says == "Each version waits for w2: its round took 9 s, and that of others 2 s."
    )
    assert kinds_of(replace(standing, takes_rounds=False)) == []


def test_an_aggregator_that_cannot_keep_up_is_found() -> None:
    waiting = replace(a_standing(), updates_waiting=5 * MOST_WAITING_EACH + 1)

    assert the_finding(waiting).says == "21 updates wait for the aggregator."


def test_a_loss_that_rises_for_long_is_found_while_another_metric_improves() -> None:
    loss = [0.5 + 0.02 * max(0, version - 5) for version in range(30)]
    rising = a_standing({**GOOD, "loss": loss})

    found = the_finding(rising)

    assert (found.kind, found.says) == (
        "getting-worse",
        "loss has risen from about 0.5000 to 0.9400 since version 0.",
    )
    assert progress_of(rising).state == "improving"


def test_a_model_that_gets_worse_or_no_better_is_found() -> None:
    fallen = a_standing({"accuracy": [*[0.9] * 10, *[0.5] * 20]}, best=0)
    flat = a_standing({"accuracy": [*GOOD["accuracy"], *[0.7] * 20]})

    assert kinds_of(fallen) == ["getting-worse"]
    assert progress_of(fallen).says == "accuracy has fallen from about 0.9000 to 0.5000 since version 0."
    assert the_finding(flat).says == ("accuracy has not improved for 20 versions, since version 29.")
    assert progress_of(replace(flat, is_over=True)).says == (
        "accuracy did not improve in the last 20 versions, since version 29."
    )
    assert kinds_of(replace(flat, is_over=True)) == []


@pytest.mark.parametrize(("version", "expected"), [(9, []), (10, ["not-evaluated"])])
def test_versions_that_nobody_evaluates_are_found(version: int, expected: list[str]) -> None:
    standing = replace(a_standing({}, best_by=""), version=version)

    assert kinds_of(standing) == expected
    assert progress_of(standing).says == "No version is evaluated yet."


def test_where_nothing_says_what_is_better_nothing_is_best_and_that_is_said() -> None:
    standing = a_standing({"bleu": [0.1, 0.2]}, best_by="")

    assert the_finding(standing).do == 'Start the aggregators with --best "bleu:max" or --best "bleu:min".'
    assert progress_of(standing).state == "unknown"


def test_one_record_alone_says_whether_its_newest_version_is_the_best() -> None:
    def looked_at(newest: int, best: int) -> Standing:
        found = a_standing({}, best_by="loss:min")
        return replace(
            found,
            version=newest + 1,
            evaluation=EvaluatedVersion(newest, 0.0, {"loss": 0.3}),
            best=EvaluatedVersion(best, 0.0, {"loss": 0.2}),
        )

    assert progress_of(looked_at(0, 0)).state == "early"
    assert progress_of(looked_at(5, 5)).says == "The newest evaluated version is the best one."
    assert progress_of(looked_at(8, 5)).state == "early"
    assert progress_of(looked_at(50, 5)).state == "flat"
    assert progress_of(looked_at(50, 5)).says == "loss was best at version 5 of 50."
