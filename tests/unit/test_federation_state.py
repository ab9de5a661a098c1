"""What is known of a federation from records and events: right, and of bounded size."""

import json
from dataclasses import replace
from math import inf

import pytest
from builders import an_evaluation
from federation_states import (
    NOW,
    QUEUES,
    a_commit,
    a_record,
    a_state,
    an_applied,
    page,
    picture,
    read,
    rows_of,
    says_of,
    told,
)

from fluffle.events import (
    AFTER_THE_END,
    Contradicted,
    Evaluated,
    Joined,
    Left,
    Measured,
    Opened,
    Rejected,
    Started,
    TookOver,
    Unmasked,
    Withheld,
)
from fluffle.record import Contributor, Folded, Rank
from fluffle.update import UpdateId
from fluffle_cli.dashboard.table import PAGE_ROWS
from fluffle_cli.watching.as_json import with_workers
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.state import MOST_REASONS, MOST_REFUSALS, OTHER_REASONS, FederationState

SCRIPT = "<script>alert(1)</script>"


def test_status_and_the_page_show_the_same_workers() -> None:
    state = a_state()
    read(state, a_record(7, w1=Contributor(3, 30, 6, 3.0, 1, NOW - 5), w2=Contributor(1, 10, 0, 1.0)))

    workers = with_workers(state.view(NOW))["workers"]

    assert isinstance(workers, dict)
    for row in rows_of(page(state)):
        assert {name: workers[row["name"]][name] for name in row if name != "losses"}.items() <= row.items()


def test_a_commit_or_a_takeover_announces_a_newer_record() -> None:
    state = a_state()
    read(state, a_record(1))
    was_behind = state.is_behind
    told(state, an_applied())
    is_behind_after_an_update = state.is_behind
    told(state, a_commit(2))

    assert (was_behind, is_behind_after_an_update, state.is_behind) == (False, False, True)
    read(state, a_record(2))
    assert not state.is_behind
    told(state, TookOver(2, 2), name="second")
    assert state.is_behind


def test_a_version_of_an_aggregator_that_has_lost_the_lead_changes_nothing() -> None:
    state = a_state()
    read(state, replace(a_record(5), term=3, terms=(Rank(1, 0), Rank(3, 4))))

    read(state, replace(a_record(6), term=2))

    newest = state.view(NOW).newest
    assert newest is not None
    assert newest.rank == Rank(3, 5)


def test_after_a_reset_the_evaluations_and_terms_of_the_new_federation_are_shown() -> None:
    state = a_state()
    old = replace(a_record(90), evaluation=an_evaluation(89, {"loss": 0.1}))
    read(state, old)
    told(state, an_applied(staleness=3))
    told(state, TookOver(7, 0), name="second")

    first = replace(a_record(0), term=7, terms=(Rank(7, 0),))
    read(state, first, replace(first, version=2, evaluation=an_evaluation(1, {"loss": 0.9})))

    shown = picture(state)
    assert [row[0] for row in shown["evaluations"]] == [1]
    assert [(one["term"], one["leader"]) for one in shown["terms"]] == [(7, "second")]
    assert shown["staleness"] == []


def test_an_evaluation_that_is_newer_than_the_record_is_shown_and_may_be_the_best() -> None:
    state = a_state()
    recorded, best = an_evaluation(3, {"accuracy": 0.7}), an_evaluation(2, {"accuracy": 0.8})
    read(state, replace(a_record(4), evaluation=recorded, best=best, best_by="accuracy:max"))

    told(state, a_commit(5), Evaluated(5, {"accuracy": 0.6}))
    worse = picture(state)
    told(state, a_commit(6), Evaluated(6, {"accuracy": 0.9}), a_commit(7), Evaluated(7, {"accuracy": 0.85}))
    better = picture(state)

    of_an_event = {"federation": "digits", "evaluator": None, "evaluate_s": None}
    assert worse["evaluation"] == of_an_event | {"version": 5, "seconds": 5.0, "metrics": {"accuracy": 0.6}}
    assert (worse["best"]["version"], worse["best"]["evaluator"]) == (2, "e1")
    assert better["evaluation"] == of_an_event | {
        "version": 7,
        "seconds": 7.0,
        "metrics": {"accuracy": 0.85},
    }
    assert better["best"] == of_an_event | {"version": 6, "seconds": 6.0, "metrics": {"accuracy": 0.9}}
    read(state, replace(a_record(8), evaluation=an_evaluation(7, {"accuracy": 0.85})))
    assert picture(state)["evaluation"]["evaluator"] == "e1"


