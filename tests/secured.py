"""A federation with secure aggregation on a real broker, whose workers the test plays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from federation import Federation, Part, applied_ids

from fluffle.codecs.floats import Float32Vector
from fluffle.model import Layout, Vector
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model, write_model
from fluffle.secure.key_files import WorkerKey, read_operator, read_private
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.measured import measured_values
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, read_registry
from fluffle.secure.weights import factor_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_aggregator.secure.combinations import USUAL_METRICS
from fluffle_cli.demo.keys import Keys

PARAMETERS = 1000
WORKERS = tuple(f"site-{number}" for number in range(4))
# In the order in which they come: three to a version, and each worker once in each.
SENDERS = ("site-0", "site-1", "site-2", "site-3", "site-0", "site-1")
K = 3
# As the aggregator makes it of its flags.
PLAN = SecurePlan(epoch=1, clip=4.0, bits=16, modulus_bits=32, greatest=64, metrics=USUAL_METRICS)


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
        registry = self.registry
        plan = replace(PLAN, epoch=registry.epoch).of_keys(registry.keys_digest)
        return Masks(registry, key.private).masked(plain, self.numbers(number), plan)

    def numbers(self, number: int) -> Residues:
        measured = measured_values(None, PLAN)
        return whole_numbers(self.delta(number), measured, PLAN, np.random.default_rng(number))

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
                numbers = self.numbers(number)[:PARAMETERS]
                add_multiple(total, numbers, factor_of(staleness, PLAN.greatest))
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
