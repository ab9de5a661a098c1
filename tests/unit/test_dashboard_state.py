"""What the live page shows of what was told and what was read: right, and of bounded size."""

from __future__ import annotations

import json
from dataclasses import replace

from builders import an_evaluation
from dashboard_states import (
    NOW,
    QUEUES,
    a_commit,
    a_record,
    a_state,
    an_applied,
    rows_of,
    says_of,
    told,
    updates_of,
)
from hypothesis import given
from hypothesis import strategies as st

from fluffle.events import (
    AFTER_THE_END,
    Evaluated,
    Joined,
    Left,
    Rejected,
    Started,
    TookOver,
)
from fluffle.record import Contributor, Folded, Rank
from fluffle.update import UpdateId
from fluffle_cli.dashboard.state import MOST_REASONS, MOST_REJECTIONS, OTHER_REASONS
from fluffle_cli.dashboard.table import PAGE_ROWS, Wanted
from fluffle_cli.snapshot import snapshot_of

SCRIPT = "<script>alert(1)</script>"


def test_what_is_read_is_shown_as_status_shows_it() -> None:
    record = replace(
        a_record(7, w1=Contributor(3, 30, 6, 3.0, 1, NOW - 5), w2=Contributor(1, 10, 0, 1.0)),
        evaluation=an_evaluation(6, {"accuracy": 0.9}),
        best=an_evaluation(5, {"accuracy": 0.95}),
        best_by="accuracy:max",
        rejected=2,
    )
    state = a_state()

    state.read(record)

    expected = snapshot_of(record, QUEUES, federation="digits", now=NOW).as_json()
    assert expected["findings"]
    workers = expected.pop("workers")
    assert state.picture(NOW)["status"] == expected
    assert isinstance(workers, dict)
    for row in rows_of(state.page(Wanted(), NOW)):
        facts = {key: value for key, value in workers[row["name"]].items() if key in row}
        assert facts.items() <= row.items()
        assert len(facts) == 7


def test_what_was_told_since_counts_when_it_is_committed_and_once() -> None:
    state = a_state()
    state.read(a_record(1, w1=Contributor(1, 10, 0, 1.0)))

    told(state, an_applied("w1", 2, staleness=1), an_applied("w2"))
    before = updates_of(state)
    told(state, Evaluated("e", 1, {"accuracy": 0.5}), a_commit(2, 3, best=1))
    after = updates_of(state)
    state.read(a_record(2, w1=Contributor(2, 20, 1, 2.0), w2=Contributor(1, 10, 0, 1.0)))

    assert before == {"w1": 1}
    assert after == updates_of(state) == {"w1": 2, "w2": 1}


def test_an_evaluation_is_shown_with_the_version_that_has_it() -> None:
    state = a_state()
    state.read(a_record(1))
    told(state, Evaluated("e", 1, {"accuracy": 0.5}))
    before = state.snapshot(NOW).evaluation

    told(state, a_commit(2, 0, best=1))

    seen = state.snapshot(NOW)
    assert before is None
    assert seen.evaluation == seen.best
    assert seen.best is not None
    assert seen.best.metrics == {"accuracy": 0.5}


def test_what_is_told_of_a_version_that_was_read_already_does_not_count_again() -> None:
    state = a_state()
    state.read(a_record(2, w1=Contributor(2, 20, 0, 2.0)))

    told(state, an_applied("w1", 1), a_commit(1, 1), an_applied("w1", 2), a_commit(2, 2))
    told(state, an_applied("w1", 3), a_commit(3, 3))

    assert updates_of(state) == {"w1": 3}


def test_what_a_dead_leader_had_not_committed_is_forgotten() -> None:
    state = a_state()
    state.read(a_record(1, w1=Contributor(1, 10, 0, 1.0)))
    told(state, an_applied("w1", 2))

    told(state, TookOver(2, 1), an_applied("w1", 2), a_commit(2, 2, term=2), name="second")

    assert updates_of(state) == {"w1": 2}
    assert state.picture(NOW)["leader"] == "second"


