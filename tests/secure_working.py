"""A worker of secure aggregation at work on a fake server, with a task whose secrets can be searched for."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from builders import a_version
from fake_broker import FakeServer
from secure_sites import PLAN
from working import TOPOLOGY, CountingTask, Scripted, ends_after, nothing

from fluffle.checked_task import CheckedTask
from fluffle.event_sink import Sinks
from fluffle.events import Event
from fluffle.model import Group, Vector, Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.secure.limbs import encode_limbs
from fluffle.secure.modulus import Signed
from fluffle.secure.plan import SecurePlan
from fluffle.survey.messages import Survey
from fluffle.task import Progress, Trained, Validated
from fluffle.topology import MIB
from fluffle.update import WeightUpdate
from fluffle_worker.loop import Worker, WorkerResult
from fluffle_worker.secure_keys import SecureKeys
from fluffle_worker.spool import open_spool

SIZE, STATISTICS = 4000, 3
LOSS = 0.123456789


class SecretTask(CountingTask):
    """Each round adds a delta of its own, and sets statistics; it holds out data too."""

    def __init__(
        self, *, spread: float = 0.5, moved: float = 2.5, meanwhile: Callable[[], None] = nothing
    ) -> None:
        super().__init__(meanwhile=meanwhile)
        self.spread, self.moved = spread, moved
        self.deltas: list[Vector] = []

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {
            "w": np.zeros(SIZE, np.float32),
            "mean": np.zeros(STATISTICS, np.float32),
            "steps": np.zeros(1, np.int64),
        }

    def tensor_groups(self) -> Mapping[str, Group]:
        """See GroupedTask."""
        return {"mean": "statistic", "steps": "statistic"}

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        delta = np.random.default_rng(seed).uniform(-self.spread, self.spread, SIZE).astype(np.float32)
        self.started_from.append(float(weights["w"][0]))
        self.meanwhile()
        self.deltas.append(delta)
        trained = {
            "w": weights["w"].astype(np.float32) + delta,
            "mean": np.full(STATISTICS, self.moved, np.float32),
            "steps": np.full(1, 77_777_777, np.int64),
        }
        return Trained(trained, examples=10, metrics={"loss": LOSS})

    def validate(self, weights: Weights) -> Validated:
        """See ValidatingTask."""
        return Validated(5, {"accuracy": 0.25})


LAYOUT = CheckedTask(SecretTask()).model().layout


def version(
    number: int = 0,
    secure: SecurePlan | None = PLAN,
    *,
    finished: str = "",
    survey: Survey | None = None,
    **plan: Any,
) -> ModelVersion:
    plan = {"updates_per_version": 100, **plan}
    record = a_version(
        number,
        values=[0.0] * SIZE,
        layout=LAYOUT,
        plan=Plan(secure=secure, **plan),
        finished=finished,
    )
    return replace(record, statistics=np.zeros(STATISTICS, np.float32), integers=bytes(8), survey=survey)


def until(count: int) -> Callable[[FakeServer, int], None]:
    """End the federation when so many messages were sent."""
    return ends_after(count, version(1000, finished="enough"))


def live(
    server: FakeServer,
    task: CountingTask,
    keys: SecureKeys | None,
    *,
    updates: int = 1,
    spool: Path = Path("spool"),
    **given: Any,
) -> WorkerResult:
    """One life of a worker, until so many updates were sent."""
    with open_spool(spool, worker="w1", max_bytes=MIB) as opened:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=opened, keys=keys, **given)
        return worker.work(lambda: Scripted(server, until(updates)))


def expected_numbers(task: SecretTask, at: int, update: WeightUpdate, plan: SecurePlan = PLAN) -> Signed:
    """Return the whole numbers of a round: the same seed rounds them the same way."""
    random = np.random.default_rng([0, update.id.sequence, 1])
    delta = np.zeros(SIZE, np.float32) + task.deltas[at]
    encoded = plan.fixed_point.encode(delta, random)
    statistics = encode_limbs(np.full(STATISTICS, task.moved, np.float32), plan.bits)
    return np.concatenate([encoded, statistics]).view(np.int32)


def noting(events: list[Event]) -> Sinks:
    class Noting(Sinks):
        def __call__(self, event: Event) -> None:
            events.append(event)

    return Noting()
