"""What sites measure travels masked in their updates, and a sum says what it is over all of its sites."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_site_evaluation, an_update
from fake_broker import FakeBroker
from hypothesis import given
from hypothesis import strategies as st
from leading import Clock, a_server, newest, rejected, send, take_the_lead, unacked, versions
from securing import EPOCH, PLAN, VALUES, a_masked, a_secure_config, expected, go_on, helpers, numbers_of

from fluffle.errors import ConfigError
from fluffle.record import Evaluation
from fluffle.secure.limbs import decode_limbs, encode_limbs
from fluffle.secure.measured import MOST_COUNT, evaluation_of, measured_values, too_large
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.sites import Pooling, SiteEvaluation, SiteMetric
from fluffle.update import WeightUpdate
from fluffle_aggregator.goal import Goal, parse_target, parse_yardstick
from fluffle_aggregator.secure.combinations import USUAL_METRICS, metrics_in_sums

MEASURING = replace(PLAN, metrics=("accuracy", "loss")).numbered()
FEDERATION = "digits"


def a_found(*metrics: SiteMetric, examples: int = 10, version: int = 4) -> SiteEvaluation:
    return SiteEvaluation(FEDERATION, "w1", 1, version, examples, metrics)


def evaluated(found: Sequence[tuple[SiteEvaluation | None, int]]) -> Evaluation | None:
    """Return what a sum says of evaluations with these integer weights, on the way that they take."""
    total = np.zeros(encode_limbs(np.zeros(MEASURING.measured_size), MEASURING.bits).size, np.uint32)
    for each, factor in found:
        values = measured_values(each, MEASURING)
        add_multiple(total, encode_limbs(values, MEASURING.bits), factor)
    signed = MEASURING.modulus.signed(total)
    values = decode_limbs(signed, MEASURING.bits) / MEASURING.greatest
    return evaluation_of(values, MEASURING, federation=FEDERATION)


sites = st.tuples(st.integers(1, 10_000), st.floats(0, 1), st.floats(-100, 100), st.integers(8, 64))


@given(st.lists(sites, min_size=1, max_size=8))
def test_a_sum_says_the_mean_over_the_data_of_its_sites(given: list[tuple[int, float, float, int]]) -> None:
    found = [
        (
            a_found(
                SiteMetric("accuracy", "mean", accuracy * examples, examples),
                SiteMetric("loss", "mean", loss * examples, examples),
                examples=examples,
            ),
            factor,
        )
        for examples, accuracy, loss, factor in given
    ]

    made = evaluated(found)

    weights = [examples * factor for examples, _, _, factor in given]
    assert made is not None
    assert (made.evaluator, made.version) == ("sites", 4)
    for place, name in ((1, "sites.accuracy"), (2, "sites.loss")):
        mean = math.fsum(one[place] * weight for one, weight in zip(given, weights, strict=True))
        assert made.metrics[name] == pytest.approx(mean / math.fsum(weights), rel=1e-5, abs=2e-4)


def test_the_version_is_the_mean_of_those_that_were_evaluated() -> None:
    old, new = (a_site_evaluation(version=version, value=0.5) for version in (97, 100))

    made = evaluated([(old, 64), (new, 64), (new, 64), (None, 64)])

    assert made is not None
    assert made.version == 99


def test_a_site_that_holds_out_nothing_changes_nothing_and_without_any_nothing_is_known() -> None:
    found = a_site_evaluation(version=4, value=0.25)

    alone, beside = evaluated([(found, 64)]), evaluated([(found, 64), (None, 64)])

    assert alone == beside
    assert alone is not None
    assert alone.metrics == {"sites.accuracy": 0.25}
    assert evaluated([(None, 64), (None, 45)]) is None


@pytest.mark.parametrize(
    "bad",
    [
        SiteMetric("loss", "mean", math.nan, 10),
        SiteMetric("loss", "mean", math.inf, 10),
        SiteMetric("loss", "root_mean", -1.0, 10),
    ],
)
def test_a_metric_that_is_not_finite_at_one_of_very_many_sites_is_nan_over_all(bad: SiteMetric) -> None:
    many = a_found(SiteMetric("loss", "mean", 1.0, 1e9), examples=10**9)

    sites = [measured_values(each, MEASURING) for each in (a_found(bad), many)]
    made = evaluation_of(sites[0] / 8 + 4095 * sites[1], MEASURING, federation=FEDERATION)

    assert made is not None
    assert math.isnan(made.metrics["sites.loss"])


@pytest.mark.parametrize("pooling", ["root_mean", "site_mean"])
def test_what_is_no_mean_of_examples_is_the_mean_of_the_sites_values(pooling: Pooling) -> None:
    values = [(4.0, 10), (1.0, 30)]
    found = [
        (a_found(SiteMetric("loss", pooling, value * count, count), examples=count), 64)
        for value, count in values
    ]

    made = evaluated(found)

    of_site = math.sqrt if pooling == "root_mean" else float
    assert made is not None
    assert made.metrics["sites.loss"] == pytest.approx((10 * of_site(4.0) + 30 * of_site(1.0)) / 40)


@pytest.mark.parametrize("loss", [5e9, 1e-3, 0.0])
def test_a_loss_of_any_usual_size_travels(loss: float) -> None:
    # The squared error of prices in dollars, over some thousand houses.
    metric = SiteMetric("loss", "mean", 5000 * loss, 5000)

    made = evaluated([(a_found(metric, examples=5000), 64), (a_found(metric, examples=5000), 8)])

    assert made is not None
    assert made.metrics["sites.loss"] == pytest.approx(loss, rel=1e-4)
    assert too_large(a_found(metric), MEASURING) == []


def test_a_total_that_is_too_large_does_not_travel_and_is_named() -> None:
    huge = a_found(SiteMetric("loss", "mean", 1e15, 10), SiteMetric("accuracy", "mean", 5, 10))

    made = evaluated([(huge, 64)])

    assert made is not None
    assert made.metrics == {"sites.accuracy": pytest.approx(0.5, abs=1e-4)}
    assert too_large(huge, MEASURING) == ["loss"]


def test_more_examples_than_can_travel_leave_the_value_as_it_is() -> None:
    metric = SiteMetric("accuracy", "mean", 0.75 * 8 * MOST_COUNT, 8 * MOST_COUNT)

    made = evaluated([(a_found(metric, examples=int(8 * MOST_COUNT)), 64)])

    assert made is not None
    assert made.metrics["sites.accuracy"] == pytest.approx(0.75)


def spoiled(numbers: Residues) -> WeightUpdate:
    return EPOCH.masked(an_update("w3"), numbers, MEASURING)


def of_site(worker: str, sequence: int, version: int, accuracy: float, examples: int = 10) -> WeightUpdate:
    found = a_site_evaluation(worker, version, accuracy, examples=examples, term=1)
    return a_masked(worker, sequence, base_version=version, plan=MEASURING, found=found)


def test_the_sites_of_a_sum_reach_the_goal_together_and_what_one_has_measured_is_told_nowhere() -> None:
    goal = Goal(target=parse_target("sites.accuracy>=0.5"), target_hold=2)
    config = a_secure_config(goal=goal, secure=MEASURING)
    server = a_server(config)
    accuracies = {"w1": (0.2, 10), "w2": (0.6, 20), "w3": (0.7, 30)}
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        for version in range(4):
            if newest(server, config).finished:
                break
            for name, (accuracy, examples) in accuracies.items():
                send(server, config, of_site(name, version + 1, version, accuracy, examples))
            go_on(leader, broker, answering)

    last = newest(server, config)
    assert last.site_evaluation is not None
    assert last.site_evaluation.metrics == {"sites.accuracy": pytest.approx(35 / 60)}
    # Version 0 does not count: nobody has trained it.
    assert [each.site_evaluation and each.site_evaluation.version for each in versions(server, config)][
        :4
    ] == [None, None, 1, 2]
    assert last.finished == "sites.accuracy>=0.5 held for 2 evaluations"
    assert last.best is not None
    assert (last.best.version, last.best_by) == (1, "sites.accuracy:max")
    assert last.sites == {}
    assert rejected(server, config) == []


def test_a_site_that_claims_what_cannot_be_reaches_no_goal(caplog: pytest.LogCaptureFixture) -> None:
    config = a_secure_config(goal=Goal(target=parse_target("sites.accuracy>=0.9")), secure=MEASURING)
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        for version in range(5):
            for name, accuracy in (("w1", 0.1), ("w2", 0.1), ("w3", 1e6)):
                send(server, config, of_site(name, version + 1, version, accuracy))
            go_on(leader, broker, answering)

    assert (newest(server, config).version, newest(server, config).finished) == (5, "")
    assert "a site of the sum claims what cannot be" in caplog.text


@pytest.mark.parametrize(
    ("digit", "says"), [(2**17, "a digit of its statistics is"), (2**14 - 1, "its evaluations hold")]
)
def test_nonsense_in_what_sites_measure_is_discarded_with_its_sum(digit: int, says: str) -> None:
    config = a_secure_config(secure=MEASURING)
    behind = np.full(MEASURING.length(0, 0), digit, np.uint32)
    numbers = np.concatenate([numbers_of([0.0] * SIZE), behind])
    server = a_server(config, *(a_masked(name, plan=MEASURING) for name in ("w1", "w2")), spoiled(numbers))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    assert newest(server, config).vector.tolist() == [0.0] * SIZE
    assert {one["reason"] for one in rejected(server, config)} == {"unsound-sum"}
    assert says in str(rejected(server, config)[0]["detail"])


def test_an_evaluation_that_is_not_masked_is_refused() -> None:
    config = a_secure_config(secure=MEASURING)
    server = a_server(config, a_site_evaluation("w1", 0, 0.5))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)

    [found] = rejected(server, config)
    assert found["reason"] == "wrong-content"
    assert "the site's evaluation is not masked" in str(found["detail"])


@pytest.mark.parametrize(
    "other",
    [
        replace(MEASURING, clip=2.0),
        replace(MEASURING, by_norm=True),
        replace(MEASURING, bits=15),
        replace(MEASURING, greatest=32),
        replace(MEASURING, metrics=("loss",)),
        replace(MEASURING, epoch=2),
    ],
)
def test_any_other_plan_has_another_revision(other: SecurePlan) -> None:
    assert other.numbered().revision != MEASURING.revision
    assert replace(MEASURING, revision=7).numbered() == MEASURING


def test_an_update_that_was_masked_by_another_plan_is_refused() -> None:
    # Of the same size and epoch: without the revision it would be taken for twice as large as it is.
    before = replace(PLAN, clip=2 * PLAN.clip).numbered()
    config = a_secure_config(secure=PLAN.numbered())
    server = a_server(config, a_masked("w1", plan=before))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)

    [found] = rejected(server, config)
    assert found["reason"] == "wrong-content"
    assert f"masked by revision {before.revision} of the plan" in str(found["detail"])


@pytest.mark.parametrize(
    "other", [replace(PLAN, clip=1.0), replace(PLAN, greatest=8), replace(PLAN, bits=12, modulus_bits=24)]
)
def test_another_leader_with_another_plan_opens_the_sum_as_it_was_closed(other: SecurePlan) -> None:
    before, after = PLAN.numbered(), other.numbered()
    config = a_secure_config(secure=before)
    server = a_server(
        config, *(a_masked(name, values=values, plan=before) for name, values in VALUES.items())
    )
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)
    changed = a_secure_config(secure=after)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, changed, Clock())
        assert newest(server, config).version == 0
        go_on(leader, broker, helpers(server, config))

    version = newest(server, changed)
    assert version.version == 1
    assert version.vector.tolist() == expected(((values, 64) for values in VALUES.values()), 3)
    assert [(str(one.id), one.weight) for one in version.folded] == [(f"{name}/r1/1", 1.0) for name in VALUES]
    assert version.plan.secure == after
    assert rejected(server, config) == []
    assert unacked(server, config) == []


@pytest.mark.parametrize(
    ("goal", "metrics"),
    [
        (Goal(), USUAL_METRICS),
        (Goal(target=parse_target("accuracy>=0.9")), USUAL_METRICS),
        (Goal(target=parse_target("sites.auc>=0.9")), ("auc",)),
        (Goal(target=parse_target("sites.auc>=0.9"), best=parse_yardstick("sites.loss")), ("loss", "auc")),
    ],
)
def test_the_metrics_of_the_goal_travel_or_else_the_usual_ones(goal: Goal, metrics: tuple[str, ...]) -> None:
    assert metrics_in_sums(goal) == metrics


@pytest.mark.parametrize("metric", ["worst.accuracy>=0.8", "spread.accuracy<=0.1"])
def test_a_goal_that_needs_the_value_of_one_site_is_refused(metric: str) -> None:
    with pytest.raises(ConfigError, match=r"nobody learns what a single site measures: name sites\.accuracy"):
        metrics_in_sums(Goal(target=parse_target(metric)))
