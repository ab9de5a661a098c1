"""A sealed federation with real processes and a real key: whoever dies, the sum has the same bits."""

import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brokers import all_versions
from federation import Federation, Part, applied_ids, assert_refused, wait_until
from injection import inject, inject_death
from real_history import PARAMETERS, assert_history_is_one_line, send, some_updates, write_initial_model
from searched_memory import files_below, memory_of
from tasks.gated_sum_task import DELTA

from fluffle.codecs.compressed import decompressed
from fluffle.codecs.sealed import SealedVector
from fluffle.errors import ConfigError
from fluffle.model import Vector
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model
from fluffle.sealed.keys import SealedKeys
from fluffle.sealed.parameters import PRIME
from fluffle.sealed.plan import SEALED
from fluffle.sealed.residues import add_packed, pack, zeros
from fluffle.update import WeightUpdate
from fluffle_cli.making_sealed_key import make_key
from fluffle_cli.node import BrokerNode
from fluffle_worker.sealed_versions import opened

SEALED_FLAGS = ("--sealed", "sealed.public")
SECRET = ("--sealed-secret", "sealed.secret")
FLAGS = (
    *SEALED_FLAGS,
    *("--sealed-clip", "6", "--buffer-size", "2", "--max-updates", "6"),
    *("--initial-model", "initial.safetensors"),
)
# The first version is version 0's, and the first ack the hello's.
MOMENTS = {
    "before the commit": 'kind == "version" and count == 3 and before',
    "between the acks of one batch": 'kind == "ack" and count == 4',
}
# With it, half of the range of ciphertexts is used by the eighth update of weight 64.
WIDE_CLIP = "1000"
GATED = "tasks.gated_sum_task:task"


def a_key(folder: Path) -> SealedKeys:
    make_key(folder)
    return SealedKeys.read(folder / "sealed.secret")


def sealed_updates(running: Federation, key: SealedKeys, count: int) -> list[WeightUpdate]:
    """Encrypt what two workers send, all from version 0."""
    return [_sealed(update, key) for update in some_updates(running, count)]


def _sealed(update: WeightUpdate, key: SealedKeys) -> WeightUpdate:
    vector = SealedVector.of(key.encrypt(decompressed(update.vector)), PARAMETERS, np.empty(0, np.float32))
    return replace(update, codec=SEALED, vector=vector, key=key.key_id)


def model_of(version: ModelVersion, key: SealedKeys) -> Vector:
    """Return the model of a version, decrypted."""
    plan = version.plan.sealed
    assert plan, "the version is not sealed"
    return opened(version, plan, key).vector


@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_the_aggregator_is_killed_the_next_one_goes_on_with_the_same_ciphertexts(
    node: BrokerNode, tmp_path: Path, federation: str, moment: str
) -> None:
    key = a_key(tmp_path)
    write_initial_model(tmp_path)
    inject_death(tmp_path, MOMENTS[moment])
    with Federation(federation, node.amqp_url, tmp_path) as running:
        first = running.aggregator("first", *FLAGS)
        first.wait_for("leading")
        updates = sealed_updates(running, key, 6)
        send(running, updates)
        assert first.wait_for_exit() == -signal.SIGKILL

        second = running.aggregator("second", *FLAGS)
        assert second.wait_for_exit() == 0

        final = assert_history_is_one_line(running)[-1]
        assert applied_ids(final) == {update.id for update in updates}
        assert running.waiting_in(running.topology.rejected.name) == set()
    total, exact = zeros(PARAMETERS), np.zeros(PARAMETERS)
    # Two updates for each version, and so one more version late each.
    for update, plain, weight in zip(
        updates, some_updates(running, 6), (64, 64, 45, 45, 37, 37), strict=True
    ):
        assert isinstance(update.vector, SealedVector)
        add_packed(total, update.vector.sealed, PARAMETERS, weight)
        exact += weight * decompressed(plain.vector).astype(np.float64)
    assert final.sealed_sum == pack(total)
    begun = read_model(tmp_path / "initial.safetensors")["kernel"].astype(np.float64)
    expected = begun + exact / (2 * 64)
    np.testing.assert_allclose(model_of(final, key), expected, rtol=0, atol=1e-6)


def begin_gated(running: Federation, *, updates: int) -> tuple[Part, Part]:
    """Start two aggregators whose range of ciphertexts is soon used up by half."""
    (running.folder / "rounds").write_text("1000")
    flags = (*SEALED_FLAGS, "--sealed-clip", WIDE_CLIP, "--buffer-size", "1", "--max-updates", str(updates))
    leader = running.aggregator("first", *flags)
    leader.wait_for("leading")
    standby = running.aggregator("second", *flags)
    standby.wait_for("standing by")
    return leader, standby


