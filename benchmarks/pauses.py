"""What a pause of the aggregator does to the model, and what keeps it from harm.

    python -m benchmarks.pauses

Ten workers train through 40 s in which nobody folds (FedBuff, K=4, polynomial discount, on a virtual clock,
so that the same seed gives the same run anywhere). Compared are: nothing; a bound on what a worker has under
way (the product's, most_in_flight); a discount of repeats, by which the r-th update of a worker from one
base counts 1/r. `after` is the metric when all that waited is folded, as a ratio to what it was before the
pause: rmse for diabetes, the error rate for digits. `no_pause_s` is the virtual seconds that a run of as many
updates takes without a pause: a bound that held workers up would make it longer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import small_networks
from benchmarks.measuring import Report, compare_over_seeds
from benchmarks.regression import Diabetes
from benchmarks.virtual import Course, Point, VirtualFederation
from fluffle.codecs.floats import Float32Vector
from fluffle.compression import decompressed
from fluffle.plan import Plan
from fluffle.task import Site, Task
from fluffle.update import WeightUpdate
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings

WORKERS, BUFFER_SIZE = 10, 4
AWAY = (40.0, 80.0)
UPDATES = 1000
REMEDIES = ("none", "bound", "discount", "both")


@dataclass(frozen=True, slots=True)
class Case:
    """One run: `slowest` is how many times as long the slowest worker's round takes."""

    data: str
    epochs: int
    slowest: float
    remedy: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The metric after the pause and at its worst, as ratios to before, and the seconds without a pause."""

    after: float
    worst: float
    no_pause_s: float


class RepeatsDiscounted(VirtualFederation):
    """The r-th update of a worker from one base counts 1/r."""

    def __init__(self, course: Course, tasks: Sequence[Task], judge: Task) -> None:
        super().__init__(course, tasks, judge)
        self._from_base: Counter[tuple[str, int]] = Counter()

    def train(self, index: int) -> WeightUpdate:
        """See VirtualFederation."""
        update = super().train(index)
        base = update.id.worker, update.base_version
        self._from_base[base] += 1
        factor = np.float32(1 / self._from_base[base])
        return replace(update, vector=Float32Vector.of(decompressed(update.vector) * factor))


def a_task(data: str) -> Task:
    """Return a task whose data is not prepared yet."""
    return Diabetes() if data == "diabetes" else replace(small_networks.digits)


def play(case: Case) -> Outcome:
    """Run a federation with a pause, and the same without."""
    with threadpool_limits(1):
        paused = _run(case, AWAY)
        before = [point.cost for point in paused if point.at_s <= AWAY[0]][-1]
        burst = [point.cost for point in paused if AWAY[1] <= point.at_s < AWAY[1] + 2]
        return Outcome(burst[-1] / before, max(burst) / before, _run(case, None)[-1].at_s)


def _run(case: Case, away: tuple[float, float] | None) -> list[Point]:
    tasks = [a_task(case.data) for _ in range(WORKERS)]
    for index, task in enumerate(tasks):
        task.prepare(Site(index=index, count=WORKERS, seed=case.seed))
    paces = [case.slowest ** (index / (WORKERS - 1)) for index in range(WORKERS)]
    course = Course(
        strategy=FedBuffSettings(buffer_size=BUFFER_SIZE, weigh_by="none").make(),
        plan=Plan(local_epochs=case.epochs, batch_size=8, updates_per_version=BUFFER_SIZE),
        round_s=paces,
        updates=round(UPDATES / WORKERS * sum(1 / pace for pace in paces)),
        seed=case.seed,
        away=away,
        is_bounded=case.remedy in ("bound", "both"),
    )
    kind: Callable[..., VirtualFederation] = (
        RepeatsDiscounted if case.remedy in ("discount", "both") else VirtualFederation
    )
    return kind(course, tasks, a_task(case.data)).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("pauses", "pauses: the model after the aggregator was away for 40 s"),
        [
            {"data": data, "epochs": epochs, "slowest": slowest, "remedy": remedy}
            for (data, epochs), slowest, remedy in product(
                (("diabetes", 1), ("diabetes", 5), ("digits", 1)), (1.0, 8.0), REMEDIES
            )
        ],
        Case,
        play,
        lambda runs: {
            "mean_after": mean(each.after for each in runs),
            "most_after": max(each.after for each in runs),
            "worst": max(each.worst for each in runs),
            "no_pause_s": mean(each.no_pause_s for each in runs),
        },
        seeds=5,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
