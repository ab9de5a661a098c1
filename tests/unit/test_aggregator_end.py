"""Evaluations: the best version is marked, and the federation ends when its goal is reached."""

from __future__ import annotations

from builders import SIZE, a_charge, a_strategy, a_version, an_evaluation, an_update
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

from fluffle.fake_broker import FakeBroker
from fluffle.record import Evaluation
from fluffle_aggregator.goal import Goal, Target

ACCURACY = Target("accuracy", ">=", 0.9)


def accuracies(*values: float) -> list[Evaluation]:
    """What one evaluator says of version 0, 1, 2 and so on."""
    return [an_evaluation(version, {"accuracy": value}) for version, value in enumerate(values)]


def test_the_newest_and_the_best_evaluation_stand_in_the_next_record() -> None:
    charge = a_charge(a_strategy(buffer_size=1))
    reports = accuracies(0.5, 0.8, 0.7)
    updates = [an_update("w", n, base_version=n - 1) for n in (1, 2, 3)]
    server = a_server(charge, reports[0], updates[0], reports[1], updates[1], reports[2], updates[2])

    aggregate(server, charge)

    assert [one.evaluation for one in versions(server, charge)] == [None, *reports]
    assert [one.best for one in versions(server, charge)] == [None, reports[0], reports[1], reports[1]]
    assert [one.term for one in versions(server, charge)] == [1, 2, 2, 2], (
        "under one leader, on one connection"
    )
    assert unacked(server, charge) == []


def test_an_evaluation_that_comes_late_or_twice_counts_for_nothing() -> None:
    charge = a_charge(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=2))
    updates = [an_update("w", n, base_version=n - 1) for n in (1, 2)]
    newest_report = an_evaluation(1, {"accuracy": 0.95})
    late_report = an_evaluation(0, {"accuracy": 0.99})
    server = a_server(charge, updates[0], newest_report, newest_report, late_report, updates[1])

    aggregate(server, charge)

    record = newest(server, charge)
    assert (record.evaluation, record.best, record.target_held) == (newest_report, newest_report, 1)
    assert record.finished == ""


def test_a_target_that_has_held_long_enough_ends_the_federation() -> None:
    charge = a_charge(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=2))
    reports = accuracies(0.91, 0.5, 0.92, 0.93)
    updates = [an_update("w", n, base_version=n - 1, values=[1] * SIZE) for n in (1, 2, 3)]
    server = a_server(
        charge, reports[0], updates[0], reports[1], updates[1], reports[2], updates[2], reports[3]
    )

    aggregate(server, charge)

    history = versions(server, charge)
    closing = history[-1]
    assert [one.finished for one in history[:-1]] == [""] * 4
    assert closing.finished == "accuracy>=0.9 held for 2 evaluations"
    assert closing.version == history[-2].version + 1, "readers look for a newer one"
    assert closing.vector.tolist() == history[-2].vector.tolist() == [3.0] * SIZE
    assert closing.best == reports[3]
    assert unacked(server, charge) == []


def test_what_is_in_the_buffer_at_the_end_is_in_the_closing_record() -> None:
    charge = a_charge(a_strategy(buffer_size=3), goal=Goal(max_updates=2))
    server = a_server(charge, an_update("a", values=[1] * SIZE), an_update("b", values=[3] * SIZE))

    aggregate(server, charge)

    closing = newest(server, charge)
    assert closing.finished == "2 updates were applied"
    assert closing.vector.tolist() == [2.0] * SIZE
    assert (closing.version, closing.updates) == (1, 2)
    assert unacked(server, charge) == []


def test_so_many_versions_end_the_federation_with_the_last_of_them() -> None:
    charge = a_charge(a_strategy(buffer_size=1), goal=Goal(max_versions=2))
    server = a_server(charge, *(an_update("w", n, base_version=n - 1) for n in (1, 2)))

    aggregate(server, charge)

    assert [(one.version, one.finished) for one in versions(server, charge)] == [
        (0, ""),
        (1, ""),
        (2, "2 versions were made"),
    ]


def test_so_many_seconds_end_the_federation_without_any_message() -> None:
    charge = a_charge(goal=Goal(max_seconds=60))
    server, clock = a_server(charge), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, charge, clock)
        clock.seconds = 59.0
        work_off(leader, broker)
        assert len(versions(server, charge)) == 1

        clock.seconds = 60.0
        work_off(leader, broker)

    assert newest(server, charge).finished == "60 seconds have passed"


def test_what_comes_after_the_end_is_worked_off_before_the_aggregator_leaves() -> None:
    charge = a_charge(a_strategy(buffer_size=1), goal=Goal(max_versions=1))
    server = a_server(charge, an_update("a"), an_update("late"), an_evaluation(1, {"accuracy": 1.0}))

    aggregate(server, charge)

    assert [(line["worker"], line["reason"]) for line in rejected(server, charge)] == [("late", "finished")]
    assert [one.version for one in versions(server, charge)] == [0, 1]
    assert unacked(server, charge) == []


def test_an_aggregator_that_starts_after_the_end_leaves_by_itself() -> None:
    charge = a_charge(first=a_version(finished="it was enough"))
    server = a_server(charge)

    aggregate(server, charge)

    assert len(versions(server, charge)) == 1
    assert unacked(server, charge) == []


def test_an_evaluation_survives_a_leader_that_dies_before_it_was_recorded() -> None:
    charge = a_charge(a_strategy(buffer_size=1), goal=Goal(target=ACCURACY, target_hold=1))
    server = a_server(charge)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, a_charge(a_strategy(buffer_size=1)), Clock())
        send(server, charge, an_evaluation(0, {"accuracy": 0.95}))
        work_off(leader, broker)  # another goal: it goes on, and dies here

    aggregate(server, charge)

    assert newest(server, charge).finished == "accuracy>=0.9 held for 1 evaluations"
