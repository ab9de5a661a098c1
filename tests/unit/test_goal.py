"""When a federation is over, and which version is the best."""

import math

import pytest
from builders import an_evaluation

from fluffle_aggregator.goal import (
    HIGHER_IS_BETTER,
    Goal,
    Target,
    Yardstick,
    parse_target,
    parse_yardstick,
)

ACCURACY = Target("accuracy", ">=", 0.9)
ERROR = Target("mae", "<=", 45.0)
NAN = math.nan


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.95", Target("accuracy", ">=", 0.95)),
        ("accuracy>=0.95", Target("accuracy", ">=", 0.95)),
        ("mae<=45", Target("mae", "<=", 45.0)),
        ("  val_loss  <=  1e-3 ", Target("val_loss", "<=", 0.001)),
        ("r2>=-0.5", Target("r2", ">=", -0.5)),
        (".5", Target("accuracy", ">=", 0.5)),
        ("f1-score/0>=0.5", Target("f1-score/0", ">=", 0.5)),
        ("precision@10 >= 0.5", Target("precision@10", ">=", 0.5)),
        ("R² (test)>=0.5", Target("R² (test)", ">=", 0.5)),
    ],
)
def test_a_target_reads_as_a_person_writes_it(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "high", "accuracy", "accuracy>0.9", "accuracy=0.9", ">=0.9", "1.2.3", ".", "mae<=45 s"]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="must read like 0"):
        parse_target(text)


@pytest.mark.parametrize("metric", ["sites.", "worst.", "worst.sites.accuracy", "spread.worst.loss"])
def test_a_name_over_all_sites_needs_a_metric_of_the_task_behind_it(metric: str) -> None:
    for parse, text in ((parse_target, f"{metric}>=0.9"), (parse_yardstick, f"{metric}:max")):
        with pytest.raises(ValueError, match=r"must have a metric of the task behind sites\., worst\."):
            parse(text)


