"""When a federation is over, and which version is the best."""

from __future__ import annotations

import pytest
from builders import an_evaluation

from fluffle.errors import ConfigError
from fluffle_aggregator.goal import Goal, Target, parse_target

ACCURACY = Target("accuracy", ">=", 0.9)
ERROR = Target("mae", "<=", 45.0)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.95", Target("accuracy", ">=", 0.95)),
        ("accuracy>=0.95", Target("accuracy", ">=", 0.95)),
        ("mae<=45", Target("mae", "<=", 45.0)),
        ("  val_loss  <=  1e-3 ", Target("val_loss", "<=", 0.001)),
        ("r2>=-0.5", Target("r2", ">=", -0.5)),
        (".5", Target("accuracy", ">=", 0.5)),
    ],
)
def test_a_target_reads_as_a_person_writes_it(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "high", "accuracy", "accuracy>0.9", "accuracy=0.9", ">=0.9", "1.2.3", ".", "mae<=45 s"]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="FLUFFLE_TARGET must read like 0"):
        parse_target(text)


@pytest.mark.parametrize(
    ("target", "metrics", "is_met"),
    [
        (ACCURACY, {"accuracy": 0.9}, True),
        (ACCURACY, {"accuracy": 0.8999}, False),
        (ACCURACY, {"loss": 0.1}, False),
        (ERROR, {"mae": 45.0}, True),
        (ERROR, {"mae": 45.1}, False),
        (ERROR, {}, False),
    ],
)
def test_a_bound_itself_is_good_enough_and_a_missing_metric_is_not(
    target: Target, metrics: dict[str, float], is_met: bool
) -> None:
    assert target.is_met(metrics) is is_met


def test_a_target_must_hold_in_a_row() -> None:
    goal = Goal(target=ACCURACY)
    held, history = 0, []

    for accuracy in (0.95, 0.92, 0.5, 0.9):
        held = goal.held(held, {"accuracy": accuracy})
        history.append(held)

    assert history == [1, 2, 0, 1]


def test_without_a_target_nothing_is_ever_held() -> None:
    assert Goal().held(7, {"accuracy": 1.0}) == 0


@pytest.mark.parametrize(
    ("goal", "reason"),
    [
        (Goal(), ""),
        (Goal(target=ACCURACY, target_hold=3), "accuracy>=0.9 held for 3 evaluations"),
        (Goal(target=ACCURACY, target_hold=4), ""),
        (Goal(max_versions=10), "10 versions were made"),
        (Goal(max_versions=11), ""),
        (Goal(max_updates=20), "20 updates were applied"),
        (Goal(max_updates=21), ""),
        (Goal(max_seconds=30), "30 seconds have passed"),
        (Goal(max_seconds=30.5), ""),
        (Goal(max_versions=11, max_updates=20, max_seconds=99), "20 updates were applied"),
    ],
)
def test_whatever_is_reached_first_ends_the_federation(goal: Goal, reason: str) -> None:
    assert goal.reached(version=10, updates=20, elapsed_s=30.0, target_held=3) == reason


@pytest.mark.parametrize(
    ("goal", "metrics", "best"),
    [
        (Goal(), [{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.6}], 1),
        (Goal(), [{"accuracy": 0.5, "loss": 9.0}, {"accuracy": 0.7, "loss": 99.0}], 1),
        (Goal(), [{"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}], 1),
        (Goal(target=ERROR), [{"mae": 60.0, "accuracy": 1.0}, {"mae": 50.0, "accuracy": 0.0}], 1),
        (Goal(target=ACCURACY), [{"accuracy": 0.9}, {"accuracy": 0.9}], 0),
        (Goal(), [{"accuracy": 0.9}, {"other": 1.0}], 0),
    ],
    ids=["accuracy", "accuracy before loss", "loss", "the target's metric", "the earlier", "no such metric"],
)
def test_the_best_evaluation_is_found(goal: Goal, metrics: list[dict[str, float]], best: int) -> None:
    found = None
    for version, each in enumerate(metrics):
        found = goal.better(found, an_evaluation(version, each))

    assert found is not None
    assert found.version == best


def test_a_first_evaluation_without_the_metric_does_not_stay_the_best_for_ever() -> None:
    # A NaN says nothing and is dropped on the way: the first evaluation may come without its metric.
    goal = Goal(target=ERROR)
    first = goal.better(None, an_evaluation(0, {"loss": 1.0}))

    best = goal.better(first, an_evaluation(1, {"mae": 70.0}))

    assert best.version == 1
