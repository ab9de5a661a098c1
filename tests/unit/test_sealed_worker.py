"""What a worker of a sealed federation sends is encrypted, and it trains from what it decrypts."""

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import an_update
from fake_broker import FakeBroker, FakeServer
from hypothesis import given
from hypothesis import strategies as st
from sealed_sites import (
    KEY,
    LAYOUT,
    OTHER_KEY,
    PLAN,
    SIZE,
    NoisyTask,
    decrypted,
    live,
    residues_of,
    until,
    version,
)
from working import TOPOLOGY, Scripted, a_federation, publish_versions, sent, sent_updates

from fluffle.codecs.sealed import SealedVector
from fluffle.errors import ConfigError, QueueFull
from fluffle.model import Layout, TensorSpec
from fluffle.pieces import Body
from fluffle.record import Evaluation, ModelVersion, Rank
from fluffle.sealed.keys import SealedKeys
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.plan import MOST_ERROR, SEALED, SealedPlan, SealedState
from fluffle.sealed.residues import add_weighted, unpack
from fluffle.topology import MIB
from fluffle_worker.evaluator import Evaluator
from fluffle_worker.loop import Worker
from fluffle_worker.pace.share import TrainShare
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.sealing import SealedSite, rounded_up
from fluffle_worker.spool import open_spool


def leave_in_the_spool(record: ModelVersion, task: NoisyTask, key: SealedKeys | None) -> None:
    """Let a worker train a round whose update no broker takes."""
    stop = threading.Event()

    class Full(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            stop.set()
            raise QueueFull("the queue is full")

    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, sealed_key=key, stop=stop)
        worker.work(lambda: Full(a_federation(record)))
        assert spool.waiting == 1


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_update_is_the_encrypted_delta_and_nothing_of_it_is_in_the_clear() -> None:
    server, task = a_federation(version()), NoisyTask()

    live(server, task, updates=2)

    updates = sent_updates(server)
    assert len(updates) == 2
    for update, delta, body in zip(updates, task.deltas, server.bodies(TOPOLOGY.updates.name), strict=True):
        assert (update.codec, update.key, update.sends, update.refresh) == (SEALED, KEY.key_id, "delta", None)
        np.testing.assert_allclose(decrypted(update), delta, rtol=0, atol=MOST_ERROR)
        assert not [at for at in range(0, SIZE, 2) if delta[at : at + 2].astype("<f4").tobytes() in body]
        assert len(body) < 27 * 2 * 2048 + 1000


def test_a_round_starts_from_version_0_plus_what_the_decrypted_sum_moves_it_by() -> None:
    total = np.linspace(-30, 30, LAYOUT.size)
    server, task = a_federation(version(3, replace(PLAN, server_learning_rate=0.7), total=total)), NoisyTask()

    live(server, task)

    expected = 0.5 + 0.7 / (2 * 64) * total
    np.testing.assert_allclose(task.bases[0], expected, rtol=0, atol=1e-6)


def test_the_model_that_workers_compute_is_the_weighted_mean_of_what_they_have_sent() -> None:
    server, task = a_federation(version()), NoisyTask()
    live(server, task, updates=2)
    first, second = sent_updates(server)
    total = residues_of(first) * np.uint64(0)
    add_weighted(total, residues_of(first), 64)
    add_weighted(total, residues_of(second), 45)

    later = version(1, total=KEY.decrypt(total, LAYOUT.size), state=SealedState(weights=64 + 45))
    opened = SealedSite(key=KEY).opened(later)

    expected = 0.5 + (64 * task.deltas[0].astype(np.float64) + 45 * task.deltas[1]) / (2 * 64)
    np.testing.assert_allclose(opened.vector, expected, rtol=0, atol=1e-6)
    assert opened.sealed_sum == b"", "the ciphertexts take many times the memory of the model"


def test_elements_beyond_the_clip_are_clipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    server, task = a_federation(version(plan=replace(PLAN, clip=0.1))), NoisyTask()

    live(server, task, updates=3)

    for update, delta in zip(sent_updates(server), task.deltas, strict=True):
        np.testing.assert_allclose(decrypted(update), np.clip(delta, -0.1, 0.1), rtol=0, atol=MOST_ERROR)
    told = [message for message in caplog.messages if "--sealed-clip at the aggregator sets it" in message]
    assert len(told) == 2, "at powers of two"
    assert "'clipped_share': 0.7" in told[0]


def test_only_the_tensors_that_the_plan_names_are_encrypted_where_the_worker_agrees() -> None:
    plan = replace(PLAN, only=("head/*",))
    server, task = a_federation(version(plan=plan, total=np.full(SIZE, 12.8))), NoisyTask()

    live(server, task, sealed_only=("head/w",))

    (update,) = sent_updates(server)
    np.testing.assert_allclose(decrypted(update), task.deltas[0][:SIZE], rtol=0, atol=MOST_ERROR)
    assert isinstance(update.vector, SealedVector)
    assert update.vector.open.payload == task.deltas[0][SIZE:].astype("<f4").tobytes()
    np.testing.assert_allclose(task.bases[0], [0.6] * SIZE + [0.5] * 10, atol=1e-6)