def test_evaluations_of_versions_after_a_restored_one_are_forgotten() -> None:
    state = a_state()
    read(state, replace(a_record(4), evaluation=an_evaluation(3, {"loss": 0.5})))
    read(state, replace(a_record(90), evaluation=an_evaluation(89, {"loss": 0.1})))

    restored = replace(a_record(40), term=1001, terms=(Rank(1, 0), Rank(1001, 40)))
    read(state, replace(restored, evaluation=an_evaluation(39, {"loss": 0.2})))

    shown = picture(state)
    assert shown["evaluation"]["version"] == 39
    assert [row[0] for row in shown["evaluations"]] == [3, 39]


def test_each_term_has_its_leader_and_start_and_the_standbys_are_known() -> None:
    state = a_state()
    told(state, Joined(), name="first")
    told(state, Joined(), name="second")
    told(state, TookOver(1, 0), name="first")
    read(state, a_record(0))
    parts, standbys = state.view(NOW).parts, picture(state)["standbys"]

    told(state, a_commit(1), name="first")
    told(state, TookOver(2, 1), name="second")

    shown = picture(state)
    assert parts == {"second": "standing by", "first": "leading"}
    assert standbys == ["second"]
    assert shown["leader"] == "second"
    assert shown["standbys"] == []  # a leader that died says nothing
    assert shown["terms"] == [
        {"term": 1, "version": 0, "leader": "first", "at": NOW, "seconds": 0.0},
        {"term": 2, "version": 1, "leader": "second", "at": NOW, "seconds": 1.0},
    ]
    told(state, Joined(), name="first")
    assert picture(state)["standbys"] == ["first"]


def test_an_aggregator_that_refuses_a_late_message_after_the_end_was_not_the_last_leader() -> None:
    state = a_state()
    told(state, TookOver(1, 0), name="first")
    read(state, replace(a_record(3), finished="enough"))

    told(state, Rejected("w1/r/1", "w1", AFTER_THE_END, "too late"), name="third")

    assert picture(state)["leader"] == "first"


def test_a_leader_that_began_before_anybody_listened_is_known_from_rabbitmq() -> None:
    state = a_state()
    read(state, a_record(0))

    state.note_aggregators({"first": True, "second": False})

    shown = picture(state)
    assert (shown["leader"], shown["standbys"]) == ("first", ["second"])
    assert shown["terms"] == [{"term": 1, "version": 0, "leader": "first", "at": None, "seconds": 0.0}]


def test_what_a_new_leader_says_counts_more_than_what_rabbitmq_said_seconds_ago() -> None:
    state = a_state()
    told(state, TookOver(1, 0), name="first")
    told(state, TookOver(2, 1), name="second")

    state.note_aggregators({"first": True, "second": False})

    assert picture(state)["leader"] == "second"
    state.note_aggregators(None)
    assert picture(state)["leader"] == "second"


def test_refusals_after_the_end_are_counted_separately_and_no_worker_has_a_state() -> None:
    state = a_state()
    for name in ("w1", "w2"):
        told(state, Started(1), role="worker", name=name)
    told(state, Left("the federation has finished"), role="worker", name="w2")
    given = Contributor(3, 10, 0, 3.0, 1, NOW - 900)
    read(state, replace(a_record(4, w1=given), finished="enough", rejected=1))

    told(state, Rejected("w1/r/9", "w1", "finished", "the federation has finished"), a_commit(4))

    shown = picture(state)
    assert (shown["after_the_end"], shown["reasons"], shown["refusals"]) == (1, {}, [])
    assert shown["rejected"] == 1
    assert [(row["state"], row["rejected"]) for row in rows_of(page(state))] == [
        ("", 1),
        ("left: the federation has finished", 0),
    ]
    assert says_of(state) == []


def test_records_of_the_past_are_in_the_curves_and_in_the_histogram() -> None:
    state = a_state()
    folded = Folded(UpdateId("w1", "r", 1), 0, 5, 0.25, 0.0, NOW - 1)
    for number in range(3):
        version = replace(
            a_record(number),
            evaluation=an_evaluation(number, {"loss": 1.0, "accuracy": 0.5}),
            elapsed_s=5.0 + number * 2.0,
            started_s=5.0,
        )
        read(state, replace(version, folded=(folded,)))

    shown = picture(state)

    assert shown["metrics"] == ["accuracy", "loss"]
    assert shown["evaluations"] == [[0, 0.0, 0.5, 1.0], [1, 2.0, 0.5, 1.0], [2, 4.0, 0.5, 1.0]]
    assert shown["staleness"] == [
        *[(words, 0, None) for words in ("0", "1", "2", "3")],
        ("4 to 5", 3, 0.25),
    ]


