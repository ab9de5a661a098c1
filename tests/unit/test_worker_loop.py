"""The worker's loop: what it trains from, what it sends, and how it leaves."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version, values_of
from fake_broker import FakeBroker, FakeServer
from working import (
    TOPOLOGY,
    CountingTask,
    Scripted,
    a_federation,
    later,
    nothing,
    publish_versions,
    sent_updates,
)

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, LayoutError, QueueFull
from fluffle.model import Layout, Weights
from fluffle.pieces import Body
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.task import Progress, Trained
from fluffle.topology import MIB
from fluffle.update import AppliedUpdates, UpdateId
from fluffle_worker.base_version import FIRST_PATIENCE_S
from fluffle_worker.loop import Worker
from fluffle_worker.pace.pace import Pace
from fluffle_worker.spool import Spool

LAYOUT = Layout.of(CountingTask().initial_weights(0))


def version(number: int, value: float = 0.0, *, plan: Plan | None = None, finished: str = "") -> ModelVersion:
    """Return a version whose weights all have one value."""
    record = a_version(number, values=[value] * 2, layout=LAYOUT, plan=plan, finished=finished)
    return replace(record, integers=bytes(8))


def end(server: FakeServer) -> None:
    publish_versions(server, version(1000, finished="enough"))


def after_updates(
    count: int, happens: Callable[[FakeServer], None] = end
) -> Callable[[FakeServer, int], None]:
    """Let something happen when so many updates were sent."""

    def script(server: FakeServer, sent: int) -> None:
        if sent == count:
            happens(server)

    return script


def a_worker(
    task: CountingTask,
    *,
    stop: threading.Event | None = None,
    delay_s: float = 0.0,
    first_patience_s: float = FIRST_PATIENCE_S,
) -> Worker:
    return Worker(
        name="w1",
        task=task,
        topology=TOPOLOGY,
        spool=Spool(Path(), worker="w1", max_bytes=MIB),
        delay_s=delay_s,
        stop=stop or threading.Event(),
        first_patience_s=first_patience_s,
    )


def work(server: FakeServer, task: CountingTask, *, rounds: int) -> None:
    """Let a worker train until it has sent so many updates and the federation ends."""
    a_worker(task).work(lambda: Scripted(server, after_updates(rounds)))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_worker_trains_from_the_newest_version_and_sends_what_it_learnt() -> None:
    server = a_federation(version(0), version(1, 5.0), version(2, 7.0))

    work(server, CountingTask(), rounds=1)

    [update] = sent_updates(server)
    assert update.id == UpdateId("w1", update.id.run, 1)
    assert (update.federation, update.base_version, update.sends) == ("digits", 2, "delta")
    assert values_of(update.vector) == [1.0, 1.0]
    assert update.integers == (3).to_bytes(8, "little")
    assert (update.layout_digest, update.examples, update.loss) == (LAYOUT.digest, 10, 0.5)
    assert update.train_s >= 0


def test_the_delta_is_against_the_workers_own_base_though_a_newer_version_came_meanwhile() -> None:
    server = a_federation(version(0, 2.0))
    newer = iter([version(1, 100.0), version(2, 500.0)])
    task = CountingTask(meanwhile=lambda: publish_versions(server, next(newer)))

    work(server, task, rounds=2)

    assert task.started_from == [2.0, 100.0]
    assert [(one.base_version, values_of(one.vector)) for one in sent_updates(server)] == [
        (0, [1.0, 1.0]),
        (1, [1.0, 1.0]),
    ]


def test_a_worker_sends_its_weights_when_the_plan_says_so() -> None:
    server = a_federation(version(0, 2.0, plan=Plan(sends="weights")))

    work(server, CountingTask(), rounds=1)

    [update] = sent_updates(server)
    assert (update.sends, values_of(update.vector)) == ("weights", [3.0, 3.0])


def test_the_codec_of_the_plan_is_used() -> None:
    server = a_federation(version(0, plan=Plan(codec="bfloat16")))

    work(server, CountingTask(), rounds=1)

    assert sent_updates(server)[0].codec == "bfloat16"


def test_a_plan_that_changes_is_obeyed_in_the_next_round() -> None:
    server = a_federation(version(0))
    task = CountingTask(meanwhile=lambda: publish_versions(server, version(1, plan=Plan(sends="weights"))))

    work(server, task, rounds=2)

    assert [one.sends for one in sent_updates(server)] == ["delta", "weights"]


def test_versions_in_between_are_not_trained_from() -> None:
    server = a_federation(version(0, 0.0))
    task = CountingTask(
        meanwhile=lambda: publish_versions(server, *(version(n, 10.0 * n) for n in (1, 2, 3)))
    )

    work(server, task, rounds=2)

    assert task.started_from == [0.0, 30.0]


def test_without_rounds_a_worker_trains_again_at_once_from_the_same_version() -> None:
    server = a_federation(version(0, plan=Plan(updates_per_version=2)))
    task = CountingTask()

    work(server, task, rounds=3)

    assert task.started_from == [0.0, 0.0, 0.0]
    run = sent_updates(server)[0].id.run
    assert [one.id for one in sent_updates(server)] == [UpdateId("w1", run, n) for n in (1, 2, 3)]
    assert len(set(task.seeds)) == 3, "each round has its own order of minibatches"


def test_a_worker_that_is_ahead_waits_for_a_version_that_contains_its_updates() -> None:
    plan = Plan(updates_per_version=2)
    server = a_federation(version(0, plan=plan))
    task = CountingTask()

    def script(served: FakeServer, count: int) -> None:
        if count == 3:
            # Nobody folds for a while; then a version contains all three of its updates.
            ids = [update.id for update in sent_updates(served)]
            newer = replace(version(1, 1.0, plan=plan), applied=AppliedUpdates().adding(ids))
            threading.Timer(1.0, lambda: publish_versions(served, newer)).start()
        if count == 4:
            end(served)

    a_worker(task).work(lambda: Scripted(server, script))

    assert task.started_from == [0.0, 0.0, 0.0, 1.0]


def test_a_worker_that_is_ahead_trains_on_when_no_version_comes_at_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = a_federation(version(0, plan=Plan(updates_per_version=1)))
    task = CountingTask()

    with caplog.at_level("INFO"):
        a_worker(task, first_patience_s=0.2).work(lambda: Scripted(server, after_updates(4)))

    assert task.started_from == [0.0] * 4
    assert caplog.text.count("no newer version arrived: training again from the same one") == 2


@pytest.mark.parametrize("size", [32, 0])
def test_the_log_has_the_size_of_a_rounds_minibatches_if_it_is_known(
    size: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "stamped", lambda _, update: replace(update, batch_size=size))
    with caplog.at_level("INFO"):
        a_worker(CountingTask()).work(lambda: Scripted(a_federation(version(0)), after_updates(1)))

    assert ("batch_size" in caplog.text) is bool(size)


def test_in_synchronous_rounds_a_worker_waits_for_a_version_that_it_has_not_trained_from() -> None:
    plan = Plan(one_update_per_version=True)
    server = a_federation(version(0, plan=plan))
    task = CountingTask()

    def script(server: FakeServer, sent: int) -> None:
        following = version(sent, 10.0 * sent, plan=plan, finished="enough" if sent == 3 else "")
        later(lambda: publish_versions(server, following))

    a_worker(task).work(lambda: Scripted(server, script))

    assert task.started_from == [0.0, 10.0, 20.0]


def test_the_same_seed_orders_the_minibatches_the_same_way(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = CountingTask(), CountingTask()

    for task in (first, second):
        monkeypatch.chdir(tmp_path_factory.mktemp("worker"))
        work(a_federation(version(0)), task, rounds=2)

    assert first.seeds == second.seeds


class LosesTheFirst(Scripted):
    """A connection that is lost at its first publish, before or after the broker had the message."""

    def __init__(
        self, server: FakeServer, happens: Callable[[FakeServer, int], None], *, heard: bool
    ) -> None:
        super().__init__(server, happens)
        self._heard = heard

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        if self._heard:
            super().publish(exchange, routing_key, body, headers)
        self.close()
        raise ConnectionLost("it was lost here")


@pytest.mark.parametrize("heard", [False, True])
def test_what_was_not_confirmed_is_sent_again_under_its_own_id_and_not_trained_again(heard: bool) -> None:
    server = a_federation(version(0))
    task = CountingTask()
    script = after_updates(3 if heard else 2)
    lives: list[Broker] = [LosesTheFirst(server, script, heard=heard), Scripted(server, script)]

    a_worker(task).work(lambda: lives.pop(0))

    first, *_, last = updates = sent_updates(server)
    assert [one.id.sequence for one in updates] == ([1, 1, 2] if heard else [1, 2])
    assert len({one.id.run for one in updates}) == 1
    assert len(task.started_from) == 2
    if heard:
        assert values_of(updates[1].vector) == values_of(first.vector)
    assert lives == []
    assert last.base_version == 0


def test_what_was_confirmed_is_not_sent_again_when_the_connection_is_lost_later() -> None:
    server = a_federation(version(0))
    lost: list[Broker] = []

    def lose(server: FakeServer, sent: int) -> None:
        if sent == 1:
            lost[0].close()

    def connect() -> Broker:
        lost.append(Scripted(server, after_updates(2) if lost else lose))
        return lost[-1]

    a_worker(CountingTask()).work(connect)

    assert len(lost) == 2
    assert [one.id.sequence for one in sent_updates(server)] == [1, 2]


class FullAtFirst(Scripted):
    """A connection to a broker whose queue is full for the first few messages."""

    refusals = 2

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        if self.refusals:
            self.refusals -= 1
            raise QueueFull("the queue is full")
        super().publish(exchange, routing_key, body, headers)


def test_a_full_queue_is_waited_for_and_the_update_is_kept() -> None:
    server = a_federation(version(0))
    task = CountingTask()

    a_worker(task).work(lambda: FullAtFirst(server, after_updates(1)))

    assert [one.id.sequence for one in sent_updates(server)] == [1]
    assert len(task.started_from) == 1


def test_a_worker_that_is_stopped_while_the_queue_is_full_leaves_in_good_order() -> None:
    server = a_federation(version(0))
    stop = threading.Event()

    class AlwaysFull(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            stop.set()
            raise QueueFull("the queue is full")

    a_worker(CountingTask(), stop=stop).work(lambda: AlwaysFull(server))

    assert sent_updates(server) == []


def test_a_finished_federation_is_not_trained_for() -> None:
    server = a_federation(version(0), version(1, finished="enough"))
    task = CountingTask()

    a_worker(task).work(lambda: FakeBroker(server))

    assert task.started_from == []


def test_a_worker_that_is_stopped_in_the_middle_of_a_round_leaves_at_once_and_sends_nothing() -> None:
    server = a_federation(version(0))
    stop = threading.Event()
    task = CountingTask(meanwhile=stop.set)

    a_worker(task, stop=stop).work(lambda: FakeBroker(server))

    assert len(task.started_from) == 1
    assert sent_updates(server) == []


def test_a_worker_that_is_stopped_when_its_round_is_done_sends_it_before_it_leaves() -> None:
    server = a_federation(version(0))
    stop = threading.Event()

    class StoppedAtTheEnd(CountingTask):
        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
            trained = super().train(weights, plan, seed=seed, progress=progress)
            stop.set()
            return trained

    a_worker(StoppedAtTheEnd(), stop=stop).work(lambda: FakeBroker(server))

    assert [one.id.sequence for one in sent_updates(server)] == [1]


def test_a_worker_that_is_stopped_while_it_idles_leaves_at_once() -> None:
    server = a_federation(version(0))
    stop = threading.Event()
    task = CountingTask(meanwhile=lambda: later(stop.set))

    a_worker(task, stop=stop, delay_s=3600).work(lambda: FakeBroker(server))

    assert sent_updates(server) == []


def test_a_worker_that_is_stopped_before_any_version_is_there_leaves() -> None:
    server = a_federation()
    stop = threading.Event()
    server.longest_wait_s = 1.0
    later(stop.set)

    a_worker(CountingTask(), stop=stop).work(lambda: FakeBroker(server))

    assert sent_updates(server) == []


def test_a_model_of_another_layout_is_refused_in_words() -> None:
    server = a_federation(version(0))

    with pytest.raises(LayoutError, match=r"model has w float32\[2\] where this one has kernel float32\[2\]"):
        a_worker(CountingTask(name="kernel")).work(lambda: FakeBroker(server))


def test_training_never_touches_the_version_that_it_starts_from() -> None:
    server = a_federation(version(0, 2.0))
    before = server.bodies(TOPOLOGY.models.name)

    work(server, CountingTask(meanwhile=nothing), rounds=2)

    assert server.bodies(TOPOLOGY.models.name)[:1] == before
    assert values_of(sent_updates(server)[1].vector) == [1, 1]