def assert_right_through_refreshes(running: Federation, key: SealedKeys, *, updates: int) -> ModelVersion:
    """Each update is in the model once, with its weight, however often the sum was encrypted anew."""
    with running.connect() as broker:
        history = list(all_versions(broker, running.topology))
    final = running.newest()
    folded = [one for version in history for one in version.folded]
    assert len(folded) == len({one.id for one in folded}) == final.updates == updates
    assert final.sealed, "the version is not sealed"
    assert final.sealed.refreshes >= 2
    weights = sum(one.weight for one in folded)
    np.testing.assert_allclose(model_of(final, key), weights * DELTA, rtol=1e-6)
    return final


def test_workers_encrypt_the_sum_anew_before_its_range_is_used_up_though_the_leader_is_killed(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    key = a_key(tmp_path)
    with Federation(federation, node.amqp_url, tmp_path, task=GATED) as running:
        leader, standby = begin_gated(running, updates=40)
        workers = [running.worker(site, *SECRET, "--delay", "0.05", sites=2) for site in range(2)]
        leader.wait_for("version committed", 5)
        leader.kill()

        assert [part.wait_for_exit() for part in (standby, *workers)] == [0, 0, 0]

        assert_right_through_refreshes(running, key, updates=40)


DYING_WORKER = """
import sys
if any("fluffle_worker" in word for word in sys.orig_argv):
    from fluffle_worker.sealing import SealedSite
    right = SealedSite.add_refresh

    def dying(self, spool, version, worker):
        is_asked = version.sealed is not None and version.sealed.asked == worker
        if is_asked and {before} and once({marker!r}):
            die()
        is_added = right(self, spool, version, worker)
        if is_added and once({marker!r}):
            die()
        return is_added

    SealedSite.add_refresh = dying
"""


@pytest.mark.long
@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "is gone"])
@pytest.mark.parametrize("before", [True, False], ids=["before it has it", "with it in its spool"])
def test_a_worker_that_is_killed_when_it_is_asked_for_a_refresh_holds_nobody_up(
    node: BrokerNode, tmp_path: Path, federation: str, *, before: bool, comes_back: bool
) -> None:
    key = a_key(tmp_path)
    inject(tmp_path, DYING_WORKER.format(before=before, marker=str(tmp_path / "died")))
    with Federation(federation, node.amqp_url, tmp_path, task=GATED) as running:
        leader, standby = begin_gated(running, updates=60)
        workers = [running.worker(site, *SECRET, "--delay", "0.05", sites=3) for site in range(3)]
        wait_until(lambda: any(part.process.poll() is not None for part in workers), "a worker to die")
        [dead] = [site for site, part in enumerate(workers) if part.process.poll() == -signal.SIGKILL]
        living = [part for site, part in enumerate(workers) if site != dead]
        if comes_back:
            living.append(running.worker(dead, *SECRET, "--delay", "0.05", sites=3))

        assert [part.wait_for_exit() for part in (leader, standby, *living)] == [0] * (2 + len(living))

        assert_right_through_refreshes(running, key, updates=60)


