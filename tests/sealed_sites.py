"""Workers and evaluators of a sealed federation at work on a fake server, with a real key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from builders import a_version
from fake_broker import FakeServer
from numpy.typing import ArrayLike
from working import TOPOLOGY, CountingTask, Scripted, ends_after, nothing

from fluffle.checked_task import CheckedTask
from fluffle.codecs.sealed import SealedVector
from fluffle.model import Vector, Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.sealed.keys import SealedKeys, new_secret
from fluffle.sealed.plan import SEALED, SealedPlan, SealedState
from fluffle.sealed.residues import Residues, pack, unpack
from fluffle.task import Progress, Trained
from fluffle.topology import MIB
from fluffle.update import WeightUpdate
from fluffle_worker.loop import Worker, WorkerResult
from fluffle_worker.spool import open_spool

KEY, OTHER_KEY = SealedKeys(new_secret()), SealedKeys(new_secret())
# More than one ciphertext holds.
SIZE = 3000
PLAN = SealedPlan(key=KEY.key_id, clip=0.5, greatest=64, buffer_size=2)


class NoisyTask(CountingTask):
    """Each round adds a delta of its own to the one tensor."""

    def __init__(self, *, spread: float = 0.4, meanwhile: Callable[[], None] = nothing) -> None:
        super().__init__(meanwhile=meanwhile)
        self.spread = spread
        self.deltas: list[Vector] = []
        self.bases: list[Vector] = []
        self.evaluated: list[Vector] = []

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {"head/w": np.zeros(SIZE, np.float32), "body/w": np.zeros(10, np.float32)}

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        random = np.random.default_rng(seed)
        self.meanwhile()
        changed = {
            name: values + random.uniform(-self.spread, self.spread, values.shape).astype(np.float32)
            for name, values in weights.items()
        }
        self.bases.append(_flat(weights))
        self.deltas.append(_flat(changed) - self.bases[-1])
        return Trained(changed, examples=10, metrics={"loss": 0.5})

    def evaluate(self, weights: Weights) -> dict[str, float]:
        """See Task."""
        self.evaluated.append(_flat(weights))
        return {"accuracy": 0.5}


LAYOUT = CheckedTask(NoisyTask()).model().layout


def _flat(weights: Weights) -> Vector:
    return np.concatenate([np.asarray(values, np.float32).reshape(-1) for values in weights.values()])


def version(
    number: int = 0,
    plan: SealedPlan | None = PLAN,
    *,
    total: ArrayLike | None = None,
    key: SealedKeys = KEY,
    state: SealedState | None = None,
    finished: str = "",
    **given: Any,
) -> ModelVersion:
    """Return a version of which the sum has these values, encrypted; its version 0 has a half everywhere."""
    codec = SEALED if plan else "float32"
    record = a_version(
        number,
        values=[0.5] * LAYOUT.size,
        layout=LAYOUT,
        plan=Plan(sealed=plan, codec=codec, updates_per_version=100, **given),
        finished=finished,
    )
    if plan is None:
        return record
    state = state or SealedState(weights=0 if total is None else 64)
    sealed = b"" if total is None else pack(key.encrypt(np.asarray(total, np.float64)))
    return replace(record, sealed=state, sealed_sum=sealed)


def until(count: int) -> Callable[[FakeServer, int], None]:
    """End the federation when so many messages were sent."""
    return ends_after(count, version(1000, finished="enough"))


def live(
    server: FakeServer,
    task: CountingTask,
    key: SealedKeys | None = KEY,
    *,
    updates: int = 1,
    spool: Path = Path("spool"),
    script: Callable[[FakeServer, int], None] | None = None,
    **given: Any,
) -> WorkerResult:
    """One life of a worker, until so many messages were sent."""
    with open_spool(spool, worker="w1", max_bytes=MIB) as opened:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=opened, sealed_key=key, **given)
        return worker.work(lambda: Scripted(server, script or until(updates)))


def residues_of(update: WeightUpdate) -> Residues:
    """Return the ciphertexts of an update."""
    assert isinstance(update.vector, SealedVector), "it is not sealed"
    return unpack(update.vector.sealed, update.vector.sealed_size)


def decrypted(update: WeightUpdate, key: SealedKeys = KEY) -> np.ndarray:
    """Return what is encrypted in an update."""
    assert isinstance(update.vector, SealedVector), "it is not sealed"
    return key.decrypt(residues_of(update), update.vector.sealed_size)
