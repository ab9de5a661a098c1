"""`--helpers-compare`: of different close records that an aggregator shows to helpers, none is opened."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brokers import A_WHILE_S, SOON_S
from fake_broker import FakeBroker, FakeServer
from helping import HELPERS, Keys, closed, first_close, following

from fluffle.broker import Delivery, Listener
from fluffle.secure.closing import (
    CloseRecord,
    NotOpened,
    Opening,
    decode_answer,
    digest_of,
    encode_close,
)
from fluffle.secure.committee import Committee
from fluffle.secure.helping import Ledger
from fluffle.topology import Topology, topology_of
from fluffle_helper import loop, others
from fluffle_helper.comparing import (
    MOST_KEPT,
    Comparison,
    SeenClose,
    decode_seen,
    encode_seen,
    needed_to_agree,
)
from fluffle_helper.deciding import Answer, Decision
from fluffle_helper.loop import Helper
from fluffle_helper.own_files import HelperFiles

TOPOLOGY = topology_of("digits")
FIRST = first_close()
OTHER = replace(FIRST, updates=tuple(closed(name) for name in ("w1", "w2", "w4")))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (loop, "POLL_S", 0.02),
        (loop, "CATCH_UP_S", 0.1),
        (others, "LOOK_EVERY_S", 0.01),
        (others, "SAY_AFTER_S", 0.05),
    ):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def server() -> FakeServer:
    found = FakeServer()
    FakeBroker(found).declare(TOPOLOGY)
    return found


def seen(helper: str, close: CloseRecord, **changes: Any) -> SeenClose:
    whole = SeenClose(
        federation="digits", epoch=1, helper=helper, number=close.number, digest=digest_of(close)
    )
    return replace(whole, **changes)


def heard(*said: SeenClose) -> Comparison:
    comparison = Comparison("digits", 1, Committee(HELPERS, 1))
    for each in said:
        comparison.hear(each, each.helper)
    return comparison


LEDGER = Ledger(1, 1, digest_of(FIRST))


@pytest.mark.parametrize(("helpers", "colluding", "needed"), [(3, 1, 3), (4, 1, 3), (5, 1, 4), (5, 2, 4)])
def test_any_two_sets_that_agree_share_a_helper_that_does_not_collude(
    helpers: int, colluding: int, needed: int
) -> None:
    committee = Committee(tuple(f"h{number}" for number in range(helpers)), colluding)

    assert needed_to_agree(committee) == needed
    assert 2 * needed - helpers > colluding


def test_all_three_of_three_helpers_must_have_seen_the_record() -> None:
    two = [seen(name, FIRST) for name in HELPERS[:2]]

    assert heard(*two, seen("helper-3", FIRST)).agree(LEDGER)
    assert not heard(*two).agree(LEDGER)
    assert heard(*two).missing(LEDGER) == ["helper-3"]
    assert heard(*two).others(LEDGER) == []
    assert heard(*two, seen("helper-3", OTHER)).others(LEDGER) == ["helper-3"]


def test_what_is_said_in_the_name_of_another_or_of_another_epoch_counts_for_nothing() -> None:
    comparison = heard(*(seen(name, FIRST) for name in HELPERS[:2]))

    for said, sender in (
        (seen("helper-3", FIRST), "helper-2"),
        (seen("helper-3", FIRST), None),
        (seen("helper-3", FIRST, epoch=2), "helper-3"),
        (seen("helper-3", FIRST, federation="wards"), "helper-3"),
        (seen("helper-4", FIRST), "helper-4"),
    ):
        comparison.hear(said, sender)

    assert not comparison.agree(LEDGER)


def test_however_much_a_helper_says_little_is_kept() -> None:
    comparison = heard(*(seen("helper-1", FIRST, number=number) for number in range(1, 1000)))

    assert len(comparison._said["helper-1"]) == MOST_KEPT
    assert decode_seen(encode_seen(seen("helper-1", FIRST))) == seen("helper-1", FIRST)


class Flood:
    """A listener to whom another helper never stops talking."""

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Listener."""
        return Delivery(0, encode_seen(seen("helper-2", FIRST)), 0, "helper-2", "digests", {})


