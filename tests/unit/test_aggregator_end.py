"""Evaluations: the best version is marked, and the federation ends when its goal is reached."""

import pytest
from builders import SIZE, a_config, a_strategy, a_version, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    a_server,
    aggregate,
    newest,
    rejected,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)

from fluffle.connection import say_hello
from fluffle.record import Evaluation
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal, Target
from fluffle_aggregator.reports import PATIENCE_S

ACCURACY = Target("accuracy", ">=", 0.9)


def accuracies(*values: float) -> list[Evaluation]:
    """What one evaluator says of version 0, 1, 2 and so on."""
    return [an_evaluation(version, {"accuracy": value}) for version, value in enumerate(values)]


def test_the_newest_and_the_best_evaluation_stand_in_the_next_record() -> None:
    config = a_config(a_strategy(buffer_size=1))
    reports = accuracies(0.5, 0.8, 0.7)
    updates = [an_update("w", n, base_version=n - 1) for n in (1, 2, 3)]
    server = a_server(config, reports[0], updates[0], reports[1], updates[1], reports[2], updates[2])

    aggregate(server, config)

    assert [one.evaluation for one in versions(server, config)] == [None, *reports]
    assert [one.best for one in versions(server, config)] == [None, reports[0], reports[1], reports[1]]
    assert [one.term for one in versions(server, config)] == [1, 2, 2, 2], (
        "under one leader, on one connection"
    )
    assert unacked(server, config) == []


def test_an_evaluation_that_comes_late_or_twice_counts_for_nothing() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=2))
    updates = [an_update("w", n, base_version=n - 1) for n in (1, 2)]
    newest_report = an_evaluation(1, {"accuracy": 0.95})
    late_report = an_evaluation(0, {"accuracy": 0.99})
    server = a_server(config, updates[0], newest_report, newest_report, late_report, updates[1])

    aggregate(server, config)

    record = newest(server, config)
    assert (record.evaluation, record.best, record.target_held) == (newest_report, newest_report, 1)
    assert record.finished == ""


def test_a_target_that_has_held_long_enough_ends_the_federation() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=2))
    reports = accuracies(0.91, 0.5, 0.92, 0.93)
    updates = [an_update("w", n, base_version=n - 1, values=[1] * SIZE) for n in (1, 2, 3)]
    server = a_server(
        config, reports[0], updates[0], reports[1], updates[1], reports[2], updates[2], reports[3]
    )

    aggregate(server, config)

    history = versions(server, config)
    closing = history[-1]
    assert [one.finished for one in history[:-1]] == [""] * 4
    assert closing.finished == "accuracy>=0.9 held for 2 evaluations"
    assert closing.version == history[-2].version + 1, "readers look for a newer one"
    assert closing.vector.tolist() == history[-2].vector.tolist() == [3.0] * SIZE
    assert closing.best == reports[3]
    assert unacked(server, config) == []


def test_what_is_in_the_buffer_at_the_end_is_in_the_closing_record() -> None:
    config = a_config(a_strategy(buffer_size=3), goal=Goal(max_updates=2))
    server = a_server(config, an_update("a", values=[1] * SIZE), an_update("b", values=[3] * SIZE))

    aggregate(server, config)

    closing = newest(server, config)
    assert closing.finished == "2 updates were applied"
    assert closing.vector.tolist() == [2.0] * SIZE
    assert (closing.version, closing.updates) == (1, 2)
    assert unacked(server, config) == []


def test_so_many_versions_end_the_federation_with_the_last_of_them() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=2))
    server = a_server(config, *(an_update("w", n, base_version=n - 1) for n in (1, 2)))

    aggregate(server, config)

    assert [(one.version, one.finished) for one in versions(server, config)] == [
        (0, ""),
        (1, ""),
        (2, "2 versions were made"),
    ]


def test_so_many_seconds_after_the_first_update_end_the_federation_without_any_message() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_seconds=60))
    server, clock = a_server(config), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        # While the workers load their framework and their data, nothing counts.
        clock.seconds = 1000.0
        work_off(leader, broker)
        send(server, config, an_update())
        work_off(leader, broker)
        clock.seconds = 1059.0
        work_off(leader, broker)
        assert not newest(server, config).finished

        clock.seconds = 1060.0
        work_off(leader, broker)

    assert newest(server, config).finished == "60 seconds have passed"
    assert newest(server, config).training_s == 60.0


def test_the_seconds_count_on_from_the_first_update_after_a_takeover() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_seconds=60))
    server, first_clock, clock = a_server(config), Clock(), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, first_clock)
        first_clock.seconds = 100.0
        send(server, config, an_update("w", 1))
        work_off(leader, broker)
        first_clock.seconds = 140.0
        send(server, config, an_update("w", 2, base_version=1))
        work_off(leader, broker)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        clock.seconds = 19.0
        work_off(leader, broker)
        assert not newest(server, config).finished
        clock.seconds = 20.0
        work_off(leader, broker)

    assert newest(server, config).finished == "60 seconds have passed"


