"""What the live page shows of what was told and what was read: right, and of bounded size."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from builders import a_version, an_evaluation
from hypothesis import given
from hypothesis import strategies as st

from fluffle.events import (
    Applied,
    Committed,
    Evaluated,
    Event,
    Happened,
    Joined,
    Left,
    Published,
    Rejected,
    Report,
    Role,
    Started,
    TookOver,
    Trained,
)
from fluffle.record import Contributor, Folded, ModelVersion, Rank
from fluffle.update import UpdateId
from fluffle_cli.dashboard.live import MOST_PARTS
from fluffle_cli.dashboard.series import MOST_POINTS, Series
from fluffle_cli.dashboard.state import MOST_REASONS, MOST_REJECTIONS, OTHER_REASONS, FederationState
from fluffle_cli.dashboard.table import PAGE_ROWS, Wanted
from fluffle_cli.snapshot import QueueStates, snapshot_of

NOW = 1_000.0
QUEUES = QueueStates(updates_waiting=3, aggregator_active=True, rejected_waiting=1)
SCRIPT = "<script>alert(1)</script>"


def a_state() -> FederationState:
    state = FederationState("digits", NOW)
    state.look(QUEUES, NOW)
    return state


def told(state: FederationState, *events: Event, role: Role = "aggregator", name: str = "first") -> None:
    state.hear(Report("digits", role, name, tuple(Happened(NOW, event) for event in events)), NOW)


def an_applied(worker: str = "w1", sequence: int = 1, *, staleness: int = 0, weight: float = 1.0) -> Applied:
    return Applied(f"{worker}/r1/{sequence}", 0, staleness, weight, 10, 100, 400)


def a_commit(version: int, updates: int, *, term: int = 1, finished: str = "", best: int = -1) -> Committed:
    return Committed(version, term, updates, 0, 0, best, float(version), 0.1, finished)


def a_record(number: int, **contributors: Contributor) -> ModelVersion:
    return replace(a_version(number), contributors=contributors)


def rows_of(page: dict[str, object]) -> list[dict[str, Any]]:
    rows = page["rows"]
    assert isinstance(rows, list)
    return rows


def updates_of(state: FederationState) -> dict[str, int]:
    return {row["name"]: row["updates"] for row in rows_of(state.page(Wanted(), NOW))}


def test_what_is_read_is_shown_as_status_shows_it() -> None:
    record = replace(
        a_record(7, w1=Contributor(3, 30, 6, 3.0, 1, NOW - 5), w2=Contributor(1, 10, 0, 1.0)),
        evaluation=an_evaluation(6, {"accuracy": 0.9}),
        best=an_evaluation(5, {"accuracy": 0.95}),
        rejected=2,
    )
    state = a_state()

    state.read(record)

    expected = snapshot_of(record, QUEUES, federation="digits", now=NOW).as_json()
    workers = expected.pop("workers")
    assert state.picture(NOW)["status"] == expected
    assert isinstance(workers, dict)
    for row in rows_of(state.page(Wanted(), NOW)):
        facts = {key: value for key, value in workers[row["name"]].items() if key in row}
        assert facts.items() <= row.items()
        assert len(facts) == 5


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
        {"term": 1, "version": 0, "leader": "first", "at": NOW, "elapsed_s": 0.0},
        {"term": 2, "version": 1, "leader": "second", "at": NOW, "elapsed_s": 1.0},
    ]
    told(state, Joined(), name="first")
    assert state.picture(NOW)["standbys"] == ["first"]


def test_a_leader_that_began_before_anybody_listened_is_known_from_rabbitmq() -> None:
    state = a_state()
    state.read(a_record(0))

    state.note_aggregators({"first": True, "second": False})

    picture = state.picture(NOW)
    assert (picture["leader"], picture["standbys"]) == ("first", ["second"])
    assert picture["terms"] == [{"term": 1, "version": 0, "leader": "first", "at": None, "elapsed_s": 0.0}]


def test_what_a_new_leader_tells_counts_more_than_what_rabbitmq_said_seconds_ago() -> None:
    state = a_state()
    told(state, TookOver(1, 0), name="first")
    told(state, TookOver(2, 1), name="second")

    state.note_aggregators({"first": True, "second": False})

    assert state.picture(NOW)["leader"] == "second"
    state.note_aggregators(None)
    assert state.picture(NOW)["leader"] == "second"


def test_a_worker_tells_what_it_is_about_and_nothing_else() -> None:
    state = a_state()
    told(state, Joined(), Started("w1/r/1", 4), role="worker", name="w1")
    first = rows_of(state.page(Wanted(), NOW))
    told(state, Trained("w1/r/1", 4, 2.5), Published("w1/r/1", 9), role="worker", name="w1")
    told(state, TookOver(9, 9), a_commit(9, 9), Rejected("", "w2", "x", "y"), role="worker", name="w1")
    second = rows_of(state.page(Wanted(), NOW + 3))
    told(state, Left("it was asked to stop"), role="worker", name="w1")

    assert first[0]["state"] == "training from version 4"
    assert (second[0]["state"], second[0]["round_s"], second[0]["seen_s"]) == ("has published", 2.5, 3.0)
    assert state.known.record is None
    assert state.picture(NOW)["reasons"] == {}
    assert state.picture(NOW)["leader"] == ""


def test_the_past_is_in_the_curves_and_in_the_histogram() -> None:
    state = a_state()
    folded = Folded(UpdateId("w1", "r", 1), 0, 5, 0.25, 0.0, NOW - 1)
    for number in range(3):
        version = replace(
            a_record(number),
            evaluation=an_evaluation(number, {"loss": 1.0, "accuracy": 0.5}),
            elapsed_s=number * 2.0,
        )
        state.remember(replace(version, folded=(folded,)))

    picture = state.picture(NOW)

    assert picture["metrics"] == ["accuracy", "loss"]
    assert picture["measured"] == [[0, 0.0, 0.5, 1.0], [1, 2.0, 0.5, 1.0], [2, 4.0, 0.5, 1.0]]
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


def test_more_names_than_a_federation_has_push_out_who_was_silent_for_longest() -> None:
    state = a_state()
    for number in range(MOST_PARTS + 5):
        told(state, Joined(), role="worker", name=f"w{number}")

    assert state.page(Wanted(), NOW)["workers"] == MOST_PARTS
    assert state.page(Wanted(search="w4"), NOW)["found"] == len(
        [number for number in range(5, MOST_PARTS + 5) if "w4" in f"w{number}"]
    )


def test_workers_are_sorted_and_searched_over_all_pages() -> None:
    state = a_state()
    contributors = {f"w{number:04}": Contributor(number, 10, 0, 1.0) for number in range(2_000)}
    state.read(a_record(1, **contributors))
    told(state, Started("w0003/r/1", 0), role="worker", name="w0003")

    most = state.page(Wanted(sort="updates", descending=True), NOW)
    last = state.page(Wanted(page=10_000), NOW)
    training = state.page(Wanted(search="TRAINING"), NOW)
    by_round = state.page(Wanted(sort="round_s", descending=True), NOW)

    def names(page: dict[str, object]) -> list[str]:
        return [row["name"] for row in rows_of(page)]

    assert names(most)[:2] == ["w1999", "w1998"]
    assert (last["page"], last["pages"], names(last)[-1]) == (39, 40, "w1999")
    assert names(training) == ["w0003"]
    assert names(by_round)[0] == "w0000"  # nobody's is known: by name then


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


@given(st.lists(st.integers(-5, 5), max_size=3_000))
def test_a_curve_keeps_its_sum_and_its_bounds(values: list[int]) -> None:
    series: Series[int] = Series(lambda earlier, later: earlier + later, most=8)
    for value in values:
        series.add(value)

    assert sum(series.points()) == sum(values)
    assert len(series.points()) <= min(8, MOST_POINTS)
