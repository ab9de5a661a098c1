"""A helper and a leader, played by the test, on a broker in this process: what is answered, and when."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brokers import A_WHILE_S, SOON_S
from fake_broker import FakeBroker, FakeServer
from helping import Keys, closed, first_close, following

from fluffle.broker import Broker, Listener
from fluffle.errors import ConnectionLost
from fluffle.event_sink import Sinks
from fluffle.events import Event, Opened, Withheld
from fluffle.pieces import Body
from fluffle.secure.closing import (
    CloseRecord,
    NotOpened,
    Opening,
    decode_answer,
    digest_of,
    encode_close,
)
from fluffle.secure.helping import openings
from fluffle.secure.key_files import HelperKey, WorkerPublicKey, read_private, write_public
from fluffle.secure.ledger_file import read_ledger
from fluffle.topology import topology_of
from fluffle_cli.making_keys import sign
from fluffle_helper import loop
from fluffle_helper.loop import Helper, HelperResult
from fluffle_helper.own_files import HelperFiles

TOPOLOGY = topology_of("digits")
Answers = list[Opening | NotOpened]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("POLL_S", 0.02), ("CATCH_UP_S", 0.1), ("WRITE_AGAIN_S", 0.02)):
        monkeypatch.setattr(loop, name, seconds)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def server() -> FakeServer:
    found = FakeServer()
    FakeBroker(found).declare(TOPOLOGY)
    return found


class Heard(Sinks):
    """What a helper has reported."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


class Leader:
    """What a leader does about helpers."""

    def __init__(self, broker: FakeBroker, listener: Listener) -> None:
        self._broker, self._listener = broker, listener

    def close(self, *records: CloseRecord) -> None:
        for record in records:
            self._broker.publish(TOPOLOGY.closes_in.name, "", encode_close(record), {"kind": "close"})

    def answers(self, close: CloseRecord, count: int) -> Answers:
        """Return so many answers, which come soon and are all to this record, and nothing more."""
        found = [self._listener.next_delivery(SOON_S) for _ in range(count)]
        more = self._listener.next_delivery(A_WHILE_S)
        assert more is None, decode_answer(more.body, close)
        assert {each.user for each in found if each} <= {"helper-1"}
        return [decode_answer(each.body, close) for each in found if each]

    def refusal(self, close: CloseRecord) -> NotOpened:
        [found] = self.answers(close, 1)
        assert isinstance(found, NotOpened), found
        return found

    def groups(self, close: CloseRecord, count: int) -> list[int]:
        """Return the groups of so many openings of this record."""
        found = self.answers(close, count)
        assert {each.digest for each in found} == {digest_of(close)}, found
        return [each.group for each in found if isinstance(each, Opening)]


@pytest.fixture
def leader(server: FakeServer) -> Iterator[Leader]:
    broker = FakeBroker(server, user="aggregator")
    with broker.listen(TOPOLOGY.openings_in.name, name="leader") as listener:
        yield Leader(broker, listener)


@contextmanager
def a_helper(
    keys: Keys,
    server: FakeServer,
    *,
    connect: Callable[[], Broker] | None = None,
    events: Heard | None = None,
) -> Iterator[Helper]:
    """Run helper-1 on a thread while the block lasts."""
    helper = Helper(
        name="helper-1",
        topology=TOPOLOGY,
        files=files_of(keys),
        fewest_workers=3,
        event_sink=events or Sinks(),
    )
    thread = threading.Thread(target=lambda: helper.work(connect or (lambda: a_connection(server))))
    thread.start()
    try:
        yield helper
    finally:
        helper.stop.set()
        thread.join(SOON_S)
        assert not thread.is_alive()


def a_connection(server: FakeServer) -> FakeBroker:
    return FakeBroker(server, user="helper-1")


def files_of(keys: Keys) -> HelperFiles:
    return HelperFiles(
        key=keys.key(), registry=keys.registry, operator=keys.operator, federation=keys.federation
    )


def key_of(keys: Keys) -> HelperKey:
    return read_private(keys.key(), HelperKey)


def number_in_ledger(keys: Keys) -> int:
    return read_ledger(keys.ledger(), key_of(keys)).number