def an_evaluator_says_hello(server: FakeServer, config: AggregatorConfig) -> None:
    with FakeBroker(server, user="e1") as broker:
        say_hello(broker, config.topology.evaluations_in, federation="digits", name="e1")


def test_the_last_model_is_evaluated_before_the_federation_says_that_it_has_finished() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_updates=2))
    server, clock = a_server(config), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        an_evaluator_says_hello(server, config)
        send(server, config, an_update("w", 1, values=[1] * SIZE))
        work_off(leader, broker)
        send(server, config, an_evaluation(1, {"accuracy": 0.5}))
        send(server, config, an_update("w", 2, base_version=1, values=[1] * SIZE))
        work_off(leader, broker)
        closing = newest(server, config)
        send(server, config, an_update("late", 1, base_version=2))
        work_off(leader, broker)
        assert not newest(server, config).finished
        send(server, config, an_evaluation(closing.version, {"accuracy": 0.9}))
        work_off(leader, broker)

    last = newest(server, config)
    assert (closing.closing, closing.finished) == ("2 updates were applied", "")
    assert closing.is_over
    assert last.finished == "2 updates were applied"
    assert last.version == closing.version + 1
    assert last.vector.tolist() == closing.vector.tolist() == [2.0] * SIZE
    assert (last.best, last.best_by) == (an_evaluation(closing.version, {"accuracy": 0.9}), "accuracy:max")
    assert [line["reason"] for line in rejected(server, config)] == ["finished"]
    assert unacked(server, config) == []


def test_an_evaluator_that_does_not_report_holds_up_the_end_for_a_while_only() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_updates=1))
    server, clock = a_server(config), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        an_evaluator_says_hello(server, config)
        send(server, config, an_update())
        work_off(leader, broker)
        clock.seconds = PATIENCE_S - 1
        work_off(leader, broker)
        assert not newest(server, config).finished
        clock.seconds = PATIENCE_S
        work_off(leader, broker)

    assert newest(server, config).finished == "1 updates were applied"


def test_a_successor_waits_for_the_evaluation_of_a_closing_version_too() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_updates=1))
    server, clock = a_server(config), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        an_evaluator_says_hello(server, config)
        send(server, config, an_update())
        work_off(leader, broker)

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, a_config(a_strategy(buffer_size=1)), clock)
        work_off(leader, broker)
        assert not newest(server, config).finished
        send(server, config, an_evaluation(newest(server, config).version, {"loss": 0.5}))
        work_off(leader, broker)

    assert newest(server, config).finished == "1 updates were applied"


def test_evaluations_that_are_not_finite_are_recorded_and_three_in_a_row_end_the_federation() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=1))
    nan = float("nan")
    reports = [an_evaluation(version, {"loss": nan}) for version in range(3)]
    updates = [an_update("w", n, base_version=n - 1) for n in (1, 2)]
    server = a_server(config, reports[0], updates[0], reports[1], updates[1], reports[2])

    aggregate(server, config)

    history = versions(server, config)
    assert [one.not_finite_held for one in history] == [0, 1, 2, 3]
    assert str(history[-1].evaluation) == str(reports[2])
    assert history[-1].finished.startswith("3 evaluations in a row were not finite: the learning rate")


def test_a_metric_that_has_no_value_ends_nothing_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, max_updates=4))
    reports = [an_evaluation(n, {"accuracy": 0.5, "recall/7": float("nan")}) for n in range(5)]
    updates = [an_update("w", n, base_version=n - 1) for n in range(1, 5)]
    server = a_server(
        config, *[each for pair in zip(reports, updates, strict=False) for each in pair], reports[4]
    )

    with caplog.at_level("WARNING"):
        aggregate(server, config)

    history = versions(server, config)
    assert {one.not_finite_held for one in history} == {0}
    assert history[-1].finished == "4 updates were applied"
    said = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert len(said) == len(reports)
    assert all("neither target nor best version" in line and "recall/7" in line for line in said)


def test_what_comes_after_the_end_is_worked_off_before_the_aggregator_leaves() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=1))
    server = a_server(config, an_update("a"), an_update("late"), an_evaluation(1, {"accuracy": 1.0}))

    aggregate(server, config)

    assert [(line["worker"], line["reason"]) for line in rejected(server, config)] == [("late", "finished")]
    assert [one.version for one in versions(server, config)] == [0, 1]
    assert unacked(server, config) == []


def test_an_aggregator_that_starts_after_the_end_leaves_by_itself() -> None:
    config = a_config(first=a_version(finished="it was enough"))
    server = a_server(config)

    aggregate(server, config)

    assert len(versions(server, config)) == 1
    assert unacked(server, config) == []


def test_an_evaluation_survives_a_leader_that_dies_before_it_was_recorded() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=1))
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, a_config(a_strategy(buffer_size=1)), Clock())
        send(server, config, an_evaluation(0, {"accuracy": 0.95}))
        work_off(leader, broker)  # another goal: it goes on, and dies here

    aggregate(server, config)

    assert newest(server, config).finished == "accuracy>=0.9 held for an evaluation"
