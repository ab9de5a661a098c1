"""One round of local training: from a version of the model to a weight update. No broker, no disk."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fluffle.checked_task import CheckedTask
from fluffle.codecs.floats import Float32Vector
from fluffle.model import Vector, Weights, some_of
from fluffle.record import ModelVersion, not_finite
from fluffle.task import Progress
from fluffle.update import UpdateId, WeightUpdate


@dataclass(frozen=True, slots=True, eq=False)
class TrainedUpdate:
    """The result of a round: an update in float32, a view of its elements, and the new local weights.

    `metrics` are those of the training data. `unusable` says why the update must not be sent; empty when it
    may be.
    """

    update: WeightUpdate
    vector: Vector
    local: Weights
    metrics: Mapping[str, float]
    unusable: str


def minibatch_seed(*numbers: int) -> int:
    """Return the seed of one round's minibatches, such as from the worker's seed and the round's number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def train_round(
    task: CheckedTask,
    version: ModelVersion,
    local: Weights,
    *,
    update_id: UpdateId,
    seed: int,
    progress: Progress,
    idle: Callable[[], None] = lambda: None,
) -> TrainedUpdate:
    """Train from a version as its plan says.

    `local` are the site's local weights, `seed` orders the minibatches, and `idle` is called after training.
    """
    started = time.monotonic()
    trained = task.train({**version.weights, **local}, version.plan, seed=seed, progress=progress)
    idle()
    flat = version.layout.flatten(trained.weights)
    tensors = version.layout.tensors_not_finite(flat.vector, flat.statistics)
    tensors += [name for name, array in trained.local.items() if not _is_finite(array)]
    if version.plan.sends == "delta":
        # The base is the version that this round started from, never a newer one.
        np.subtract(flat.vector, version.vector, out=flat.vector)
    update = WeightUpdate(
        federation=version.federation,
        id=update_id,
        base_term=version.term,
        base_version=version.version,
        layout_digest=version.layout.digest,
        sends=version.plan.sends,
        codec=version.plan.codec,
        vector=Float32Vector.of(flat.vector),
        statistics=flat.statistics,
        integers=flat.integers,
        examples=trained.examples,
        loss=trained.metrics.get("loss"),
        train_s=time.monotonic() - started,
    )
    unusable = _unusable(trained.examples, trained.metrics, tensors)
    return TrainedUpdate(update, flat.vector, trained.local, trained.metrics, unusable)


def _unusable(examples: int, metrics: Mapping[str, float], tensors: list[str]) -> str:
    if tensors:
        bad = not_finite(metrics)
        also = f", and {some_of(bad)} is not finite" if bad else ""
        return (
            f"training gave NaN or infinite values in {some_of(tensors)}{also}: the learning rate may be too "
            "high, or the data may hold missing values"
        )
    if examples < 1:
        return "training saw no examples"
    return ""


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
