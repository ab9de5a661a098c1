"""Sites at which the same labels mean different things: one model for all, and a head of each site's own.

    python -m benchmarks.uneven_heads

Federations of the digits on a virtual clock. At each of eight sites four of the ten labels have changed their
places, as where departments number their findings in their own way. Each site holds out a quarter of its
data. `global` is one model for all, as the sites receive it, and `tuned` the same after one more round of
each site's own. With `personal` the last layer stays at its site. `mean`, `worst` and `spread` are those of
the sites' accuracies, for the last model, and the brackets have the range over the seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from benchmarks.measuring import Report, compare_over_seeds
from fluffle.checked_task import CheckedTask
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle.sites import SiteReport, over_sites
from fluffle.task import Site
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import ignore_progress
from fluffle_worker.splits import split_indices
from fluffle_worker.tasks import digits
from fluffle_worker.tasks.digits import Images, Labels

SITES: Final = 8
CHANGED_LABELS: Final = 4
HELD_OUT: Final = 0.25
UPDATES: Final = 480
MODELS: Final = ("global", "tuned", "personal")


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    model: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The sites' accuracies of the last model."""

    mean: float
    worst: float
    spread: float


def meaning_at(site: int, seed: int) -> Labels:
    """Return what each label is called at a site: four of ten have changed their places."""
    rng = np.random.default_rng([seed, site])
    changed = rng.choice(10, CHANGED_LABELS, replace=False)
    names = np.arange(10)
    # Each of them gets the name of the next one, so that none keeps its own.
    names[changed] = np.roll(changed, 1)
    return names


def build_model() -> KerasModel:
    """Return a network whose last layer is called head."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, "relu", name="body"),
            keras.layers.Dense(10, "softmax", name="head"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def a_task(case: Case) -> KerasTask:
    """Return the task of a run; only the personal one has local weights."""
    images, labels = digits.train_data(Site(split="iid"))
    parts = split_indices(labels, split="iid", sites=SITES, seed=case.seed)

    def train_data(site: Site) -> tuple[Images, Labels]:
        mine = parts[site.index]
        return images[mine], meaning_at(site.index, case.seed)[labels[mine]]

    return KerasTask(build_model, train_data, local=["head/*"] if case.model == "personal" else [])


def play(case: Case) -> Outcome:
    """Run a federation, and look at what the sites measure of its last model."""
    versions: list[ModelVersion] = []
    with TemporaryDirectory() as folder:
        settings = load_arguments(
            SimulateSettings,
            {
                # No ready task, whose data would be dealt out anew.
                "task": "benchmarks.uneven_heads:a_task",
                "clients": SITES,
                "local_validation": HELD_OUT,
                "strategy": "fedbuff",
                "buffer_size": 4,
                "max_updates": UPDATES,
                "seed": case.seed,
                "best": "sites.accuracy:max",
                "out": folder,
            },
        )
        SimulatedFederation(settings, a_task(case), versions.append).run()
    last = versions[-1]
    reports = tuned(case, last) if case.model == "tuned" else last.sites
    found = over_sites(reports)["accuracy"]
    return Outcome(found.mean, found.lowest, found.spread)


def tuned(case: Case, last: ModelVersion) -> Mapping[str, SiteReport]:
    """Return what each site measures after one more round of its own from the last model."""
    reports = {}
    for index in range(SITES):
        task = CheckedTask(a_task(case))
        task.model(case.seed)
        task.prepare(Site(index=index, count=SITES, seed=case.seed, validation=HELD_OUT))
        trained = task.train(last.weights, last.plan, seed=index, progress=ignore_progress)
        if measured := task.validate({**trained.weights, **trained.local}):
            reports[f"worker-{index}"] = SiteReport(last.term, last.version, *measured)
    return reports


def _range(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("uneven-heads", "uneven_heads: sites at which labels mean different things, % accuracy"),
        [{"model": model} for model in MODELS],
        Case,
        play,
        lambda runs: {
            "mean": _range([each.mean for each in runs]),
            "worst": _range([each.worst for each in runs]),
            "spread": _range([each.spread for each in runs]),
        },
        seeds=5,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