def test_a_helper_that_never_stops_talking_does_not_keep_another_one_from_its_work(
    keys: Keys, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "LISTEN_FOR_S", 0.05)
    files = HelperFiles(key=keys.key(), registry=keys.registry, operator=keys.operator, federation="digits")
    broker, exchange = FakeBroker(server), TOPOLOGY.digests_in.name
    with broker.listen(exchange, name="helper-1"):
        listening = others.Others(broker, Flood(), exchange, files.read())

        held = listening.compared(Decision(LEDGER, Answer(FIRST, (0,))))

    assert held is None
    assert listening.waits


class Leader:
    """What a leader does about helpers; it may show each of them something else."""

    def __init__(self, broker: FakeBroker, listener: Listener) -> None:
        self._broker, self._listener = broker, listener

    def close(self, *records: CloseRecord, to: Topology = TOPOLOGY) -> None:
        for record in records:
            self._broker.publish(to.closes_in.name, "", encode_close(record), {"kind": "close"})

    def answers(self, close: CloseRecord, count: int) -> list[tuple[str, Opening | NotOpened]]:
        """Return so many answers with the verified sender of each, and nothing more."""
        found = [self._listener.next_delivery(SOON_S) for _ in range(count)]
        assert self._listener.next_delivery(A_WHILE_S) is None
        return [(each.user or "", decode_answer(each.body, close)) for each in found if each]


@pytest.fixture
def leader(server: FakeServer) -> Iterator[Leader]:
    broker = FakeBroker(server, user="aggregator")
    with broker.listen(TOPOLOGY.openings_in.name, name="leader") as listener:
        yield Leader(broker, listener)


@contextmanager
def a_helper(keys: Keys, server: FakeServer, name: str) -> Iterator[None]:
    files = HelperFiles(
        key=keys.key(name), registry=keys.registry, operator=keys.operator, federation="digits"
    )
    helper = Helper(name=name, topology=TOPOLOGY, files=files, fewest_workers=3, compares=True)
    thread = threading.Thread(target=lambda: helper.work(lambda: FakeBroker(server, user=name)))
    thread.start()
    try:
        yield
    finally:
        helper.stop.set()
        thread.join(SOON_S)
        assert not thread.is_alive()


def test_helpers_that_have_seen_the_same_records_open_them(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    with ExitStack() as stack:
        for name in HELPERS:
            stack.enter_context(a_helper(keys, server, name))
        for close in (FIRST, following(FIRST)):
            leader.close(close)
            found = leader.answers(close, 3)
            assert all(isinstance(each, Opening) for _, each in found)
            assert sorted(name for name, _ in found) == ["helper-1", "helper-1", "helper-2"]


def test_while_a_helper_is_missing_nothing_is_opened_and_asked_again_they_do(
    keys: Keys, server: FakeServer, leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    with a_helper(keys, server, "helper-1"), a_helper(keys, server, "helper-2"):
        leader.close(FIRST)
        assert leader.answers(FIRST, 0) == []
        with a_helper(keys, server, "helper-3"):
            leader.close(FIRST)
            # Asked again, each answers for all of its groups.
            found = leader.answers(FIRST, 6)

    assert {name for name, each in found if isinstance(each, Opening)} == set(HELPERS)
    assert "waiting until other helpers have seen a close record" in caplog.text
    assert "'missing': 'helper-3'" in caplog.text


def test_a_record_of_which_a_helper_has_seen_another_one_is_refused(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    third = FakeBroker(server, user="helper-3")
    with a_helper(keys, server, "helper-1"), a_helper(keys, server, "helper-2"):
        leader.close(FIRST)
        assert leader.answers(FIRST, 0) == []
        third.publish(TOPOLOGY.digests_in.name, "", b"rubbish", {})
        third.publish(TOPOLOGY.digests_in.name, "", encode_seen(seen("helper-3", OTHER)), {})
        found = leader.answers(FIRST, 2)

    assert {name for name, _ in found} == {"helper-1", "helper-2"}
    for _, each in found:
        assert isinstance(each, NotOpened)
        assert each.rule == "different-records"
        assert each.detail == "helper-3 has seen another record of number 1"