def test_a_worker_that_wants_all_sealed_refuses_a_plan_that_leaves_a_tensor_in_the_clear() -> None:
    server = a_federation(version(plan=replace(PLAN, only=("head/*",))))

    with pytest.raises(ConfigError, match=r"would let body/w travel in the clear.*--sealed-only here"):
        live(server, NoisyTask())

    assert sent(server) == []


def test_statistics_would_travel_in_the_clear_so_a_worker_refuses_them() -> None:
    statistic = TensorSpec("norm/mean", (3,), "float32", "statistic")
    record = replace(version(), layout=Layout((*LAYOUT.tensors, statistic)))

    with pytest.raises(ConfigError, match=r"would let norm/mean travel in the clear"):
        SealedSite(key=KEY).opened(record)

    assert SealedSite(key=KEY, only=("head/*", "body/*")).opened(record)


def test_a_worker_with_a_key_refuses_a_plan_that_is_not_sealed_and_sends_nothing() -> None:
    server, task = a_federation(version(plan=None)), NoisyTask()

    with pytest.raises(ConfigError, match=r"insists on a sealed federation.*without --sealed-secret"):
        live(server, task)

    assert (sent(server), task.deltas) == ([], [])


def test_a_worker_without_a_key_refuses_a_sealed_plan_and_does_not_train() -> None:
    server, task = a_federation(version()), NoisyTask()

    with pytest.raises(ConfigError, match=r"is sealed, and this worker has no key: give --sealed-secret"):
        live(server, task, None)

    assert (sent(server), task.deltas) == ([], [])


def test_a_worker_with_another_key_names_both() -> None:
    server = a_federation(version())

    with pytest.raises(
        ConfigError, match=rf"the key {KEY.key_id}, and --sealed-secret has .*{OTHER_KEY.key_id}"
    ):
        live(server, NoisyTask(), OTHER_KEY)


@pytest.mark.parametrize("share", [0.5, "auto"])
def test_a_worker_that_trains_a_part_is_refused(share: TrainShare) -> None:
    with pytest.raises(ConfigError, match=r"each sealed update has all layers: .*without --train-share"):
        SealedSite(key=KEY, train_share=share).opened(version())