@pytest.mark.parametrize(
    ("target", "metrics", "is_met"),
    [
        (ACCURACY, {"accuracy": 0.9}, True),
        (ACCURACY, {"accuracy": 0.8999}, False),
        (ACCURACY, {"loss": 0.1}, False),
        (ERROR, {"mae": 45.0}, True),
        (ERROR, {"mae": 45.1}, False),
        (ERROR, {}, False),
        (ACCURACY, {"accuracy": math.nan}, False),
        (ERROR, {"mae": math.nan}, False),
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
    assert goal.reached(version=10, updates=20, training_s=30.0, target_held=3) == reason


@pytest.mark.parametrize(
    ("goal", "metrics", "best"),
    [
        (Goal(), [{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.6}], 1),
        (Goal(), [{"accuracy": 0.5, "loss": 9.0}, {"accuracy": 0.7, "loss": 99.0}], 1),
        (Goal(), [{"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}], 1),
        (Goal(target=ERROR), [{"mae": 60.0, "accuracy": 1.0}, {"mae": 50.0, "accuracy": 0.0}], 1),
        (Goal(target=ACCURACY), [{"accuracy": 0.9}, {"accuracy": 0.9}], 0),
        (Goal(), [{"accuracy": 0.9}, {"other": 1.0}], 0),
        (Goal(), [{"rmse": 4.16}, {"rmse": 0.54}, {"rmse": 0.6}], 1),
        (Goal(), [{"val_auc": 0.5}, {"val_auc": 0.7}], 1),
        (Goal(), [{"f1_score/0": 0.5, "loss": 1.0}, {"f1_score/0": 0.7, "loss": 9.0}], 1),
        (Goal(best=Yardstick("bleu", True)), [{"bleu": 10.0, "loss": 1.0}, {"bleu": 20.0, "loss": 2.0}], 1),
        (Goal(target=ACCURACY, best=Yardstick("loss", False)), [{"accuracy": 1, "loss": 2}, {"loss": 1}], 1),
        (Goal(), [{"loss": NAN}, {"loss": 3.0}, {"loss": NAN}, {"loss": -math.inf}], 1),
    ],
)
def test_the_best_evaluation_is_found(goal: Goal, metrics: list[dict[str, float]], best: int) -> None:
    found = None
    for version, each in enumerate(metrics):
        found = goal.better(found, an_evaluation(version, each))

    assert found is not None
    assert found.version == best


def test_a_first_evaluation_without_the_metric_does_not_stay_the_best_for_ever() -> None:
    goal = Goal(target=ERROR)
    first = goal.better(None, an_evaluation(0, {"loss": 1.0}))

    best = goal.better(first, an_evaluation(1, {"mae": 70.0}))

    assert first is None
    assert best is not None
    assert best.version == 1


def test_without_a_metric_whose_direction_is_known_no_version_is_called_best() -> None:
    goal = Goal()

    assert goal.better(None, an_evaluation(0, {"bleu": 10.0})) is None
    assert goal.yardstick({"bleu": 10.0}) is None


@pytest.mark.parametrize(
    ("text", "yardstick"),
    [
        ("rmse:min", Yardstick("rmse", False)),
        ("bleu:max", Yardstick("bleu", True)),
        (" f1_score/0 ", Yardstick("f1_score/0", True)),
        ("val_loss", Yardstick("val_loss", False)),
        ("a:b:min", Yardstick("a:b", False)),
    ],
)
def test_a_yardstick_is_a_metric_and_its_direction(text: str, yardstick: Yardstick) -> None:
    assert parse_yardstick(text) == yardstick
    assert parse_yardstick(str(yardstick)) == yardstick


@pytest.mark.parametrize("text", ["", "bleu", "bleu:up", ":max", "min"])
def test_a_yardstick_without_a_direction_is_refused_with_the_known_metrics(text: str) -> None:
    with pytest.raises(ValueError, match=r"must read like rmse:min or bleu:max, not .* accuracy, auc"):
        parse_yardstick(text)


@pytest.mark.parametrize(("name", "higher"), HIGHER_IS_BETTER.items())
def test_the_direction_of_each_known_metric_counts(name: str, higher: bool) -> None:
    worse, better = (1.0, 2.0) if higher else (2.0, 1.0)
    goal = Goal()

    first = goal.better(None, an_evaluation(0, {name: worse}))
    best = goal.better(first, an_evaluation(1, {name: better}))

    assert best is not None
    assert best.version == 1


@pytest.mark.parametrize(
    ("goal", "metrics", "lost"),
    [
        (Goal(), {"accuracy": 0.9, "loss": NAN, "recall": NAN}, ["loss"]),
        (Goal(), {"accuracy": 0.1, "val_loss": math.inf}, ["val_loss"]),
        (Goal(), {"accuracy": 0.9, "loss": 0.3, "auc": NAN}, []),
        (Goal(), {"auc": NAN, "loss": 0.3}, ["auc"]),
        (Goal(), {"r2/age": NAN, "r2/weight": 0.4}, ["r2/age"]),
        (Goal(), {"bleu": NAN, "length": 9.0}, []),
        (Goal(best=parse_yardstick("bleu:max")), {"bleu": NAN, "length": 9.0}, ["bleu"]),
        (
            Goal(target=parse_target("f1_score/2>=0.8")),
            {"f1_score/2": NAN, "f1_score/3": NAN, "loss": 0.1},
            ["f1_score/2"],
        ),
        (Goal(), {"bleu": NAN, "length": NAN}, ["bleu", "length"]),
        (
            Goal(target=parse_target("worst.recall>=0.8")),
            {"sites.recall": NAN, "sites.accuracy": 0.9},
            ["sites.recall"],
        ),
        (Goal(), {"sites.accuracy": 0.9, "worst.accuracy": NAN, "spread.accuracy": 0.1}, []),
        (Goal(), {"sites.accuracy": 0.9, "sites.auc": NAN}, []),
        (Goal(), {}, []),
    ],
)
def test_a_model_is_lost_by_what_decides_and_not_by_a_metric_that_has_no_value(
    goal: Goal, metrics: dict[str, float], lost: list[str]
) -> None:
    assert goal.lost(metrics) == lost


def test_three_evaluations_in_a_row_that_are_not_finite_end_the_federation_unless_told_not_to() -> None:
    reached = [
        Goal(stop_on_nan=stops).reached(
            version=9, updates=9, training_s=1.0, target_held=0, not_finite_held=3
        )
        for stops in (True, False)
    ]

    assert "3 evaluations in a row were not finite: the learning rate may be too high" in reached[0]
    assert reached[1] == ""
