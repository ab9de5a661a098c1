"""A worker of secure aggregation never sends other bytes under an id that it has used."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broken_files import Crash, failing
from builders import an_update
from fake_broker import FakeServer
from secure_sites import Site, a_site
from secure_working import SIZE, SecretTask, expected_numbers, live, until, version
from working import (
    TOPOLOGY,
    Scripted,
    a_federation,
    sent,
    sent_updates,
)

from fluffle.errors import QueueFull
from fluffle.model import Weights
from fluffle.pieces import Body
from fluffle.plan import Plan
from fluffle.task import Progress, Trained
from fluffle.topology import MIB
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_worker.loop import Worker
from fluffle_worker.spool import Residual, open_spool


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return a_site(tmp_path_factory.mktemp("keys"))


class Refusing(Scripted):
    """A connection on which the queue is full, or on which the process is killed, at each publish."""

    def __init__(self, server: FakeServer, happens: Callable[[], None]) -> None:
        super().__init__(server, until(-1))
        self._refuses = happens

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        self._refuses()
        raise QueueFull("full")


def crash() -> None:
    raise Crash


def bodies_by_id(*servers: FakeServer) -> dict[UpdateId, set[bytes]]:
    found: dict[UpdateId, set[bytes]] = {}
    for server in servers:
        for body in server.bodies(TOPOLOGY.updates.name):
            update = decode_inbound(body)
            assert isinstance(update, WeightUpdate)
            found.setdefault(update.id, set()).add(body)
    return found


def test_after_a_crash_between_spool_and_publish_the_same_bytes_are_sent(site: Site) -> None:
    server, task = a_federation(version()), SecretTask()
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, keys=site.keys())
        with pytest.raises(Crash):
            worker.work(lambda: Refusing(server, crash))
        waiting = spool.oldest()
    assert waiting

    live(server, task, site.keys(), updates=2)

    assert server.bodies(TOPOLOGY.updates.name)[0] == waiting[1]
    assert len(bodies_by_id(server)) == 2


@pytest.mark.parametrize("after", range(6))
def test_a_crash_while_the_update_is_written_never_gives_an_id_two_contents(after: int, site: Site) -> None:
    server, task = a_federation(version()), SecretTask()
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, keys=site.keys())
        context = failing(after, Crash)
        task.meanwhile = context.__enter__
        try:
            worker.work(lambda: Scripted(server, until(1)))
        except Crash:
            pass
        finally:
            context.__exit__(None, None, None)
    task.meanwhile = lambda: None
    if not sent(server):
        server = a_federation(version())

    live(server, task, site.keys(), updates=len(sent(server)) + 2)

    assert all(len(bodies) == 1 for bodies in bodies_by_id(server).values())


def test_a_restarted_worker_begins_a_new_run_so_that_no_id_can_come_again(site: Site) -> None:
    server = a_federation(version())
    live(server, SecretTask(), site.keys(), updates=1)
    again = a_federation(version())

    live(again, SecretTask(spread=0.1), site.keys(), updates=1)

    [one], [other] = sent_updates(server), sent_updates(again)
    assert one.id.run != other.id.run
    assert other.id.sequence == one.id.sequence + 1


def test_a_lost_spool_begins_a_new_run(site: Site) -> None:
    server, again = a_federation(version()), a_federation(version())
    live(server, SecretTask(), site.keys())
    shutil.rmtree("spool")

    live(again, SecretTask(spread=0.1), site.keys())

    [one], [other] = sent_updates(server), sent_updates(again)
    assert (one.id.sequence, other.id.sequence) == (1, 1)
    assert one.id != other.id


def test_a_spool_that_was_restored_from_an_older_copy_gives_no_id_again_that_no_model_contains(
    site: Site,
) -> None:
    first, lost, restored = (a_federation(version()) for _ in range(3))
    live(first, SecretTask(), site.keys())
    shutil.copytree("spool", "copy")
    live(lost, SecretTask(spread=0.2), site.keys(), updates=2)
    shutil.rmtree("spool")
    shutil.copytree("copy", "spool")

    # No version names what was sent from the newer spool.
    live(restored, SecretTask(spread=0.3), site.keys(), updates=2)

    assert len(bodies_by_id(first, lost, restored)) == 5
    assert not {each.id for each in sent_updates(lost)} & {each.id for each in sent_updates(restored)}


@contextmanager
def a_full_disk() -> Iterator[None]:
    with failing(0, lambda: OSError(28, "No space left on device")):
        yield


def test_on_a_full_disk_an_update_is_masked_anew_under_its_new_id(site: Site) -> None:
    server, task = a_federation(version()), SecretTask()
    context = a_full_disk()
    task.meanwhile = lambda: context.__enter__() if len(task.started_from) == 2 else None

    live(server, task, site.keys(), updates=2)
    context.__exit__(None, None, None)

    on_disk, in_memory = sent_updates(server)
    assert on_disk.id.run != in_memory.id.run
    assert site.numbers(in_memory).tolist() == expected_numbers(task, 1, in_memory).tolist()
    # Under the id that it was to have, the mask was another one.
    before = replace(in_memory, id=replace(in_memory.id, run=on_disk.id.run))
    assert site.numbers(before).tolist() != expected_numbers(task, 1, in_memory).tolist()


def test_what_a_codec_has_left_out_before_is_dropped_and_never_mixed_in(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server, task = a_federation(version()), SecretTask()
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        before = replace(an_update(codec="topk:0.1"), id=spool.next_id)
        spool.add(before, Residual(np.ones(SIZE, np.float32)))
        spool.confirm()
        assert spool.has_residual

    live(server, task, site.keys())

    [update] = sent_updates(server)
    assert site.numbers(update).tolist() == expected_numbers(task, 0, update).tolist()
    assert caplog.text.count("what earlier updates left out is dropped") == 1
    assert list(Path("spool").glob("*.residual")) == list(Path("spool").glob("*.sent")) == []


def test_an_update_that_waits_in_the_clear_is_not_sent_by_a_worker_that_insists(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        plain = a_federation(version(secure=None))
        worker = Worker(name="w1", task=SecretTask(), topology=TOPOLOGY, spool=spool, stop=stop)
        worker.work(lambda: Refusing(plain, stop.set))
        assert spool.waiting == 1
    server = a_federation(version())

    live(server, SecretTask(), site.keys())

    assert {each.epoch for each in sent_updates(server)} == {1}
    assert "dropped unsent updates of before secure aggregation" in caplog.text


def test_a_delta_that_is_not_finite_is_not_masked_and_sent(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    base = replace(version(), vector=np.full(SIZE, -3e38, np.float32))
    server, stop = a_federation(base), threading.Event()

    class Jumps(SecretTask):
        def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
            trained = super().train(weights, plan, seed=seed, progress=progress)
            stop.set()
            return replace(trained, weights={**trained.weights, "w": np.full(SIZE, 3e38, np.float32)})

    with np.errstate(over="ignore"):
        live(server, Jumps(), site.keys(), stop=stop)

    assert sent(server) == []
    assert "its delta is not finite" in caplog.text