def test_a_sum_that_honest_updates_cannot_come_to_is_not_trained_from() -> None:
    """One fresh update has a weight of 64, and no element above the clip."""
    most = 64 * PLAN.clip
    spoiled = version(2, total=[most + 1, *[0.0] * (LAYOUT.size - 1)])
    for record in (spoiled, version(2, total=np.zeros(LAYOUT.size), key=OTHER_KEY)):
        server, task = a_federation(record), NoisyTask()

        with pytest.raises(ConfigError, match=r"version 2 .* decrypts to values up to .*come to 32 at most"):
            live(server, task)

        assert (sent(server), task.deltas) == ([], [])
    assert SealedSite(key=KEY).opened(version(2, total=np.full(LAYOUT.size, most)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_never_gets_into_a_sum(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    delta = np.zeros(LAYOUT.size, np.float32)
    delta[-1] = value
    trained = TrainedUpdate(an_update(layout=LAYOUT, values=delta.tolist()), delta, {}, {}, "")

    with open_spool(Path("spool"), worker="w1", max_bytes=MIB) as spool:
        SealedSite(key=KEY).add_sealed(spool, trained, version())

        assert spool.waiting == 0
    assert "an update is dropped: its delta is not finite" in caplog.text


def test_what_an_earlier_life_left_in_the_clear_is_dropped() -> None:
    leave_in_the_spool(version(plan=None), NoisyTask(), None)
    server, task = a_federation(version()), NoisyTask()

    live(server, task)

    [update] = sent_updates(server)
    assert update.codec == SEALED
    np.testing.assert_allclose(decrypted(update), task.deltas[0], rtol=0, atol=MOST_ERROR)


def test_what_an_earlier_life_encrypted_with_another_key_is_dropped() -> None:
    leave_in_the_spool(version(plan=replace(PLAN, key=OTHER_KEY.key_id)), NoisyTask(), OTHER_KEY)
    server = a_federation(version())

    live(server, NoisyTask())

    assert [update.key for update in sent_updates(server)] == [KEY.key_id]


def test_an_update_is_encrypted_in_the_spool_and_sent_as_it_is_after_a_restart(tmp_path: Path) -> None:
    task = NoisyTask()
    leave_in_the_spool(version(), task, KEY)
    [body] = [path.read_bytes() for path in tmp_path.glob("spool/*.update")]
    assert not [at for at in range(0, SIZE, 2) if task.deltas[0][at : at + 2].astype("<f4").tobytes() in body]
    server = a_federation(version())

    live(server, NoisyTask())

    [sent_body] = server.bodies(TOPOLOGY.updates.name)
    assert body.startswith(sent_body)


# As if more than half of the range were used up.
ASKED = SealedState(weights=1_200_000, refreshes=3, asked="w1", asked_at=7)


def test_the_worker_that_is_asked_encrypts_the_sum_anew_once_and_trains_on() -> None:
    total = np.linspace(-30.5, 30.5, LAYOUT.size)
    record = version(7, total=total, state=ASKED)
    server, task = a_federation(record), NoisyTask()

    live(server, task, updates=3)

    refresh, *updates = sent_updates(server)
    assert refresh.refresh
    assert (refresh.refresh.refreshes, refresh.refresh.weights) == (3, 1_200_000)
    assert refresh.refresh.largest == 32, "it is rounded up, since what is decrypted tells of the key"
    assert (refresh.base_version, refresh.base_term, refresh.key) == (7, 1, KEY.key_id)
    assert [each.refresh for each in updates] == [None, None], (
        "and not once more for each look at the version"
    )
    assert refresh.id.sequence < updates[0].id.sequence
    np.testing.assert_allclose(decrypted(refresh), 0, atol=MOST_ERROR)
    renewed = unpack(record.sealed_sum, LAYOUT.size)
    add_weighted(renewed, residues_of(refresh))
    np.testing.assert_allclose(KEY.decrypt(renewed, LAYOUT.size), total, rtol=0, atol=MOST_ERROR)


def test_a_worker_that_is_asked_again_encrypts_the_newer_sum() -> None:
    first, again = np.full(LAYOUT.size, 1.1), np.full(LAYOUT.size, 2.2)
    server = a_federation(version(7, total=first, state=ASKED))

    def script(server: FakeServer, number: int) -> None:
        if number == 2:
            publish_versions(server, version(15, total=again, state=replace(ASKED, asked_at=15)))
        until(4)(server, number)

    live(server, NoisyTask(), script=script)

    refreshes = [each.refresh for each in sent_updates(server) if each.refresh]
    assert [each.largest for each in refreshes] == [1.125, 2.25]


def test_after_a_reset_a_worker_answers_what_the_federation_before_has_asked_too() -> None:
    record = version(7, total=np.ones(LAYOUT.size), state=ASKED)
    server = a_federation(record)

    def script(server: FakeServer, number: int) -> None:
        if number == 2:
            publish_versions(server, replace(record, term=1000, terms=(Rank(1000, 0),)))
        if number == 4:
            ended = version(1000, finished="enough")
            publish_versions(server, replace(ended, term=1000, terms=(Rank(1000, 0),)))

    live(server, NoisyTask(), script=script)

    assert [bool(each.refresh) for each in sent_updates(server)] == [True, False, True, False]


def test_a_worker_that_is_not_asked_refreshes_nothing() -> None:
    server = a_federation(version(7, total=np.ones(LAYOUT.size), state=replace(ASKED, asked="w2")))

    live(server, NoisyTask())

    assert [each.refresh for each in sent_updates(server)] == [None]


def test_a_worker_that_is_asked_without_need_refreshes_nothing() -> None:
    server = a_federation(version(7, total=np.ones(LAYOUT.size), state=replace(ASKED, weights=1_000_000)))

    live(server, NoisyTask())

    assert [each.refresh for each in sent_updates(server)] == [None]


@given(number=st.floats(0, LARGEST_VALUE))
def test_what_a_refresh_tells_of_the_largest_value_is_above_it_and_coarse(number: float) -> None:
    told = rounded_up(number)

    assert number <= told <= min(LARGEST_VALUE, number * 1.125)
    mantissa = math.frexp(told)[0] * 16
    assert told == LARGEST_VALUE or mantissa == int(mantissa)


def an_evaluator(task: NoisyTask, key: SealedKeys | None) -> Evaluator:
    return Evaluator(name="e1", task=task, topology=TOPOLOGY, sealed_key=key)


def test_an_evaluator_measures_the_decrypted_model() -> None:
    total = np.linspace(-30, 30, LAYOUT.size)
    server, task = a_federation(version(3, total=total)), NoisyTask()

    an_evaluator(task, KEY).work(lambda: Scripted(server, until(1)))

    np.testing.assert_allclose(task.evaluated[0], 0.5 + total / (2 * 64), rtol=0, atol=1e-6)
    assert [each.version for each in sent(server) if isinstance(each, Evaluation)] == [3]


@pytest.mark.parametrize(
    ("plan", "key", "says"),
    [
        (PLAN, None, "is sealed, and this evaluator has no key"),
        (None, KEY, "this evaluator insists on a sealed federation"),
        (PLAN, OTHER_KEY, "is sealed with the key"),
    ],
    ids=["no key", "not sealed", "another key"],
)
def test_an_evaluator_refuses_what_it_cannot_read(
    plan: SealedPlan | None, key: SealedKeys | None, says: str
) -> None:
    server, task = a_federation(version(plan=plan)), NoisyTask()

    with pytest.raises(ConfigError, match=says):
        an_evaluator(task, key).work(lambda: Scripted(server, until(1)))

    assert (sent(server), task.evaluated) == ([], [])
