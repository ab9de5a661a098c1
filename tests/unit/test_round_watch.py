"""A worker aborts a round when newer versions make its update useless, and trains from the newest one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version
from fake_broker import FakeServer
from federation import wait_until
from working import TOPOLOGY, CountingTask, Scripted, a_federation, publish_versions, sent_updates

from fluffle.broker import StreamReader
from fluffle.errors import AccessRefused, ConnectionLost
from fluffle.event_sink import Sinks
from fluffle.events import Aborted, Event, Left, Published, Started, Trained
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.task import Progress
from fluffle.task import Trained as TrainedRound
from fluffle.topology import MIB
from fluffle_worker import round_watch
from fluffle_worker.loop import Worker, WorkerResult
from fluffle_worker.round_watch import RoundAborted, RoundWatch
from fluffle_worker.spool import Spool

LAYOUT = Layout.of(CountingTask().initial_weights(0))
# Enough for a look, and never reached by a round that is aborted.
LONG_S = 30.0


def version(number: int, *, term: int = 1, limit: int | None = 2, finished: str = "") -> ModelVersion:
    plan = Plan(max_staleness=limit)
    record = a_version(number, term=term, values=[number] * 2, layout=LAYOUT, plan=plan, finished=finished)
    return replace(record, integers=bytes(8))


class SlowFirstRound(CountingTask):
    """Something happens in the first round, which then goes on until it is aborted, or `until` is set.

    So do the other `slow_rounds`.
    """

    slow_rounds = 1

    def __init__(self, happens: Callable[[], None], until: threading.Event | None = None) -> None:
        super().__init__()
        self._happens, self._until = happens, until or threading.Event()

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> TrainedRound:
        """See Task."""
        trained = super().train(weights, plan, seed=seed, progress=progress)
        if len(self.started_from) <= self.slow_rounds:
            self._happens()
            ends_at = time.monotonic() + LONG_S
            while time.monotonic() < ends_at and not self._until.wait(0.005):
                progress(1, 2)
        return trained


class Heard(Sinks):
    """What a worker has told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        self.events.append(event)


def work(
    server: FakeServer,
    task: CountingTask,
    *,
    rounds: int = 1,
    heard: Heard | None = None,
    delay_s: float = 0,
    broker: type[Scripted] = Scripted,
) -> WorkerResult:
    """Let a worker train until it has sent so many updates, and then end the federation."""

    def end(served: FakeServer, sent: int) -> None:
        if sent == rounds:
            publish_versions(served, version(1000, term=9, finished="enough"))

    worker = Worker(
        name="w1",
        task=task,
        topology=TOPOLOGY,
        spool=Spool(Path(), worker="w1", max_bytes=MIB),
        delay_s=delay_s,
        event_sink=heard or Heard(),
    )
    return worker.work(lambda: broker(server, end))


@pytest.fixture(autouse=True)
def quick_looks_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(round_watch, "SHORTEST_PAUSE_S", 0.01)


def test_a_round_is_aborted_when_its_base_is_too_old_and_the_next_begins_from_the_newest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, heard = a_federation(version(4)), Heard()
    task = SlowFirstRound(lambda: publish_versions(server, *map(version, (5, 6, 7))))

    with caplog.at_level("INFO"):
        result = work(server, task, heard=heard)

    assert task.started_from == [4.0, 7.0]
    [update] = sent_updates(server)
    assert (update.base_version, update.id.sequence) == (7, 1), "the aborted round has used no number"
    assert (result.rounds, result.aborted) == (1, 1)
    assert [type(each) for each in heard.events] == [Started, Aborted, Started, Trained, Published, Left]
    aborted = heard.events[1]
    assert isinstance(aborted, Aborted)
    assert (aborted.version, aborted.staleness) == (4, 3)
    assert "round aborted: its update would be refused as too stale" in caplog.text


@pytest.mark.parametrize(("newest", "limit"), [(6, 2), (50, None)])
def test_a_round_whose_update_would_be_taken_is_trained_to_its_end(newest: int, limit: int | None) -> None:
    server, may_end = a_federation(version(4, limit=limit)), threading.Event()

    def happens() -> None:
        publish_versions(server, version(newest, limit=limit))
        threading.Timer(0.3, may_end.set).start()

    result = work(server, SlowFirstRound(happens, may_end))

    assert [update.base_version for update in sent_updates(server)] == [4]
    assert result.aborted == 0


