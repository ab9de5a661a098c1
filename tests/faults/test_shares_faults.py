"""Noise in shares with real processes that are killed: the same sums, and no budget is exceeded."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Part, applied_ids
from injection import inject_death, moments
from real_history import PARAMETERS, write_initial_model
from secured import as_flags

from fluffle.codecs.floats import Float32Vector
from fluffle.model import Layout, Vector
from fluffle.privacy.shares import shares_of
from fluffle.privacy.skellam import encode_within
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model
from fluffle.secure.key_files import WorkerKey, read_operator, read_private
from fluffle.secure.masking import Masks
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, read_registry
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.node import BrokerNode
from fluffle_worker.released import NAME

SITES, UPDATES, K = 4, 3, 3
SENDERS = ("site-0", "site-1", "site-2")


class Shared:
    """A federation whose workers add shares of noise, with its helpers."""

    def __init__(self, running: Federation) -> None:
        self.running, self.keys = running, Keys(running.folder / "keys")
        self.keys.make(running.name, [f"site-{site}" for site in range(SITES)])
        self.helpers = [
            running.start(name, "fluffle_helper", *as_flags(self.keys.of_helper(name))) for name in HELPERS
        ]

    def aggregator(self, name: str, *flags: str) -> Part:
        return self.running.aggregator(
            name,
            *("--dp", "distributed", "--dp-epsilon", "50", "--dp-clip", "4"),
            *("--dp-max-updates", str(UPDATES), "--secure-aggregation", *as_flags(self.keys.public)),
            *("--buffer-size", str(K), "--buffer-timeout", "3", "--heartbeat-s", "2", *flags),
        )

    def worker(self, site: int) -> Part:
        return self.running.worker(site, *as_flags(self.keys.of(f"site-{site}")), sites=SITES)

    @property
    def registry(self) -> Registry:
        text = (self.keys.folder / "registry.json").read_text()
        return read_registry(text, read_operator(self.keys.folder / "operator.pub"))

    def send(self, number: int, worker: str, plan: SecurePlan, numbers: Residues) -> UpdateId:
        """Send what a worker sends, masked with its own key."""
        layout = Layout.of(read_model(self.running.folder / "initial.safetensors"))
        plain = WeightUpdate(
            federation=self.running.name,
            id=UpdateId(worker, "run", number),
            base_term=1,
            base_version=0,
            layout_digest=layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(np.zeros(PARAMETERS, np.float32)),
            examples=1,
            released=number,
        )
        key = read_private(self.keys.folder / "workers" / f"{worker}.key", WorkerKey)
        update = Masks(self.registry, key.private).masked(plain, numbers, plan)
        with self.running.connect() as broker:
            exchange = self.running.topology.updates_in.name
            broker.publish_as(worker, exchange, "", encode_update(update), {"kind": "update"})
        return update.id


@pytest.fixture
def shared(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Shared]:
    (tmp_path / "rounds").write_text("1000")
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.gated_sum_task:task") as running:
        yield Shared(running)


def noisy(random: np.random.Generator, record: ModelVersion) -> Residues:
    """Return an update in whole numbers with its share of the noise, by the plan of a version."""
    promised, secure = record.plan.privacy, record.plan.secure
    assert promised is not None
    assert secure is not None
    vector = random.standard_normal(PARAMETERS).astype(np.float32)
    numbers = encode_within(secure.fixed_point, vector, shares_of(promised).l2, random)
    shares_of(promised).add_share(numbers, random)
    return numbers


def after(start: Vector, numbers: list[Residues], plan: SecurePlan) -> Vector:
    total = np.zeros(PARAMETERS, np.uint32)
    for each in numbers:
        add_multiple(total, each)
    delta = plan.fixed_point.decode(plan.modulus.signed(total), 1)
    return start + np.divide(delta, np.float32(len(numbers)))


MOMENTS = {
    "between the sum and the question": 'kind == "sum" and count == 1 and not before',
    "after the question": 'kind == "close" and count == 1 and not before',
    "after the commit and before the acks": 'kind == "version" and count == 3 and not before',
}


@pytest.mark.parametrize("moment", moments(MOMENTS, "after the question"))
def test_the_next_leader_opens_the_same_noisy_sum_to_the_last_bit_and_each_update_is_counted_once(
    shared: Shared, tmp_path: Path, moment: str
) -> None:
    write_initial_model(tmp_path)
    flags = ("--initial-model", "initial.safetensors", "--max-updates", str(K))
    inject_death(tmp_path, MOMENTS[moment])
    first = shared.aggregator("first", *flags)
    first.wait_for("leading")
    record, random = shared.running.newest(), np.random.default_rng(5)
    secure = record.plan.secure
    assert secure is not None
    numbers = [noisy(random, record) for _ in SENDERS]
    ids = {shared.send(1, worker, secure, each) for worker, each in zip(SENDERS, numbers, strict=True)}
    assert first.wait_for_exit() == -signal.SIGKILL

    assert shared.aggregator("second", *flags).wait_for_exit() == 0

    final = shared.running.newest()
    assert final.vector.tobytes() == after(record.vector, numbers, secure).tobytes()
    assert applied_ids(final) == ids
    assert final.privacy is not None
    assert {name: each.updates for name, each in final.privacy.participations.items()} == dict.fromkeys(
        SENDERS, 1
    )
    assert final.privacy.steps == 1
    assert shared.running.waiting_in(shared.running.topology.rejected.name) == set()
    assert [each.wait_for_exit() for each in shared.helpers] == [0, 0, 0]


def test_workers_keep_to_their_budget_though_the_leader_is_killed_and_one_loses_its_folder(
    shared: Shared, tmp_path: Path
) -> None:
    leader = shared.aggregator("first")
    leader.wait_for("leading")
    workers = [shared.worker(site) for site in range(SITES)]
    leader.wait_for("version committed", 1)
    leader.kill()
    lost = SENDERS.index(min(each.worker for each in applied_ids(shared.running.newest())))
    workers[lost].kill()
    [ledger] = [path for path in tmp_path.rglob(NAME) if SENDERS[lost] in str(path)]
    shutil.rmtree(ledger.parent)
    second = shared.aggregator("second")
    second.wait_for("leading")
    workers[lost] = shared.worker(lost)

    assert second.wait_for_exit() == 0
    assert [each.wait_for_exit() for each in workers] == [0] * SITES

    final = shared.running.newest()
    assert final.finished.endswith("have sent the 3 updates that the privacy budget allows")
    assert final.privacy is not None
    assert all(each.updates <= UPDATES for each in final.privacy.participations.values())
    applied = [each.worker for each in applied_ids(final)]
    assert all(applied.count(f"site-{site}") <= UPDATES for site in range(SITES))
    assert len(applied) >= 3 * K
    # What is left makes no sum of three workers, and came after the end.
    assert len(shared.running.waiting_in(shared.running.topology.rejected.name)) < K


def test_an_aggregator_whose_numbers_do_not_fit_says_which_would(shared: Shared) -> None:
    refused = shared.aggregator("first", "--buffer-size", "2000", "--secure-modulus", "16")

    assert refused.wait_for_exit() == 2
    assert "updates fit; take a larger epsilon, or raise secure_modulus" in refused.log.read_text()
