"""The table of workers on the live page, and what is said of them."""

import math
from dataclasses import replace
from unittest.mock import ANY

from federation_states import (
    NOW,
    a_commit,
    a_record,
    a_state,
    page,
    picture,
    read,
    rows_of,
    says_of,
    told,
)

from fluffle.events import (
    Aborted,
    Joined,
    Left,
    Published,
    Rejected,
    Started,
    TookOver,
    Trained,
    TurnedAway,
)
from fluffle.record import Contributor, Folded
from fluffle.update import UpdateId
from fluffle_cli.plain_json import as_text
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.state import MOST_PARTS, RIVALS_OVER_S


def test_a_worker_tells_what_it_is_about_and_nothing_else() -> None:
    state = a_state()
    told(state, Joined(), Started(4), role="worker", name="w1")
    first = rows_of(page(state))
    told(state, Aborted(4, 9, 1.0), role="worker", name="w1")
    aborted = rows_of(page(state))
    told(state, Trained("w1/r/1", 2.5), Published(9), role="worker", name="w1")
    told(state, TookOver(9, 9), a_commit(9), Rejected("", "w2", "x", "y"), role="worker", name="w1")
    told(state, Published(9), role="worker", name="w1")
    second = rows_of(page(state, now=NOW + 3))
    told(state, Left("it was asked to stop"), role="worker", name="w1")

    assert first[0]["state"] == "training: from version 4"
    assert (aborted[0]["state"], aborted[0]["round_s"]) == ("aborted: 9 versions late", None)
    assert (second[0]["state"], second[0]["round_s"], second[0]["seen_s"]) == ("published", 2.5, 3.0)
    assert state.view(NOW).newest is None
    assert picture(state)["reasons"] == {}
    assert picture(state)["leader"] == ""


def test_each_worker_has_its_losses_in_the_table_and_who_has_none_comes_last() -> None:
    state = a_state()
    folded = Folded(UpdateId("w1", "r", 1), 0, 0, 1.0, 0, NOW - 1, 0.75)
    read(state, replace(a_record(1), folded=(folded,)))
    for name, loss in (("w1", 0.5), ("w1", 0.25), ("w2", 0.125), ("w2", math.nan), ("w3", None)):
        told(state, Trained(f"{name}/r/2", 2.5, loss), role="worker", name=name)

    rows = rows_of(page(state, sort="loss"))

    assert [(row["name"], row["loss"]) for row in rows] == [("w1", 0.25), ("w2", ANY), ("w3", None)]
    assert [row["losses"] for row in rows] == [[0.75, 0.5, 0.25], [0.125, ANY], []]
    assert '"losses":[0.125,"NaN"]' in as_text(rows[1], is_short=True)
    assert "The training loss of w2 is not finite." in says_of(state)


def test_two_places_that_send_under_one_name_are_said_from_what_they_tell() -> None:
    state = a_state()
    read(state, a_record(1))
    for sequence, run in enumerate(["here", "there", "here", "there"]):
        told(state, Trained(f"w1/{run}/{sequence}", 2.5), role="worker", name="w1")

    assert "Two processes train as w1: their rounds take turns." in says_of(state)


def test_a_worker_that_was_only_refused_says_why_in_the_table() -> None:
    state = a_state()
    read(state, a_record(3, w1=Contributor(rejected=2, refusal="bad-layout: other shapes")))

    [row] = rows_of(page(state, search="OTHER SHAPES"))

    assert row["state"] == "only refused: bad-layout: other shapes"


def test_only_a_worker_that_gave_updates_and_has_not_left_can_be_silent() -> None:
    state = a_state()
    given = Contributor(3, 10, 0, 3.0, 0, NOW - 900)
    read(state, a_record(3, w1=given, w2=given, w3=given, w4=Contributor(rejected=1)))
    told(state, Joined(), role="worker", name="w1")
    told(state, Left("it was asked to stop"), role="worker", name="w2")

    found = [each.says for each in findings_of(state.view(NOW + 1)) if each.kind == "silent"]

    assert found == ["w3 has been silent for 15 min."]
    assert [state.view(NOW + 1).workers[name].seen_s for name in ("w1", "w3", "w4")] == [1.0, 901.0, None]


def test_a_process_that_wanted_the_name_of_a_worker_at_work_is_shown_for_a_while() -> None:
    state = a_state()
    read(state, a_record(3))
    for name in ("w1", "w2"):
        told(state, TurnedAway("process 4711 on north, since noon"), role="worker", name=name)
    told(state, Left("it was asked to stop"), role="worker", name="w2")

    found = [each for each in findings_of(state.view(NOW + 1)) if each.kind == "one-name-twice"]
    assert [each.says for each in found] == [
        "Two processes want the name w1: process 4711 on north, since noon, was turned away."
    ]
    assert not state.view(NOW + RIVALS_OVER_S + 1).workers["w1"].rival


def test_more_names_than_a_federation_has_push_out_who_was_silent_for_longest() -> None:
    state = a_state()
    for number in range(MOST_PARTS + 5):
        told(state, Joined(), role="worker", name=f"w{number}")

    assert page(state)["workers"] == MOST_PARTS
    assert page(state, search="w4")["found"] == len(
        [number for number in range(5, MOST_PARTS + 5) if "w4" in f"w{number}"]
    )


def test_workers_are_sorted_and_searched_over_all_pages() -> None:
    state = a_state()
    contributors = {f"w{number:04}": Contributor(number, 10, 0, 1.0) for number in range(2_000)}
    read(state, a_record(1, **contributors))
    told(state, Started(0), role="worker", name="w0003")

    most = page(state, sort="updates", descending=True)
    last = page(state, page=10_000)
    training = page(state, search="TRAINING")
    by_round = page(state, sort="round_s", descending=True)

    def names(page: dict[str, object]) -> list[str]:
        return [row["name"] for row in rows_of(page)]

    assert names(most)[:2] == ["w1999", "w1998"]
    assert (last["page"], last["pages"], names(last)[-1]) == (39, 40, "w1999")
    assert names(training) == ["w0003"]
    assert names(by_round)[0] == "w0000"  # nobody's is known: by name then
