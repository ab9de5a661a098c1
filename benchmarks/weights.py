"""What an update should count by its number of examples: all the same, by the square root, or in proportion.

    python -m benchmarks.weights

Federations on a virtual clock, so that the same seed gives the same run anywhere, with FedBuff (K=4 and K=1)
and FedAsync, all with the polynomial discount. `tiny` has one site of 3 examples, 30 times as fast as the
other three, which are of equal size. `uneven` has five sites whose sizes double from one to the next and
whose labels differ; a round takes as long as its examples do. `even` has five sites of one size and pace,
whose labels differ. `left` is the mean of the last evaluations (a fifth of the run): the error rate, for
diabetes the rmse in standard deviations, less is better. `share` is the weight of the first, smallest site.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import small_networks
from benchmarks.measuring import Report, compare_over_seeds, spread_of
from benchmarks.regression import Diabetes
from benchmarks.virtual import Course, VirtualFederation
from fluffle.plan import Plan
from fluffle.task import Site, Task
from fluffle_aggregator.strategies.fedasync import FedAsyncSettings
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_aggregator.strategies.strategy import Strategy

Rows = NDArray[np.intp]

DATA = ("digits", "fashion_mnist", "diabetes")
SITES = ("tiny", "uneven", "even")
BUFFER_SIZES = {"fedbuff, K=4": 4, "fedbuff, K=1": 1}
STRATEGIES = (*BUFFER_SIZES, "fedasync")
WEIGHTS = ("none", "sqrt", "examples")
# Of Fashion-MNIST's 48,000, so that all runs take minutes.
MOST_EXAMPLES = 3000
ROUNDS_OF_THE_SLOWEST = 40
EVALUATIONS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    data: str
    sites: str
    strategy: str
    weigh_by: str
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far from right the model is at the end, and the smallest site's share of the weight."""

    left: float
    share: float


def split(sites: str, labels: NDArray[np.generic], seed: int) -> tuple[list[Rows], list[float]]:
    """Return each site's rows and the seconds of its round."""
    rng = np.random.default_rng(seed)
    if sites == "tiny":
        rows = rng.permutation(labels.size)
        parts = [rows[:3], *np.array_split(rows[3:], 3)]
        return parts, [1 / 30, 1.0, 1.0, 1.0]
    # Neighbours in this order have similar labels, so that the sites differ.
    ranks = np.argsort(np.argsort(labels, kind="stable"))
    rows = np.argsort(ranks + labels.size / 3 * rng.standard_normal(labels.size), kind="stable")
    sizes = np.array([1, 2, 4, 8, 16] if sites == "uneven" else [1] * 5)
    ends = np.cumsum(sizes)[:-1] * labels.size // sizes.sum()
    parts = np.split(rows, ends)
    return parts, [float(size) / float(sizes.max()) for size in sizes]


def tasks_of(data: str, sites: str, seed: int) -> tuple[list[Task], list[float], Task]:
    """Return the workers' tasks with their data, the seconds of their rounds, and the judge's task."""
    everything = Site(index=0, count=1, split="iid", seed=0)
    if data == "diabetes":
        judge = Diabetes()
        judge.prepare(everything)
        own, targets = judge.training_rows()
        parts, round_s = split(sites, targets, seed)
        tasks: list[Task] = []
        for part in parts:
            task = Diabetes()
            task.take(own[part])
            tasks.append(task)
        return tasks, round_s, judge
    network = getattr(small_networks, data)
    inputs, labels = network.train_data(everything)
    inputs, labels = inputs[:MOST_EXAMPLES], labels[:MOST_EXAMPLES]
    parts, round_s = split(sites, labels, seed)
    tasks = []
    for part in parts:
        examples = inputs[part], labels[part]
        task = replace(network, train_data=lambda _, examples=examples: examples)
        task.prepare(everything)
        tasks.append(task)
    return tasks, round_s, replace(network)


def a_strategy(case: Case) -> Strategy:
    """Return the strategy that a case asks for."""
    if case.strategy == "fedasync":
        return FedAsyncSettings.model_validate({"weigh_by": case.weigh_by}).make()
    return FedBuffSettings.model_validate(
        {"buffer_size": BUFFER_SIZES[case.strategy], "weigh_by": case.weigh_by}
    ).make()


def play(case: Case) -> Outcome:
    """Run a federation, and look at its end."""
    strategy = a_strategy(case)
    with threadpool_limits(1):
        tasks, round_s, judge = tasks_of(case.data, case.sites, case.seed)
        updates = round(sum(ROUNDS_OF_THE_SLOWEST * max(round_s) / each for each in round_s))
        federation = VirtualFederation(
            Course(
                strategy=strategy,
                plan=Plan(
                    batch_size=16,
                    sends=strategy.sends,
                    updates_per_version=strategy.buffer_size,
                ),
                round_s=round_s,
                updates=updates,
                seed=case.seed,
                evaluate_every=max(1, updates // strategy.buffer_size // EVALUATIONS),
            ),
            tasks,
            judge,
        )
        points = federation.run()
    last = points[-max(1, len(points) // 5) :]
    return Outcome(mean(point.cost for point in last), federation.weight_share("worker-0"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    compare_over_seeds(
        Report("weights", "weights: what an update counts by its number of examples"),
        [
            {"data": data, "sites": sites, "strategy": strategy, "weigh_by": weigh_by}
            for data, sites, strategy, weigh_by in product(DATA, SITES, STRATEGIES, WEIGHTS)
        ],
        Case,
        play,
        lambda runs: {
            "left": mean(each.left for each in runs),
            "spread": spread_of([each.left for each in runs]),
            "share": mean(each.share for each in runs),
        },
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
