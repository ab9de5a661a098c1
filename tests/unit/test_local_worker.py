"""A worker that adds all the noise itself: it counts what leaves, and insists on what it was told."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_broker import FakeServer
from privately import a_privacy_plan, a_private_version
from working import (
    CountingTask,
    Scripted,
    a_federation,
    a_worker,
    publish_versions,
    sent,
    sent_updates,
    version_of,
)

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError
from fluffle.plan import Plan
from fluffle.privacy.plan import Participation, PrivacyPlan
from fluffle.record import ModelVersion
from fluffle.settings import load_settings
from fluffle.wire import decode_inbound, encode_update
from fluffle_worker.insisting import Insistence
from fluffle_worker.settings import WorkerSettings

PLAN = a_privacy_plan(updates=3, mechanism="local")


def first_version(plan: PrivacyPlan = PLAN, *, codec: str = "float32") -> ModelVersion:
    record = a_private_version(plan, version_of(CheckedTask(CountingTask()).model(), Plan()))
    return replace(record, plan=Plan(privacy=plan, codec=codec))


def work(folder: Path, first: ModelVersion, **given: object) -> tuple[FakeServer, str]:
    """Let a worker send updates, each followed by a version that does not contain it, until it leaves."""
    server = a_federation(first)

    def script(server: FakeServer, count: int) -> None:
        publish_versions(server, replace(first, version=first.version + count))

    return server, a_worker(CountingTask(), folder, **given).work(lambda: Scripted(server, script)).ended_by


def test_a_worker_counts_what_it_sends_and_leaves_when_it_has_sent_all(tmp_path: Path) -> None:
    server, ended_by = work(tmp_path, first_version())

    updates = sent_updates(server)
    assert [each.released for each in updates] == [1, 2, 3]
    # Nobody waits for the model to contain them: what becomes of an update does not matter.
    assert ended_by == "this worker's privacy budget of 3 updates is spent: it has sent them all"
    assert all(each.examples == 1 and each.loss is None and each.integers == b"" for each in updates)


def test_an_update_leaves_with_noise_alone(tmp_path: Path) -> None:
    plan = a_privacy_plan(epsilon=1.0, updates=3, mechanism="local")

    server, _ = work(tmp_path, first_version(plan))

    sent_vectors = [np.concatenate(list(each.vector.blocks())) for each in sent_updates(server)]
    # Training adds 1 to each of two elements, and the clip makes 0.71 of it.
    assert len({vector.tobytes() for vector in sent_vectors}) == 3
    assert all(np.abs(vector - 1.0).max() > 1e-3 for vector in sent_vectors)
    assert plan.std > 5


@pytest.mark.parametrize("codec", ["int8", "topk:0.5"])
def test_what_a_codec_does_comes_after_the_noise(tmp_path: Path, codec: str) -> None:
    server, _ = work(tmp_path, first_version(codec=codec))

    assert [each.released for each in sent_updates(server)] == [1, 2, 3]


def test_a_redelivery_of_the_same_bytes_costs_nothing_and_a_round_that_is_trained_anew_costs_one(
    tmp_path: Path,
) -> None:
    first = first_version()
    server, stop = a_federation(first), threading.Event()

    def refuse(_server: FakeServer, _count: int) -> None:
        stop.set()
        raise ConnectionError("the process dies before the confirm")

    with pytest.raises(ConnectionError):
        a_worker(CountingTask(), tmp_path, stop=stop).work(lambda: Scripted(server, refuse))
    [before] = sent_updates(server)

    server, _ = work(tmp_path, first)

    again, *others = sent_updates(server)
    assert encode_update(again) == encode_update(before)
    assert [each.released for each in (again, *others)] == [1, 2, 3]


def test_the_count_stays_over_restarts(tmp_path: Path) -> None:
    work(tmp_path, first_version())

    server, ended_by = work(tmp_path, first_version())

    assert sent(server) == []
    assert "it has sent them all" in ended_by


def test_where_the_spool_was_lost_the_record_counts(tmp_path: Path) -> None:
    first = first_version()
    assert first.privacy is not None
    known = replace(first.privacy, participations={"w1": Participation(2)})

    server, _ = work(tmp_path, replace(first, privacy=known))

    assert [each.released for each in sent_updates(server)] == [3]


def test_a_damaged_count_is_not_taken_for_none(tmp_path: Path) -> None:
    work(tmp_path, first_version())
    [ledger] = tmp_path.glob("*.ledger")
    ledger.write_bytes(ledger.read_bytes()[:-1])

    with pytest.raises(ConfigError, match="cannot be read"):
        work(tmp_path, first_version())


def test_another_promise_does_not_begin_another_budget(tmp_path: Path) -> None:
    work(tmp_path, first_version())

    with pytest.raises(ConfigError, match="has sent 3 updates to digits, which has promised"):
        work(tmp_path, first_version(a_privacy_plan(updates=9, mechanism="local")))


def test_unsent_updates_of_before_the_promise_are_dropped(tmp_path: Path) -> None:
    stop, plain = threading.Event(), a_federation(replace(first_version(), plan=Plan(), privacy=None))

    def refuse(_server: FakeServer, _count: int) -> None:
        stop.set()
        raise ConnectionError("the process dies before the confirm")

    with pytest.raises(ConnectionError):
        a_worker(CountingTask(), tmp_path, stop=stop).work(lambda: Scripted(plain, refuse))

    server, _ = work(tmp_path, first_version())

    assert [each.released for each in sent_updates(server)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("plan", "insistence", "says"),
    [
        (None, Insistence(epsilon=8, delta=1e-5), "has no differential privacy: start its aggregator with"),
        (PLAN, Insistence(epsilon=4, delta=1e-5), "3 updates for digits spend 8 at a delta of 1e-05"),
        (PLAN, Insistence(epsilon=8, delta=1e-6), "3 updates for digits spend 8.84 at a delta of 1e-06"),
        (
            a_privacy_plan(),
            Insistence(epsilon=8, delta=1e-5, mechanism="local"),
            "insists on --dp local, and with the mechanism central of digits its updates leave with less",
        ),
    ],
)
def test_a_worker_that_insists_sends_nothing_to_a_federation_that_protects_it_less(
    tmp_path: Path, plan: PrivacyPlan | None, insistence: Insistence, says: str
) -> None:
    first = first_version(plan or PLAN)
    server = a_federation(first if plan else replace(first, plan=Plan(), privacy=None, closing="time is up"))

    with pytest.raises(ConfigError, match=says):
        a_worker(CountingTask(), tmp_path, insistence=insistence).work(lambda: Scripted(server, print))

    assert sent(server) == []


def test_a_mechanism_that_needs_less_trust_will_do(tmp_path: Path) -> None:
    server, _ = work(tmp_path, first_version(), insistence=Insistence(epsilon=8, delta=1e-5))

    assert len(sent_updates(server)) == 3


def test_a_worker_does_not_believe_a_plan_whose_noise_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its plan does not keep to that: after 3 updates epsilon is 19"):
        work(tmp_path, first_version(replace(PLAN, std=PLAN.std / 2)))


def test_what_a_worker_insists_on_needs_an_epsilon() -> None:
    given = {"task": "digits", "dp": "local"}

    with pytest.raises(ConfigError, match="dp has no effect without dp_epsilon: give both"):
        load_settings(WorkerSettings, given)

    found = load_settings(WorkerSettings, {**given, "dp_epsilon": 2}).insistence
    assert found == Insistence(epsilon=2, delta=1e-5, mechanism="local")
    assert load_settings(WorkerSettings, {"task": "digits"}).insistence is None


def test_an_update_without_a_count_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    server, _ = work(tmp_path, first_version())
    [update, *_] = sent_updates(server)

    plain = encode_update(replace(update, released=0))

    assert b"released" not in plain
    assert decode_inbound(plain) is not None