def test_the_plan_of_the_newest_version_says_how_late_an_update_may_be() -> None:
    watch = RoundWatch(version(4, limit=2), newest=version(9, limit=5))

    watch.require_in_time()
    watch.newest = version(9, limit=None)
    watch.require_in_time()
    watch.newest = version(9, limit=4)

    with pytest.raises(RoundAborted):
        watch.require_in_time()


def test_a_version_of_a_leader_that_has_lost_the_lead_and_one_after_a_reset_abort_nothing() -> None:
    for newest in (version(90, term=1), version(0, term=1001)):
        watch = RoundWatch(version(4, term=2, limit=0), newest=newest)

        watch.require_in_time()

        assert watch.staleness == 0


def test_the_idle_time_of_a_round_is_ended_as_well() -> None:
    server, task = a_federation(version(4)), CountingTask()

    def direct() -> None:
        wait_until(lambda: len(task.started_from) == 1, "the first round")
        publish_versions(server, version(9))
        wait_until(lambda: len(task.started_from) == 2, "the second round")
        # A version far ahead ends that round too.
        publish_versions(server, version(1000, finished="enough"))

    director = threading.Thread(target=direct)
    director.start()
    began = time.monotonic()
    result = work(server, task, rounds=99, delay_s=LONG_S)
    director.join()

    assert task.started_from == [4.0, 9.0]
    assert (result.aborted, result.ended_by) == (2, "enough")
    assert sent_updates(server) == []
    assert time.monotonic() - began < LONG_S


def test_a_task_that_reports_no_progress_has_its_update_dropped_when_the_round_ends() -> None:
    server = a_federation(version(4))

    class Silent(SlowFirstRound):
        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> TrainedRound:
            return super().train(weights, plan, seed=seed, progress=lambda _done, _total: None)

    seen = threading.Event()
    task = Silent(lambda: publish_versions(server, version(9)), seen)
    threading.Timer(1.0, seen.set).start()

    result = work(server, task)

    assert [update.base_version for update in sent_updates(server)] == [9]
    assert result.aborted == 1


def test_a_worker_whose_rounds_are_always_too_late_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    server = a_federation(version(0))
    number = 0

    class AlwaysTooSlow(CountingTask):
        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> TrainedRound:
            nonlocal number
            trained = super().train(weights, plan, seed=seed, progress=progress)
            number += 5
            is_last = len(self.started_from) == 5
            publish_versions(server, version(number, finished="enough" if is_last else ""))
            ends_at = time.monotonic() + LONG_S
            while time.monotonic() < ends_at:
                progress(1, 2)
                time.sleep(0.005)
            return trained

    with caplog.at_level("INFO"):
        result = work(server, AlwaysTooSlow(), rounds=99)

    assert (result.aborted, result.rounds) == (5, 0)
    assert caplog.text.count("too slow for the aggregator's max_staleness") == 1
    assert sent_updates(server) == []


class NoRecords(Scripted):
    """A connection of a user who may not read the records."""

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        """See Broker."""
        if queue == TOPOLOGY.records.name:
            raise AccessRefused("no right to read it")
        with super().read_stream(queue, offset=offset, prefetch=prefetch) as reader:
            yield reader


class LosesTheRecords(Scripted):
    """A connection that is lost while the records are read."""

    @contextmanager
    def read_stream(self, queue: str, *, offset: str, prefetch: int = 1) -> Iterator[StreamReader]:
        """See Broker."""
        if queue == TOPOLOGY.records.name:
            raise ConnectionLost("it was lost here")
        with super().read_stream(queue, offset=offset, prefetch=prefetch) as reader:
            yield reader


@pytest.mark.parametrize(("broker", "is_said"), [(NoRecords, True), (LosesTheRecords, False)])
def test_a_worker_that_cannot_look_trains_its_rounds_to_the_end(
    broker: type[Scripted], is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server, may_end = a_federation(version(4)), threading.Event()

    def happens() -> None:
        may_end.clear()
        publish_versions(server, version(9))
        threading.Timer(0.3, may_end.set).start()

    task = SlowFirstRound(happens, may_end)
    task.slow_rounds = 2
    result = work(server, task, rounds=2, broker=broker)

    assert [update.base_version for update in sent_updates(server)] == [4, 9]
    assert result.aborted == 0
    assert caplog.text.count("rounds that become too stale are trained to their end") == is_said
