"""What the worker keeps: over lost connections, outages, full queues, and from one life to the next."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version, an_update
from fake_broker import FakeBroker, FakeServer
from federation import wait_until
from working import (
    TOPOLOGY,
    CountingTask,
    Scripted,
    a_federation,
    later,
    publish_versions,
    sent_updates,
)

from fluffle import reconnecting
from fluffle.broker import Broker
from fluffle.errors import (
    AccessRefused,
    ConnectionLost,
    FluffleError,
    QueueFull,
    RequestRefused,
    TopologyMissing,
)
from fluffle.model import Layout
from fluffle.pieces import Body
from fluffle.plan import Plan
from fluffle.record import ModelVersion, Rank
from fluffle.topology import MIB
from fluffle_worker.loop import Connect, Worker
from fluffle_worker.spool import open_spool

LAYOUT = Layout.of(CountingTask().initial_weights(0))
IN_ROUNDS = Plan(one_update_per_version=True)


def version(
    number: int, value: float = 0.0, *, term: int = 1, plan: Plan | None = None, finished: str = ""
) -> ModelVersion:
    # A version takes many updates, so that one worker may have many under way.
    plan = plan or Plan(updates_per_version=100)
    record = a_version(number, term=term, values=[value] * 2, layout=LAYOUT, plan=plan, finished=finished)
    return replace(record, integers=bytes(8))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def live(
    task: CountingTask,
    connect: Connect,
    *,
    try_to_connect: Connect | None = None,
    stop: threading.Event | None = None,
) -> None:
    """One life of a worker, from the start of its process to its end."""
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        worker = Worker(
            name="w1",
            task=task,
            topology=TOPOLOGY,
            spool=spool,
            stop=stop or threading.Event(),
        )
        worker.work(connect, try_to_connect=try_to_connect)


def until(count: int) -> Callable[[FakeServer, int], None]:
    """End the federation when so many updates were sent."""

    def script(server: FakeServer, sent: int) -> None:
        if sent == count:
            publish_versions(server, version(1000, finished="enough"))

    return script


class Refusing(FakeBroker):
    """A connection on which every update is refused, once `refused` has happened."""

    def __init__(self, server: FakeServer, error: FluffleError, refused: Callable[[], None]) -> None:
        super().__init__(server)
        self._error = error
        self._refused = refused

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        self._refused()
        raise self._error


def ids(server: FakeServer) -> list[int]:
    """Return the numbers of the updates that were sent; they must be of one run."""
    updates = sent_updates(server)
    assert len({one.id.run for one in updates}) <= 1
    return [one.id.sequence for one in updates]


def test_a_worker_that_is_started_again_sends_what_waits_and_goes_on_with_its_run() -> None:
    server = a_federation(version(0))
    stop = threading.Event()
    live(CountingTask(), lambda: Refusing(server, QueueFull("full"), stop.set), stop=stop)
    assert ids(server) == []
    task = CountingTask()

    live(task, lambda: Scripted(server, until(2)))

    assert ids(server) == [1, 2]
    assert len(task.started_from) == 1


def test_a_worker_that_is_stopped_while_the_queue_is_full_says_what_stays_in_its_spool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = a_federation(version(0))
    stop = threading.Event()

    live(CountingTask(), lambda: Refusing(server, QueueFull("full"), stop.set), stop=stop)

    assert "unsent updates remain in the spool" in caplog.messages[-1]
    assert "'updates': 1" in caplog.messages[-1]


@pytest.mark.parametrize("error", [AccessRefused("no right"), RequestRefused("not like this")])
def test_an_update_that_may_not_be_published_ends_the_worker_and_stays_in_its_spool(
    error: FluffleError, caplog: pytest.LogCaptureFixture
) -> None:
    server = a_federation(version(0))

    with pytest.raises(type(error)):
        live(CountingTask(), lambda: Refusing(server, error, lambda: None))

    assert "unsent updates remain in the spool" in caplog.messages[-1]
    live(CountingTask(), lambda: Scripted(server, until(1)))
    assert ids(server) == [1]


class Outage:
    """A broker that is lost at the first publish, and comes back after so many attempts to connect."""

    def __init__(self, server: FakeServer, *, attempts: int, sent: int) -> None:
        self._server = server
        self._sent = sent
        self._attempts_left = attempts
        self.attempts = 0
        self.waits = 0

    def connect(self) -> Broker:
        """Connect, however long that takes."""
        self.waits += 1
        if self.waits == 1:
            return Refusing(self._server, ConnectionLost("the broker is gone"), lambda: None)
        return Scripted(self._server, until(self._sent))

    def try_to_connect(self) -> Broker:
        """Connect if the broker is back."""
        self.attempts += 1
        if self.attempts <= self._attempts_left:
            raise ConnectionLost("nobody answers")
        return Scripted(self._server, until(self._sent))


def test_in_an_outage_a_worker_trains_on_if_told_to_and_sends_all_of_it_afterwards() -> None:
    server = a_federation(version(0), version(1, 5.0))
    task = CountingTask()
    outage = Outage(server, attempts=3, sent=5)

    live(task, outage.connect, try_to_connect=outage.try_to_connect)

    assert ids(server) == [1, 2, 3, 4, 5]
    assert task.started_from == [5.0] * 5
    assert len(set(task.seeds)) == 5
    assert [one.base_version for one in sent_updates(server)] == [1] * 5
    assert (outage.waits, outage.attempts) == (1, 4)


def test_in_an_outage_a_worker_pauses_between_attempts_to_connect_however_short_its_rounds_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 3600.0)
    monkeypatch.setattr(reconnecting, "LONGEST_WAIT_S", 3600.0)
    server = a_federation(version(0))
    stop = threading.Event()
    task = CountingTask(meanwhile=lambda: stop.set() if len(task.started_from) == 20 else None)
    outage = Outage(server, attempts=100, sent=0)

    live(task, outage.connect, try_to_connect=outage.try_to_connect, stop=stop)

    assert (len(task.started_from), outage.attempts) == (20, 1)


def test_in_an_outage_a_worker_waits_unless_told_otherwise() -> None:
    server = a_federation(version(0))
    task = CountingTask()
    outage = Outage(server, attempts=3, sent=2)

    live(task, outage.connect)

    assert ids(server) == [1, 2]
    assert (len(task.started_from), outage.waits) == (2, 2)


def test_in_synchronous_rounds_a_worker_waits_in_an_outage_since_a_second_update_would_be_refused() -> None:
    server = a_federation(version(0, plan=IN_ROUNDS))
    task = CountingTask()
    outage = Outage(server, attempts=3, sent=1)

    live(task, outage.connect, try_to_connect=outage.try_to_connect)

    assert ids(server) == [1]
    assert (len(task.started_from), outage.waits, outage.attempts) == (1, 2, 0)


def test_a_worker_without_any_model_waits_for_the_broker() -> None:
    server = a_federation(version(0))

    def nobody() -> Broker:
        raise AssertionError("there is nothing to train from")

    live(CountingTask(), lambda: FakeBroker(server_that_ends(server)), try_to_connect=nobody)


def server_that_ends(server: FakeServer) -> FakeServer:
    publish_versions(server, version(1000, finished="enough"))
    return server


def test_a_worker_that_trains_on_and_is_stopped_leaves_its_updates_in_the_spool() -> None:
    server = a_federation(version(0))
    stop = threading.Event()
    task = CountingTask(meanwhile=lambda: stop.set() if len(task.started_from) == 3 else None)
    outage = Outage(server, attempts=100, sent=0)

    live(task, outage.connect, try_to_connect=outage.try_to_connect, stop=stop)
    live(CountingTask(), lambda: Scripted(server, until(2)))

    assert ids(server) == [1, 2]


def test_a_federation_that_is_missing_is_waited_for_and_not_trained_for() -> None:
    server = a_federation(version(0))
    task = CountingTask()
    outage = Outage(server, attempts=0, sent=1)

    def missing() -> Broker:
        raise TopologyMissing("no such federation")

    live(task, outage.connect, try_to_connect=missing)

    assert (len(task.started_from), outage.waits) == (1, 2)


def test_what_waits_for_a_finished_federation_is_dropped_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = a_federation(version(0))
    stop = threading.Event()
    live(CountingTask(), lambda: Refusing(server, QueueFull("full"), stop.set), stop=stop)
    publish_versions(server, version(1, finished="enough"))

    with caplog.at_level("INFO"):
        live(CountingTask(), lambda: FakeBroker(server))

    assert sent_updates(server) == []
    assert "dropped unsent updates from the spool" in caplog.text
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        assert (spool.waiting, spool.next_id.sequence) == (0, 2)


def test_a_version_of_a_lower_term_that_stands_alone_at_the_end_of_the_stream_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = a_federation(version(4, 4.0, term=2))
    task = CountingTask()

    def publish_once_it_was_passed_over() -> None:
        wait_until(lambda: any("lost the lead" in message for message in caplog.messages), "the warning")
        publish_versions(server, version(5, 5.0, term=2))

    def script(server: FakeServer, sent: int) -> None:
        if sent == 1:
            publish_versions(server, version(9, 9.0, term=1))
            later(publish_once_it_was_passed_over)
        if sent == 2:
            publish_versions(server, version(6, term=2, finished="enough"))

    live(task, lambda: Scripted(server, script))

    assert task.started_from == [4.0, 5.0]


def test_a_federation_that_is_begun_anew_is_worked_for_when_the_worker_is_started_again() -> None:
    before = a_federation(version(4, term=3))
    live(CountingTask(), lambda: Scripted(before, lambda server, _: publish_end(server, 3)))
    anew = a_federation(version(0, term=1))

    live(CountingTask(), lambda: Scripted(anew, until(1)))

    assert ids(anew) == [2]


def publish_end(server: FakeServer, term: int) -> None:
    publish_versions(server, version(1000, term=term, finished="enough"))


def test_what_a_worker_has_for_a_federation_that_was_begun_anew_is_dropped_and_it_trains_for_the_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    live(CountingTask(), connect=lambda: Scripted(a_federation(version(0)), until(1)))
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        old_run = spool.next_id.run
        spool.add(replace(an_update(), id=spool.next_id))
    reset = replace(version(0, term=1002), terms=(Rank(1002, 0),))
    server = a_federation(reset)

    def end(server: FakeServer, sent: int) -> None:
        if sent == 2:
            publish_versions(server, replace(version(9, term=1002, finished="enough"), terms=reset.terms))

    live(CountingTask(), connect=lambda: Scripted(server, end))

    updates = sent_updates(server)
    assert [(each.base_term, each.id.sequence) for each in updates] == [(1002, 1), (1002, 2)]
    assert old_run not in {each.id.run for each in updates}
    told = [record.msg for record in caplog.records if "the federation was reset" in str(record.msg)]
    assert len(told) == 1
    assert "'dropped_updates': 1" in str(told)


def test_a_worker_at_work_goes_on_with_a_federation_that_was_reset_and_remembers_it() -> None:
    reset = replace(version(0, term=1002), terms=(Rank(1002, 0),))

    def script(server: FakeServer, sent: int) -> None:
        if sent == 2:
            publish_versions(server, reset)
        if sent == 4:
            publish_versions(server, replace(version(9, term=1002, finished="enough"), terms=reset.terms))

    server = a_federation(version(0))
    live(CountingTask(), connect=lambda: Scripted(server, script))
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        next_id = spool.next_id

    updates = sent_updates(server)
    assert [(each.base_term, each.id.sequence) for each in updates] == [(1, 1), (1, 2), (1002, 1), (1002, 2)]
    assert next_id == replace(updates[-1].id, sequence=3)