def test_a_leader_that_has_lost_the_lead_changes_nothing() -> None:
    state = a_state()
    state.read(replace(a_record(5), term=3, terms=(Rank(1, 0), Rank(3, 4))))

    told(state, a_commit(6, 0, term=2))

    assert state.known.record is not None
    assert state.known.record.rank == Rank(3, 5)


def test_terms_stand_on_the_time_axis_with_who_leads_and_who_stands_by() -> None:
    state = a_state()
    told(state, Joined(), name="first")
    told(state, Joined(), name="second")
    told(state, TookOver(1, 0), name="first")
    state.read(a_record(0))
    standbys = state.picture(NOW)["standbys"]

    told(state, a_commit(1, 0), name="first")
    told(state, TookOver(2, 1), name="second")

    picture = state.picture(NOW)
    assert standbys == ["second"]
    assert picture["standbys"] == []  # who died tells nothing
    assert picture["terms"] == [
        {"term": 1, "version": 0, "leader": "first", "at": NOW, "seconds": 0.0},
        {"term": 2, "version": 1, "leader": "second", "at": NOW, "seconds": 1.0},
    ]
    told(state, Joined(), name="first")
    assert state.picture(NOW)["standbys"] == ["first"]


def test_who_comes_after_the_end_and_refuses_what_is_late_was_not_the_last_leader() -> None:
    state = a_state()
    told(state, TookOver(1, 0), name="first")
    state.read(replace(a_record(3), finished="enough"))

    told(state, Rejected("w1/r/1", "w1", AFTER_THE_END, "too late"), name="third")

    assert state.picture(NOW)["leader"] == "first"


def test_a_leader_that_began_before_anybody_listened_is_known_from_rabbitmq() -> None:
    state = a_state()
    state.read(a_record(0))

    state.note_aggregators({"first": True, "second": False})

    picture = state.picture(NOW)
    assert (picture["leader"], picture["standbys"]) == ("first", ["second"])
    assert picture["terms"] == [{"term": 1, "version": 0, "leader": "first", "at": None, "seconds": 0.0}]


def test_what_a_new_leader_tells_counts_more_than_what_rabbitmq_said_seconds_ago() -> None:
    state = a_state()
    told(state, TookOver(1, 0), name="first")
    told(state, TookOver(2, 1), name="second")

    state.note_aggregators({"first": True, "second": False})

    assert state.picture(NOW)["leader"] == "second"
    state.note_aggregators(None)
    assert state.picture(NOW)["leader"] == "second"


def test_after_the_end_refusals_are_counted_apart_and_nobody_is_at_work_any_more() -> None:
    state = a_state()
    for name in ("w1", "w2"):
        told(state, Started(f"{name}/r/1", 1), role="worker", name=name)
    told(state, Left("the federation has finished"), role="worker", name="w2")
    state.read(
        replace(a_record(3, w1=Contributor(3, 10, 0, 3.0, 1, NOW - 900)), closing="enough", rejected=1)
    )
    told(state, a_commit(4, 3, finished="enough", rejected=1))

    told(state, Rejected("w1/r/9", "w1", "finished", "the federation has finished"), a_commit(4, 3))

    picture = state.picture(NOW)
    assert (picture["after_the_end"], picture["reasons"], picture["rejections"]) == (1, {}, [])
    assert state.snapshot(NOW).rejected == 1
    assert [(row["state"], row["rejected"]) for row in rows_of(state.page(Wanted(), NOW))] == [
        ("", 1),
        ("left: the federation has finished", 0),
    ]
    assert says_of(state) == []