@pytest.mark.parametrize(("listens_since", "expected"), [(NOW, 1), (inf, 2)])
def test_an_update_counts_once_whether_it_is_known_from_an_event_a_record_or_both(
    listens_since: float, expected: int
) -> None:
    state = FederationState("digits", NOW)
    state.listen_from(listens_since)
    updates = [Folded(UpdateId("w1", "r1", number), 0, 0, 1.0, 0.0, NOW + number, 0.5) for number in (-1, 1)]
    # An event says what was received while somebody listened.
    if listens_since == NOW:
        told(state, an_applied())
        expected += 1

    record = replace(a_record(1), folded=tuple(updates))
    read(state, record, record)

    assert picture(state)["staleness"] == [("0", expected, 1.0)]


def test_activity_counts_events_of_the_leader_and_the_rate_counts_records() -> None:
    state = a_state()
    for second in range(1, 5):
        told(state, *[an_applied() for _ in range(10)], a_commit(second))
        read(state, a_record(second, w1=Contributor(10 * second, 10, 0, 1.0)))
        state.look(QUEUES, NOW + second)

    shown = picture(state, NOW + 4)

    assert shown["updates_per_s"] == 10.0
    assert shown["activity"] == [[NOW, 0.0, 3, None], *[[NOW + each, 10.0, 3, 0.1] for each in range(1, 5)]]
    assert (shown["sent_bytes"], shown["plain_bytes"]) == (4_000, 16_000)


def test_the_state_of_an_evaluator_names_the_version_that_it_evaluated_last() -> None:
    state = a_state()

    told(state, Joined(), Measured(3, 0.5), role="evaluator", name="e1")

    assert state.view(NOW).parts == {"e1": "evaluated: version 3"}


def test_the_state_of_a_helper_says_what_it_opened_last_and_what_it_refused() -> None:
    state = a_state()

    told(state, Joined(), Opened(3, 1, 0.125), role="helper", name="helper-1")
    told(state, Withheld(3, 1, "too-few-workers", "2 of 3"), role="helper", name="helper-2")

    assert state.view(NOW).helpers == {
        "helper-1": "opened: version 3 in 0.12 s",
        "helper-2": "refused: version 3, too-few-workers",
    }
    assert picture(state)["helpers"] == state.view(NOW).helpers
    assert state.view(NOW).parts == {}


def test_helpers_that_contradict_each_other_are_found_and_stay_known() -> None:
    state = a_state()
    read(state, a_record(2))

    told(state, Contradicted(3, "helper-2"), Unmasked(3, 0.1, "helper-1, helper-3"))

    [found] = [each for each in findings_of(state.view(NOW)) if each.kind == "contradicting"]
    assert found.says == "Helpers answered otherwise than others: helper-2."


def test_a_program_that_starts_processes_can_set_their_states() -> None:
    state = a_state()
    state.note_process("worker", "w1", "starting")
    starting = state.view(NOW).workers["w1"].state
    told(state, Joined(), role="worker", name="w1")
    connected = state.view(NOW).workers["w1"].state
    state.note_process("worker", "w1", "died")

    assert (starting, connected, state.view(NOW).workers["w1"].state) == ("starting", "connected", "died")


def test_a_day_of_two_thousand_workers_takes_no_more_memory_than_an_hour() -> None:
    state = a_state()
    read(state, a_record(0))
    for second in range(3_000):
        told(state, Evaluated(second, {f"metric {second}": 1.0, "accuracy": 0.5}), a_commit(second + 1))
        told(state, TookOver(second + 2, second), Rejected("", SCRIPT, f"reason {second}", "x" * 500))
        state.look(QUEUES, NOW + 30 * second)
    for number in range(2_000):
        told(state, Joined(), role="worker", name=f"w{number}")

    shown = picture(state)

    assert len(json.dumps(shown)) < 150_000
    assert len(rows_of(page(state))) == PAGE_ROWS
    reasons, refusals = shown["reasons"], shown["refusals"]
    assert len(reasons) <= MOST_REASONS + 1
    assert reasons[OTHER_REASONS] == 3_000 - MOST_REASONS
    assert len(refusals) == MOST_REFUSALS
    assert refusals[0]["name"] == SCRIPT
