"""Secure aggregation with real helpers on a real broker: killed, frozen, or without their disk.

Updates come from the test, so that what the model must be is known to the last bit: the integer sum without
masks.
"""

import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Part, applied_ids
from injection import inject

from fluffle.codecs.floats import Float32Vector
from fluffle.model import Layout, Vector
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model, write_model
from fluffle.secure.key_files import WorkerKey, read_operator, read_private
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, read_registry
from fluffle.secure.weights import factor_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.node import BrokerNode

PARAMETERS = 1000
WORKERS = tuple(f"site-{number}" for number in range(4))
# In the order in which they come: three to a version, and each worker once in each.
SENDERS = ("site-0", "site-1", "site-2", "site-3", "site-0", "site-1")
K = 3
PLAN = SecurePlan(epoch=1, clip=4.0, bits=16, modulus_bits=32, greatest=64)


class Secured:
    """A federation with secure aggregation, whose workers the test plays."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.keys = Keys(federation.folder / "keys")
        self.keys.make(federation.name, WORKERS)
        weights = {"kernel": np.random.default_rng(0).standard_normal(PARAMETERS, np.float32)}
        write_model(federation.folder / "initial.safetensors", weights)
        self.start_vector: Vector = weights["kernel"]
        self.layout = Layout.of(read_model(federation.folder / "initial.safetensors"))

    @property
    def registry(self) -> Registry:
        text = (self.keys.folder / "registry.json").read_text()
        return read_registry(text, read_operator(self.keys.folder / "operator.pub"))

    def helper(self, name: str, key: Path | None = None) -> Part:
        flags = self.keys.of_helper(name) | ({"secure_key": key} if key else {})
        number = len(self.federation.parts)
        return self.federation.start(f"{name}-{number}", "fluffle_helper", *as_flags(flags))

    def aggregator(self, name: str, *flags: str, updates: int = len(SENDERS)) -> Part:
        return self.federation.aggregator(
            name,
            *("--secure-aggregation", *as_flags(self.keys.public), "--initial-model", "initial.safetensors"),
            *("--secure-clip", f"{PLAN.clip:g}", "--secure-bits", "16", "--secure-modulus", "32"),
            *("--buffer-size", str(K), "--max-updates", str(updates), "--heartbeat-s", "2", *flags),
        )

    def delta(self, number: int) -> Vector:
        return np.random.default_rng(number).standard_normal(PARAMETERS).astype(np.float32)

    def update(self, number: int, *, base_version: int = 0, base_term: int = 1) -> WeightUpdate:
        worker = SENDERS[number % len(SENDERS)]
        sequence = [name for at, name in enumerate(SENDERS * 4) if name == worker and at <= number]
        plain = WeightUpdate(
            federation=self.federation.name,
            id=UpdateId(worker, "run", len(sequence)),
            base_term=base_term,
            base_version=base_version,
            layout_digest=self.layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(self.delta(number)),
            examples=10,
        )
        key = read_private(self.keys.folder / "workers" / f"{worker}.key", WorkerKey)
        return Masks(self.registry, key.private).masked(plain, self.numbers(number), PLAN)

    def numbers(self, number: int) -> Residues:
        empty = np.empty(0, np.float32)
        return whole_numbers(self.delta(number), empty, PLAN, np.random.default_rng(number))

    def send(self, numbers: Sequence[int], **base: int) -> None:
        with self.federation.connect() as broker:
            for number in numbers:
                update = self.update(number, **base)
                exchange = self.federation.topology.updates_in.name
                broker.publish_as(update.id.worker, exchange, "", encode_update(update), {"kind": "update"})

    def expected(self, steps: Sequence[Sequence[tuple[int, int]]]) -> Vector:
        """Return the model after steps, each of numbers of updates and their staleness, without any mask."""
        vector = self.start_vector.copy()
        for step in steps:
            total = np.zeros(PARAMETERS, np.uint32)
            for number, staleness in step:
                add_multiple(total, self.numbers(number), factor_of(staleness, PLAN.greatest))
            delta = PLAN.fixed_point.decode(PLAN.modulus.signed(total), PLAN.greatest)
            vector += np.divide(delta, np.float32(len(step)))
        return vector

    def assert_all_in(self, final: ModelVersion) -> None:
        """All six updates are in the model once, to the last bit, and nothing is left over."""
        steps = [[(0, 0), (1, 0), (2, 0)], [(3, 1), (4, 1), (5, 1)]]
        assert final.vector.tobytes() == self.expected(steps).tobytes()
        assert applied_ids(final) == {self.update(number).id for number in range(len(SENDERS))}
        for queue in (self.federation.topology.rejected, self.federation.topology.updates):
            assert self.federation.waiting_in(queue.name) == set()


def as_flags(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def secured(node: BrokerNode, tmp_path: Path, federation: str) -> Iterator[Secured]:
    with Federation(federation, node.amqp_url, tmp_path) as running:
        yield Secured(running)


# A sum goes before each of the two versions; the first version is version 0's, the first ack the hello's.
MOMENTS = {
    "before the sum": 'kind == "sum" and count == 2 and before',
    "between the sum and the question": 'kind == "sum" and count == 2 and not before',
    "after the question": 'kind == "close" and count == 2 and not before',
    "before the commit": 'kind == "version" and count == 3 and before',
    "after the commit and before the acks": 'kind == "version" and count == 3 and not before',
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_the_leader_is_killed_the_next_one_opens_the_same_sum_to_the_last_bit(
    secured: Secured, tmp_path: Path, moment: str
) -> None:
    for name in HELPERS:
        secured.helper(name)
    code = f"""
