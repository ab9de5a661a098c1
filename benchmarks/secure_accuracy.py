"""What rounding and clipping cost: accuracy after the same updates, plain and under secure aggregation.

    python -m benchmarks.secure_accuracy

Four sites train round after round from the mean of their updates, without a broker: what is compared is the
arithmetic. One run adds up float32 deltas, the others whole numbers as secure aggregation does, with the
default clip and as many bits as fit. Each is repeated with several seeds. `points` is the accuracy less that
of the plain run with the same seed, in percentage points. To reach: within 0.2 in the mean.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from rich.progress import track

from benchmarks.measuring import Cell, Report, Spread, wide_console
from fluffle.checked_task import CheckedTask
from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.record import ModelVersion, Rank
from fluffle.secure.modulus import add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.task import Site, load_task
from fluffle.update import UpdateId
from fluffle_aggregator.secure.settings import SecureSettings
from fluffle_worker.round import ignore_progress, train_round

SITES = 4
ROUNDS = {"digits": 30, "fashion_mnist": 20}
PLANS = {
    "digits": Plan(local_epochs=3, learning_rate=0.2),
    "fashion_mnist": Plan(local_steps=60),
}
SHOWN = ("task", "modulus", "bits", "plain_accuracy", "accuracy", "points")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="secure_accuracy", description="Measure what rounding costs.")
    parser.add_argument("--tasks", nargs="+", default=tuple(ROUNDS))
    parser.add_argument("--moduli", type=int, nargs="+", default=(16, 24))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    report = Report("secure-accuracy", "secure_accuracy: after the same updates", shown=SHOWN)
    for task in arguments.tasks:
        runs: dict[int | None, list[float]] = {None: [], **{each: [] for each in arguments.moduli}}
        for seed in track(range(arguments.seeds), description=task):
            for modulus, found in runs.items():
                found.append(accuracy(task, seed, plan_of(modulus) if modulus else None))
        for modulus in arguments.moduli:
            with report.row() as row:
                row.update(row_of(task, modulus, runs[None], runs[modulus]))
    report.show(wide_console())


def plan_of(modulus: int) -> SecurePlan:
    """Return what the aggregator would ask for with its defaults."""
    settings = SecureSettings(secure_aggregation=True, secure_modulus=modulus)
    return settings.make_secure_plan(1, SITES, is_synchronous=False)


def row_of(task: str, modulus: int, plain: list[float], secure: list[float]) -> Mapping[str, Cell | Spread]:
    """Return what is told of one task and one modulus."""
    points = tuple(100 * (one - other) for one, other in zip(secure, plain, strict=True))
    return {
        "task": task,
        "modulus": modulus,
        "bits": plan_of(modulus).bits,
        "plain_accuracy": Spread(tuple(plain)),
        "accuracy": Spread(tuple(secure)),
        "points": Spread(points),
        "points_mean": float(np.mean(points)),
    }


def accuracy(task: str, seed: int, plan: SecurePlan | None) -> float:
    """Return the accuracy of the last model of one run."""
    sites = [CheckedTask(load_task(task)) for _ in range(SITES)]
    models = [each.model(seed) for each in sites]
    for index, each in enumerate(sites):
        each.prepare(Site(index=index, count=SITES, split="dirichlet:0.5", seed=seed))
    model = models[0]
    flat = model.layout.flatten(model.weights)
    version = ModelVersion(
        federation="accuracy",
        term=1,
        version=0,
        parent="",
        terms=(Rank(1, 0),),
        layout=model.layout,
        plan=PLANS[task],
        strategy="",
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
    )
    for number in range(1, ROUNDS[task] + 1):
        deltas = []
        for index, each in enumerate(sites):
            trained = train_round(
                each,
                version,
                {},
                update_id=UpdateId(f"site-{index}", "run", number),
                seed=seed * 1000 + number * SITES + index,
                progress=ignore_progress,
            )
            deltas.append(trained.vector)
        step = mean_of(deltas, plan, np.random.default_rng([seed, number]))
        version = replace(version, version=number, vector=version.vector + step)
    return sites[0].evaluate(version.weights)["accuracy"]


def mean_of(deltas: list[Vector], plan: SecurePlan | None, random: np.random.Generator) -> Vector:
    """Return the mean of deltas, in float32 or as secure aggregation adds them up."""
    if plan is None:
        summed = np.zeros(deltas[0].size, np.float32)
        for each in deltas:
            np.add(summed, each, out=summed)
        return np.divide(summed, np.float32(len(deltas)), out=summed)
    total = np.zeros(deltas[0].size, np.uint32)
    for each in deltas:
        add_multiple(total, plan.fixed_point.encode(each, random), plan.greatest)
    return plan.fixed_point.decode(plan.modulus.signed(total), plan.greatest * len(deltas))


if __name__ == "__main__":
    main()