def test_a_helper_opens_the_groups_that_it_is_asked_for_and_all_of_its_own_when_asked_again(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    close, events = first_close(), Heard()
    second = replace(following(close), asked=("helper-2", "helper-3", "helper-2"))
    with a_helper(keys, server, events=events) as helper:
        leader.close(close)
        found = leader.answers(close, 2)
        leader.close(second)
        assert leader.answers(second, 0) == []
        assert number_in_ledger(keys) == 2
        leader.close(second)
        assert leader.groups(second, 2) == [0, 1]

    expected = list(openings(close, key_of(keys), keys.signed()))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Opening)
        assert (one.group, one.digest) == (other.group, other.digest)
        assert np.array_equal(np.frombuffer(one.masks, "u4"), np.frombuffer(other.masks, "u4"))
    assert [(each.version, each.number) for each in events.events if isinstance(each, Opened)] == [
        (1, 1),
        (2, 2),
    ]
    assert helper.work(lambda: a_connection(server)) == HelperResult(opened=2, refused=0)


FIRST = first_close()
SECOND = following(FIRST)
REFUSED = {
    "other-epoch": [replace(FIRST, federation="wards", epoch=2)],
    "other-federation": [replace(FIRST, federation="wards")],
    "two-answers": [FIRST, replace(FIRST, updates=tuple(closed(name) for name in ("w1", "w2", "w4")))],
    "missing-record": [following(SECOND)],
    "unknown-worker": [replace(FIRST, updates=(*FIRST.updates, closed("invented")))],
    "opened-before": [FIRST, following(FIRST, closed("w1"), closed("w2", 2), closed("w4"))],
    "stands-there-twice": [replace(FIRST, updates=(*FIRST.updates, closed("w1")))],
    "too-few-workers": [replace(FIRST, updates=FIRST.updates[:2])],
    "more-than-half": [replace(FIRST, updates=(*FIRST.updates, *(closed("w1", at) for at in (2, 3))))],
    "wrong-weight": [replace(FIRST, updates=(*FIRST.updates[:2], closed("w3", factor=8)))],
    "too-new": [replace(FIRST, updates=(*FIRST.updates[:2], closed("w3", base_version=1)))],
}
RULES = {
    "other-federation": "other-epoch",
    "stands-there-twice": "opened-before",
    "more-than-half": "too-few-workers",
    "too-new": "wrong-weight",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_rule_is_refused_with_the_rule_each_time_that_it_comes(
    keys: Keys, server: FakeServer, leader: Leader, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    *before, bad = REFUSED[case]
    rule, events = RULES.get(case, case), Heard()
    with a_helper(keys, server, events=events), caplog.at_level("WARNING"):
        for close in before:
            leader.close(close)
            leader.answers(close, 2)
        leader.close(bad)
        first = leader.refusal(bad)
        leader.close(bad)
        again = leader.refusal(bad)

    assert (first.rule, first.digest, first.helper) == (rule, digest_of(bad), "helper-1")
    assert again == first
    assert "refused to open a sum" in caplog.text
    assert f"'rule': '{rule}'" in caplog.text
    withheld = [each for each in events.events if isinstance(each, Withheld)]
    assert [(each.version, each.rule) for each in withheld] == [(bad.version, rule)] * 2


def test_after_a_refusal_the_next_record_is_opened(keys: Keys, server: FakeServer, leader: Leader) -> None:
    bad = replace(FIRST, updates=FIRST.updates[:2])
    with a_helper(keys, server):
        leader.close(bad)
        refused = leader.refusal(bad)
        leader.close(following(bad))
        assert leader.groups(following(bad), 2) == [0, 1]

    assert (refused.number, refused.last) == (1, digest_of(bad))


def test_of_many_records_at_the_start_the_last_one_alone_is_answered(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    records = [first_close()]
    for _ in range(200):
        records.append(following(records[-1]))
    leader.close(*records)

    with a_helper(keys, server):
        assert leader.groups(records[-1], 2) == [0, 1]
    assert number_in_ledger(keys) == 201
    with a_helper(keys, server):
        assert leader.groups(records[-1], 2) == [0, 1], "and again after a restart: the leader may still wait"


def test_an_answer_that_was_lost_with_the_connection_is_given_again(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    class LostOnce(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            assert number_in_ledger(keys) == 1, "the ledger is on the disk before the answer is sent"
            self.close()
            raise ConnectionLost("it was lost here")

    lives: list[Broker] = [LostOnce(server), a_connection(server)]
    leader.close(FIRST)
    with a_helper(keys, server, connect=lambda: lives.pop(0)):
        assert leader.groups(FIRST, 2) == [0, 1]


def test_where_no_leader_listens_a_helper_goes_on(keys: Keys, server: FakeServer) -> None:
    broker, events = FakeBroker(server), Heard()
    with a_helper(keys, server, events=events):
        for count, close in enumerate((FIRST, SECOND), 1):
            broker.publish(TOPOLOGY.closes_in.name, "", encode_close(close), {})
            wait_for(events, count)
    assert number_in_ledger(keys) == 2


def test_on_a_full_disk_nothing_is_answered_until_there_is_room(
    keys: Keys,
    server: FakeServer,
    leader: Leader,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with a_helper(keys, server):
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", full)
            leader.close(FIRST)
            assert leader.answers(FIRST, 0) == []
            assert number_in_ledger(keys) == 0
        assert leader.groups(FIRST, 2) == [0, 1]

    assert "nothing is opened until the ledger can be written" in caplog.text
    assert "No space left on device" in caplog.text


def test_messages_that_are_no_close_records_and_those_of_earlier_epochs_are_passed_over(
    keys: Keys, server: FakeServer, leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    keys.rotate()
    keys.hand_over("helper-1", 2)
    broker = FakeBroker(server)
    with a_helper(keys, server):
        broker.publish(TOPOLOGY.closes_in.name, "", b"rubbish", {})
        leader.close(FIRST)
        assert leader.answers(FIRST, 0) == []
        newer = replace(FIRST, epoch=2)
        leader.close(newer)
        assert leader.groups(newer, 2) == [0, 1]

    assert "passed over a message that is no close record" in caplog.text
    assert "refused to open" not in caplog.text


def test_a_worker_that_is_revoked_meanwhile_is_opened_no_more_not_even_again(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    with a_helper(keys, server):
        leader.close(FIRST)
        leader.answers(FIRST, 2)
        keys.sign(revoke=["w3"])
        assert leader.refusal(FIRST).rule == "unknown-worker"
        leader.close(SECOND)
        refused = leader.refusal(SECOND)
        third = following(SECOND, *(closed(name, 3, 2) for name in ("w1", "w2", "w4")))
        leader.close(third)
        assert leader.groups(third, 2) == [0, 1]

    assert (refused.rule, refused.detail) == ("unknown-worker", "the worker w3 is revoked")


def test_with_a_registry_that_the_operator_has_not_signed_nothing_is_opened_and_no_record_is_lost(
    keys: Keys, server: FakeServer, leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    good = keys.registry.read_text()
    with a_helper(keys, server):
        keys.registry.write_text(good.replace('"colluding": 1', '"colluding": 2'))
        leader.close(FIRST, SECOND)
        assert leader.answers(SECOND, 0) == []
        keys.registry.write_text(good)
        assert leader.groups(SECOND, 2) == [0, 1]

    assert "this helper opens nothing until its files are right" in caplog.text
    assert number_in_ledger(keys) == 2


def test_rotated_keys_are_used_as_soon_as_they_lie_there_and_the_old_ones_are_gone(
    keys: Keys, server: FakeServer, leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    old = [each.private_key for each in key_of(keys).groups]
    with a_helper(keys, server), caplog.at_level("INFO"):
        leader.close(FIRST)
        leader.answers(FIRST, 2)
        keys.rotate()
        newer = replace(FIRST, epoch=2)
        leader.close(newer)
        assert leader.answers(newer, 0) == [], "its own key is still that of epoch 1"
        keys.hand_over("helper-1", 2)
        assert leader.groups(newer, 2) == [0, 1]

    assert "is of digits, epoch 2, and " in caplog.text
    on_disk = b"".join(path.read_bytes() for path in keys.folder.rglob("helper-1*") if path.is_file())
    for secret in (*old, *(each.private_key for each in key_of(keys).groups)):
        assert secret not in caplog.text
    assert not [secret for secret in old if secret.encode() in on_disk]


def test_a_public_key_with_which_nothing_can_be_agreed_on_is_refused(
    keys: Keys, server: FakeServer, leader: Leader
) -> None:
    path = keys.folder / "w5.pub"
    write_public(path, WorkerPublicKey(federation="digits", name="w5", public_key="00" * 32))
    sign(keys.operator_folder, [path], [])
    keys.send_registry()
    close = replace(FIRST, updates=(*FIRST.updates, closed("w5")))
    with a_helper(keys, server):
        leader.close(close)
        assert leader.refusal(close).rule == "unusable-key"
        leader.close(following(close))
        assert leader.groups(following(close), 2) == [0, 1]


def wait_for(events: Heard, count: int) -> None:
    """Wait until a helper has reported so many sums."""
    pause = threading.Event()
    for _ in range(int(SOON_S / 0.01)):
        if len([each for each in events.events if isinstance(each, Opened)]) >= count:
            return
        pause.wait(0.01)
    raise AssertionError(f"{count} sums were not opened")