def moment(kind, count, before):
    if {MOMENTS[moment]} and once({str(tmp_path / "died")!r}):
        die()
"""
    inject(tmp_path, code, at_each_call=True)
    first = secured.aggregator("first")
    first.wait_for("leading")
    secured.send(range(len(SENDERS)))
    assert first.wait_for_exit() == -signal.SIGKILL

    assert secured.aggregator("second").wait_for_exit() == 0

    secured.assert_all_in(secured.federation.newest())


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_one_helper_of_three_may_be_killed_or_frozen_and_nobody_waits_for_it_twice(
    secured: Secured, how: str
) -> None:
    gone, *_ = [secured.helper(name) for name in HELPERS]
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    if how == "killed":
        gone.kill()
    else:
        gone.process.send_signal(signal.SIGSTOP)
    secured.send(range(3, 6))

    assert aggregator.wait_for_exit() == 0
    secured.assert_all_in(secured.federation.newest())
    if how == "frozen":
        gone.process.send_signal(signal.SIGCONT)


def test_without_two_helpers_the_federation_waits_says_so_and_goes_on_when_one_is_back(
    secured: Secured,
) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    for name in HELPERS[:2]:
        parts[name].kill()
    secured.send(range(3, 6))
    aggregator.wait_for("the sum waits for helpers")
    [said] = aggregator.events("the sum waits for helpers")
    assert "helper-1 or helper-2" in str(said["missing"])

    back = secured.helper(HELPERS[1])

    assert aggregator.wait_for_exit() == 0
    back.wait_for("opened a sum")
    secured.assert_all_in(secured.federation.newest())


def test_a_helper_without_its_ledger_opens_nothing_and_the_two_others_go_on(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    parts[HELPERS[0]].kill()
    (secured.keys.folder / "epoch-1" / f"{HELPERS[0]}.ledger").unlink()

    lost = secured.helper(HELPERS[0])

    assert lost.wait_for_exit() == 2
    assert "is lost: without it a helper cannot know" in lost.log.read_text()
    secured.send(range(3, 6))
    assert aggregator.wait_for_exit() == 0
    secured.assert_all_in(secured.federation.newest())


def test_a_helper_that_is_killed_remembers_what_it_has_opened(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first", updates=12)
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    for part in parts.values():
        part.kill()
    again = [secured.helper(name) for name in HELPERS]
    secured.send(range(3, 6))
    secured.send(range(6, 12), base_version=0)

    assert aggregator.wait_for_exit() == 0
    final = secured.federation.newest()
    assert final.updates == 12
    assert final.last_sum
    assert final.last_sum.number == 4
    for part in again:
        assert not part.events("refused to open a sum")


def test_keys_are_rotated_while_the_federation_runs_and_late_updates_are_refused(secured: Secured) -> None:
    parts = {name: secured.helper(name) for name in HELPERS}
    aggregator = secured.aggregator("first", updates=9)
    aggregator.wait_for("leading")
    secured.send(range(3))
    aggregator.wait_for("version committed")
    late = secured.update(3)
    keys = secured.keys.folder
    said = secured.federation.fluffle("keys", "rotate", "--folder", str(keys))
    assert said.returncode == 0, said.stderr
    # Each helper's new files are moved over the old ones.
    for name in HELPERS:
        for kind in ("key", "ledger"):
            shutil.move(keys / "epoch-2" / f"{name}.{kind}", keys / "epoch-1" / f"{name}.{kind}")
    aggregator.wait_for("leading", 2)
    for part in parts.values():
        part.wait_for("using the keys of an epoch", 2)
    newest = secured.federation.newest()
    assert newest.plan.secure
    assert newest.plan.secure.epoch == 2
    with secured.federation.connect() as broker:
        exchange = secured.federation.topology.updates_in.name
        broker.publish_as(late.id.worker, exchange, "", encode_update(late), {"kind": "update"})
    secured.send(range(4, 10), base_version=newest.version, base_term=newest.term)

    assert aggregator.wait_for_exit() == 0
    [refused] = aggregator.events("refused")[:1]
    assert refused["reason"] == "other-epoch"
    final = secured.federation.newest()
    assert final.updates == 9
    assert final.last_sum
    assert (final.last_sum.epoch, final.last_sum.number) == (2, 2)


def test_two_processes_of_one_helper_are_not_at_work_at_once(secured: Secured, tmp_path: Path) -> None:
    aggregator = secured.aggregator("first")
    aggregator.wait_for("leading")
    first = secured.helper(HELPERS[0])
    first.wait_for("using the keys of an epoch")
    beside = secured.helper(HELPERS[0])
    assert beside.wait_for_exit() == 2
    assert "is this helper running already?" in beside.log.read_text()
    # On another machine, with a copy of all files.
    shutil.copytree(secured.keys.folder / "epoch-1", tmp_path / "elsewhere")
    copy = secured.helper(HELPERS[0], key=tmp_path / "elsewhere" / f"{HELPERS[0]}.key")

    assert copy.wait_for_exit() == 2
    assert "another process" in copy.log.read_text()