@pytest.mark.long
def test_neither_the_aggregators_memory_nor_the_brokers_disk_holds_an_update_or_the_model(
    tmp_path: Path,
) -> None:
    key = a_key(tmp_path)
    write_initial_model(tmp_path)
    with (
        BrokerNode.start(tmp_path / "broker", management=False) as node,
        Federation("unseen", node.amqp_url, tmp_path) as running,
    ):
        aggregator = running.aggregator("first", *FLAGS, "--max-updates", "100")
        aggregator.wait_for("leading")
        send(running, sealed_updates(running, key, 5))
        aggregator.wait_for("version committed", 2)
        newest = running.newest()

        # One waits in the buffer. What is searched for can be found: version 0, which is public.
        part = slice(PARAMETERS // 2, PARAMETERS // 2 + 16)
        begun = newest.vector[part].tobytes()
        in_memory, on_disk = list(memory_of(aggregator)), list(files_below(node.folder))
        assert any(begun in each for each in in_memory)
        assert any(begun in each for each in on_disk)
        hidden = {
            "the model": model_of(newest, key)[part],
            **{str(each.id): decompressed(each.vector)[part] for each in some_updates(running, 5)},
        }
        for what, values in hidden.items():
            for form in (values.astype("<f4").tobytes(), values.astype("<f8").tobytes()):
                assert not any(form in each for each in in_memory), f"{what} in the memory"
                assert not any(form in each for each in on_disk), f"{what} on the disk"


@pytest.mark.long
def test_who_has_no_key_or_another_one_ends_with_a_sentence_and_the_model_is_exported_with_the_key(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    key = a_key(tmp_path)
    (tmp_path / "other").mkdir()
    other = a_key(tmp_path / "other")
    (tmp_path / "rounds").write_text("1000")
    with Federation(federation, node.amqp_url, tmp_path, task=GATED) as running:
        leader = running.aggregator(
            "first", *SEALED_FLAGS, "--sealed-clip", "10", "--buffer-size", "1", "--max-updates", "3"
        )
        leader.wait_for("leading")
        # At once: each takes long to start.
        refused = [
            (running.worker(0), ["is sealed, and this worker has no key"]),
            (running.worker(1, "--sealed-secret", "other/sealed.secret"), [key.key_id, other.key_id]),
            (running.worker(2, "--sealed-secret", "sealed.public"), ["is the public file of a key"]),
            (running.evaluator(), ["is sealed, and this evaluator has no key"]),
        ]
        for part, words in refused:
            assert_refused(part, *words)
        assert running.worker(3, *SECRET).wait_for_exit() == 0
        assert leader.wait_for_exit() == 0

        export = ("model", "export", "--out", "model.safetensors")
        without, wrong = (
            running.fluffle(*export, *flags) for flags in ((), ("--sealed-secret", "other/sealed.secret"))
        )
        assert not (tmp_path / "model.safetensors").exists()
        done = running.fluffle(*export, *SECRET)
        kept = running.fluffle("model", "export", "--out", "model.fluffle")
    assert (without.returncode, wrong.returncode) == (2, 2)
    assert re.search(r"is sealed, and this command has no key: give --sealed-secret", without.stderr)
    assert other.key_id in wrong.stderr
    assert (done.returncode, kept.returncode) == (0, 0), done.stderr + kept.stderr
    exported = read_model(tmp_path / "model.safetensors")["w"].astype(np.float64)
    np.testing.assert_allclose(exported, 3 * DELTA, rtol=1e-6)


@pytest.mark.long
def test_a_federation_whose_sum_was_spoiled_goes_back_to_a_sealed_version_of_before(
    tmp_path: Path,
) -> None:
    key = a_key(tmp_path)
    write_initial_model(tmp_path)
    flags = (
        *SEALED_FLAGS,
        "--sealed-clip",
        "6",
        "--buffer-size",
        "1",
        "--initial-model",
        "initial.safetensors",
    )
    with (
        BrokerNode.start(tmp_path / "broker") as node,
        Federation("spoiled", node.amqp_url, tmp_path) as running,
    ):
        leader = running.aggregator("first", *flags)
        leader.wait_for("leading")
        honest, lie = sealed_updates(running, key, 2)
        send(running, [honest])
        leader.wait_for("version committed")
        assert isinstance(lie.vector, SealedVector)
        noise = np.random.default_rng(0).integers(0, PRIME, zeros(PARAMETERS).shape, np.uint64)
        send(running, [replace(lie, vector=SealedVector.of(noise, PARAMETERS, np.empty(0, np.float32)))])
        leader.wait_for("version committed", 2)
        before, spoiled = model_at(running, 1), running.newest()
        with pytest.raises(ConfigError, match="decrypts to values up to"):
            model_of(spoiled, key)
        leader.ask_to_stop()
        assert leader.wait_for_exit() == 0

        for command in (
            ("model", "export", "--version", "1", "--out", "before.fluffle"),
            ("federation", "reset", "spoiled", "--yes", "--management-url", node.management_url),
            ("model", "restore", "before.fluffle"),
        ):
            done = running.fluffle(*command)
            assert done.returncode == 0, done.stderr
        again = running.aggregator("second", *flags, "--max-updates", "2")
        again.wait_for("leading")
        send(running, [replace(sealed_updates(running, key, 4)[3], base_term=before.term, base_version=1)])
        assert again.wait_for_exit() == 0

        final = running.newest()
        assert final.updates == 2
        assert honest.id in final.applied
        assert lie.id not in final.applied
        assert np.isfinite(model_of(final, key)).all()


def model_at(running: Federation, number: int) -> ModelVersion:
    """Return a version by its number."""
    with running.connect() as broker:
        return next(each for each in all_versions(broker, running.topology) if each.version == number)
