"""A convolutional network with BatchNormalization beside the same one with LayerNormalization.

    python -m benchmarks.normalization

Federations of examples/normalized_cnn.py (Fashion-MNIST) on a virtual clock (FedBuff, polynomial discount;
four sites whose labels differ, dirichlet:0.5, of paces from 1 to 4; 6,000 training images, 2,000 held out).
`best` is the best accuracy of a version, `last` the mean of the last fifth of the evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Report, compare_over_seeds, spread_of
from benchmarks.virtual import Course, VirtualFederation
from examples.normalized_cnn import build_model
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_worker.keras_task import KerasTask, import_keras
from fluffle_worker.splits import split_indices
from fluffle_worker.tasks import fashion_mnist

Bytes = NDArray[np.uint8]

LAYERS = ("BatchNormalization", "LayerNormalization")
BUFFER_SIZES = (1, 4)
PACES = (1.0, 1.6, 2.5, 4.0)
TRAINED, HELD_OUT = 6000, 2000
UPDATES = 160


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    layer: str
    buffer_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best accuracy of a version, and the mean of the last evaluations."""

    best: float
    last: float


def a_task(case: Case) -> KerasTask:
    """Return the example's task on a part of the images."""
    images, labels = fashion_mnist.train_data(Site(index=0, count=1, split="iid", seed=0))
    images, labels = images[:TRAINED], labels[:TRAINED]

    def train_data(site: Site) -> tuple[Bytes, Bytes]:
        parts = split_indices(labels, split="dirichlet:0.5", sites=site.count, seed=case.seed)
        return images[parts[site.index]], labels[parts[site.index]]

    def eval_data() -> tuple[Bytes, Bytes]:
        held_out, answers = fashion_mnist.eval_data()
        return held_out[:HELD_OUT], answers[:HELD_OUT]

    layer = getattr(import_keras().layers, case.layer)
    return KerasTask(partial(build_model, layer), train_data, eval_data)


def play(case: Case) -> Outcome:
    """Run a federation, and look at its evaluations."""
    tasks = [a_task(case) for _ in PACES]
    for index, task in enumerate(tasks):
        task.prepare(Site(index=index, count=len(tasks)))
    course = Course(
        strategy=FedBuffSettings(buffer_size=case.buffer_size).make(),
        plan=Plan(batch_size=32, keep_optimizer=True, updates_per_version=case.buffer_size),
        round_s=PACES,
        updates=UPDATES,
        seed=case.seed,
        evaluate_every=4 // case.buffer_size,
    )
    found = [point.metrics["accuracy"] for point in VirtualFederation(course, tasks, a_task(case)).run()]
    return Outcome(max(found), mean(found[-max(1, len(found) // 5) :]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("normalization", "normalization: BatchNormalization beside LayerNormalization"),
        [{"layer": layer, "buffer_size": size} for layer, size in product(LAYERS, BUFFER_SIZES)],
        Case,
        play,
        lambda runs: {
            "best": mean(each.best for each in runs),
            "spread_of_best": spread_of([each.best for each in runs]),
            "last": mean(each.last for each in runs),
            "spread_of_last": spread_of([each.last for each in runs]),
        },
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