def test_what_is_best_and_by_what_comes_with_the_commit() -> None:
    state = a_state()
    state.read(a_record(1))

    told(state, Evaluated("e", 1, {"accuracy": 0.5}), a_commit(2, 0, best=1))

    picture = state.picture(NOW)
    assert (picture["metric"], picture["best"]) == ("accuracy", [1, 0.0])
    status = picture["status"]
    assert isinstance(status, dict)
    assert (status["best_by"], status["training_s"]) == ("accuracy:max", 2.0)


def test_the_past_is_in_the_curves_and_in_the_histogram() -> None:
    state = a_state()
    folded = Folded(UpdateId("w1", "r", 1), 0, 5, 0.25, 0.0, NOW - 1)
    for number in range(3):
        version = replace(
            a_record(number),
            evaluation=an_evaluation(number, {"loss": 1.0, "accuracy": 0.5}),
            elapsed_s=5.0 + number * 2.0,
            started_s=5.0,
        )
        state.remember(replace(version, folded=(folded,)))

    picture = state.picture(NOW)

    assert picture["metrics"] == ["accuracy", "loss"]
    assert picture["evaluations"] == [[0, 0.0, 0.5, 1.0], [1, 2.0, 0.5, 1.0], [2, 4.0, 0.5, 1.0]]
    assert picture["staleness"] == [
        *[(words, 0, None) for words in ("0", "1", "2", "3")],
        ("4 to 5", 3, 0.25),
    ]


def test_the_rate_and_the_curves_of_activity_are_what_was_told() -> None:
    state = a_state()
    for second in range(1, 5):
        told(state, *[an_applied(sequence=each) for each in range(10)], a_commit(second, 0))
        state.look(QUEUES, NOW + second)
    state.read(a_record(4))

    picture = state.picture(NOW + 4)

    assert state.snapshot(NOW + 4).updates_per_s == 10.0
    assert picture["activity"] == [[NOW, 0.0, 3, None], *[[NOW + each, 10.0, 3, 0.1] for each in range(1, 5)]]
    assert (picture["sent_bytes"], picture["plain_bytes"]) == (4_000, 16_000)


def test_a_day_of_two_thousand_workers_takes_no_more_room_than_an_hour() -> None:
    state = a_state()
    state.read(a_record(0))
    for second in range(3_000):
        told(
            state, Evaluated("e", second, {f"metric {second}": 1.0, "accuracy": 0.5}), a_commit(second + 1, 0)
        )
        told(state, TookOver(second + 2, second), Rejected("", SCRIPT, f"reason {second}", "x" * 500))
        state.look(QUEUES, NOW + 30 * second)
    for number in range(2_000):
        told(state, Joined(), role="worker", name=f"w{number}")

    picture = state.picture(NOW)

    assert len(json.dumps(picture)) < 150_000
    assert len(rows_of(state.page(Wanted(), NOW))) == PAGE_ROWS
    reasons, rejections = picture["reasons"], picture["rejections"]
    assert isinstance(reasons, dict)
    assert isinstance(rejections, list)
    assert len(reasons) <= MOST_REASONS + 1
    assert reasons[OTHER_REASONS] == 3_000 - MOST_REASONS
    assert len(rejections) == MOST_REJECTIONS
    assert rejections[0]["worker"] == SCRIPT


@given(st.lists(st.integers(0, 3), max_size=60))
def test_whatever_is_lost_or_late_the_next_record_puts_right(story: list[int]) -> None:
    state = a_state()
    version, sequence = 0, 0
    truth = Contributor()
    state.read(a_record(0))
    for step in story:
        if step == 0:
            sequence += 1
            truth = replace(truth, updates=truth.updates + 1)
            told(state, an_applied("w1", sequence))
        elif step == 1:
            truth = replace(truth, updates=truth.updates + 1)  # of which nothing is heard
        else:
            version += 1
            if step == 2:
                told(state, a_commit(version, truth.updates))
    version += 1
    told(state, a_commit(version, truth.updates))

    state.read(a_record(version, w1=truth))

    assert updates_of(state) == {"w1": truth.updates}
    assert state.known.is_behind is False
