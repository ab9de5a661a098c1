"""Which strategy is the soonest at its target, where each is tuned with the same budget; on a virtual clock.

    python -m benchmarks.algorithms --scenes demo

The runs are those of `fluffle simulate`: the deployed leader and real training. Each strategy plays the
settings of its grid, six for each of them, with the tuning seeds. The setting whose median time to the target
is the shortest is then played with other seeds, and those are what the table shows. FedAvg is tuned like the
others. The local training (epochs, learning rate, minibatches) is the scene's, the same for all.
`central` is training in one place, with all data and as fast as all devices together: no strategy can be
expected to be sooner.

The target is held when every evaluation within 3 virtual seconds reaches it; `held_s` is the time from the
start to the first of them. A run that does not hold it counts with an infinite time. `against_fedavg` is how
many times as fast as FedAvg with the same seed, the median and the worst of the seeds; where FedAvg does not
hold it, that is at least what is said. `final` and `last_20` (the largest minus the least of the last 20
evaluations) are of runs that go on for the scene's `plateau_s` seconds without a target.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, product
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from rich.progress import track

from benchmarks.contenders import label_of
from benchmarks.measuring import (
    RESULTS,
    OtherWork,
    Report,
    Spread,
    seconds_in_words,
    times_as_fast,
    wide_console,
)
from benchmarks.writers import WRITERS
from fluffle.settings import load_arguments
from fluffle_cli.report.run import METRICS
from fluffle_cli.simulate.devices import seconds_of_devices
from fluffle_cli.simulate.one_run import RunResult
from fluffle_cli.simulate.pool import Ended, PlannedRun, play_all
from fluffle_cli.simulate.settings import SimulateSettings

RESULTS_FILE: Final = RESULTS / "algorithms.jsonl"
TUNING_SEED: Final = 10
LAST: Final = 20
Given = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """Data, devices and a target; `training` is what the plan asks of the workers.

    Where the task's name has a {writer}, each seed leaves out another one.
    """

    task: str
    split: str
    clients: int
    device_seconds: str
    target: str
    max_seconds: float
    plateau_s: float
    training: Given = field(default_factory=dict)

    def settings(self, given: Given, seed: int, *, is_plateau: bool = False) -> SimulateSettings:
        """Return the settings of one run."""
        end = self.plateau_s if is_plateau else self.max_seconds
        goal = {} if is_plateau else {"target": self.target}
        scene = {
            "task": self.task.format(writer=seed % WRITERS),
            "split": self.split,
            "clients": self.clients,
            "device_seconds": self.device_seconds,
        }
        return load_arguments(
            SimulateSettings,
            {"federation": "algorithms", **scene, **self.training, **goal, **given, "max_seconds": end}
            | {"seed": seed},
        )

    def central(self) -> list[dict[str, object]]:
        """Return the settings of central training that is as fast as all devices together, at three rates.

        One device has all data, and makes an epoch of it at a time. It visits as many examples a second as
        all devices do, if they all have equally many.
        """
        seconds = seconds_of_devices(self.device_seconds, self.clients, np.random.default_rng(0))
        epochs = int(self.training.get("local_epochs", 1))
        epoch_s = self.clients / (epochs * float(np.sum(1 / seconds)))
        rate = self.training.get("learning_rate")
        return [
            {
                "strategy": "fedavg",
                "clients": 1,
                "split": "iid",
                "device_seconds": f"constant:{epoch_s:.4g}",
                "local_epochs": 1,
                **({"learning_rate": rate * times} if rate else {}),
            }
            for times in ((0.5, 1.0, 2.0) if rate else (1.0,))
        ]


CENTRAL: Final = "central"
DIGITS: Final = {"local_epochs": 3, "learning_rate": 0.2}
SCENES: Final[Mapping[str, Scene]] = {
    "demo": Scene("digits", "dirichlet:0.5", 4, "spread:0.25:8", "0.95", 40, 40, DIGITS),
    "skewed": Scene("digits", "dirichlet:0.1", 8, "spread:0.25:16", "0.93", 120, 120, DIGITS),
    "shards": Scene("digits", "shards:2", 8, "spread:0.25:16", "0.9", 120, 120, DIGITS),
    "equal speeds": Scene("digits", "dirichlet:0.5", 8, "constant:1", "0.95", 60, 60, DIGITS),
    "fashion": Scene(
        "benchmarks.paper_tasks:clothes",
        "dirichlet:0.1",
        8,
        "spread:0.25:16",
        "0.75",
        120,
        120,
        {"local_steps": 20, "learning_rate": 0.1},
    ),
    "rare labels": Scene(
        "benchmarks.rare_labels:task", "dirichlet:0.5", 4, "spread:0.25:8", "0.85", 80, 80, DIGITS
    ),
    "sixteen": Scene("digits", "dirichlet:0.1", 16, "spread:0.25:16", "0.93", 120, 120, DIGITS),
    "writers": Scene(
        "benchmarks.writers:without_{writer}", "iid", WRITERS - 1, "spread:0.25:16", "0.85", 120, 120, DIGITS
    ),
    "diabetes": Scene("diabetes", "iid", 4, "spread:0.25:8", "loss<=0.74", 120, 120),
}


def grid(strategy: str, **axes: Sequence[object]) -> list[dict[str, object]]:
    """Return the settings of one strategy, in all combinations."""
    return [
        {"strategy": strategy, **dict(zip(axes, values, strict=True))} for values in product(*axes.values())
    ]


# Six settings for each, so that none is tuned with more effort than another.
GRIDS: Final[Mapping[str, list[dict[str, object]]]] = {
    "reuse": grid("reuse", buffer_size=[1], server_learning_rate=[1.0, 1.5, 2.0], reuse_limit=[0.5, 1.0]),
    "fedavg": [
        *grid("fedavg", server_learning_rate=[0.75, 1.0, 1.5, 2.0]),
        *grid(
            "fedavg", server_optimizer=["momentum"], server_momentum=[0.5], server_learning_rate=[0.5, 1.0]
        ),
    ],
    "fedbuff": grid("fedbuff", buffer_size=[1, 2], staleness=["polynomial:0.5", "constant", "adaptive:4"]),
    "fedasync": grid("fedasync", mixing=[0.2, 0.4, 0.6], staleness=["polynomial:0.5", "constant"]),
    "ace": grid("ace", buffer_size=[1], server_learning_rate=[0.5, 0.75, 1.0, 1.25, 1.5, 2.0]),
    "ca2fl": grid("ca2fl", buffer_size=[1, 2], server_learning_rate=[0.75, 1.25, 2.0]),
    "ringleader": grid("ringleader", server_learning_rate=[0.5, 1.0, 1.5, 2.0, 3.0, 4.0]),
    "fedac": grid("fedac", buffer_size=[1, 2], server_learning_rate=[0.005, 0.01, 0.02]),
    "fadas": grid("fadas", buffer_size=[1, 2], server_learning_rate=[0.005, 0.01, 0.02]),
}


def newest_rows(scene: str) -> list[dict[str, Any]]:
    """Return the rows of the newest results for a scene. Exits with what to do when there are none."""
    text = RESULTS_FILE.read_text() if RESULTS_FILE.exists() else ""
    lines = [line for line in map(json.loads, text.splitlines()) if line["row"]["scene"] == scene]
    if not lines:
        raise SystemExit(
            f"{RESULTS_FILE} has no results for {scene}: run `python -m benchmarks.algorithms --scenes "
            f"'{scene}'` first"
        )
    return [line["row"] for line in lines if line["run"] == lines[-1]["run"]]


def main() -> None:
    """Tune, play, write and print."""
    parser = argparse.ArgumentParser(prog="algorithms", description="Compare the strategies, each tuned.")
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=SCENES)
    parser.add_argument("--strategies", nargs="+", default=[*GRIDS, CENTRAL], choices=[*GRIDS, CENTRAL])
    parser.add_argument(
        "--seeds", type=int, default=5, help="seeds that are reported, from 0 on (default: 5)"
    )
    parser.add_argument("--tuning-seeds", type=int, default=3, help="other seeds, to tune with (default: 3)")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    report = Report("algorithms", "strategies, each tuned, seconds until the target is held (virtual)")
    for name in given.scenes:
        _compare(SCENES[name], name, given, report)
    report.show(wide_console())


def _compare(scene: Scene, name: str, given: argparse.Namespace, report: Report) -> None:
    others = OtherWork()
    seeds = range(given.seeds)
    tuning = range(TUNING_SEED, TUNING_SEED + given.tuning_seeds)
    grids = {each: scene.central() if each == CENTRAL else GRIDS[each] for each in given.strategies}
    candidates = [(strategy, settings) for strategy, each in grids.items() for settings in each]
    play = partial(play_simulations, what=name, processes=given.processes)
    tuned = play([[scene.settings(each, seed) for seed in tuning] for _, each in candidates])
    by_rank = sorted(zip(map(_rank, tuned), candidates, strict=True), key=itemgetter(0))
    best = [
        next(each for _, (name_of, each) in by_rank if name_of == strategy) for strategy in given.strategies
    ]
    runs = play([[scene.settings(each, seed) for seed in seeds] for each in best])
    long = play([[scene.settings(each, seed, is_plateau=True) for seed in seeds] for each in best])
    held = {
        strategy: [one.result.target_s for one in mine]
        for strategy, mine in zip(given.strategies, runs, strict=True)
    }
    for strategy, chosen, mine, plateau in zip(given.strategies, best, runs, long, strict=True):
        baseline = held.get("fedavg")
        report.add(
            {
                "scene": name,
                "strategy": CENTRAL if strategy == CENTRAL else label_of(chosen),
                "held_s": seconds_in_words(held[strategy]),
                "against_fedavg": (
                    times_as_fast(held[strategy], baseline, scene.max_seconds) if baseline else ""
                ),
                "updates": seconds_in_words([one.result.target_updates for one in mine]),
                "final": Spread(tuple(one.result.final for one in plateau)),
                "last_20": max(one.spread for one in plateau),
                "held_s_values": [round(value, 2) for value in held[strategy]],
            },
            others=others.share,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a run, and how far its last evaluations lie apart."""

    result: RunResult
    spread: float


def play_simulations(
    wanted: Sequence[Sequence[SimulateSettings]], what: str, *, processes: int = 2
) -> list[list[Outcome]]:
    """Play runs in a pool, and return what came out in the same order, in the same groups."""
    with tempfile.TemporaryDirectory(prefix="fluffle-algorithms-") as folder:
        runs = [
            PlannedRun(place, settings, Path(folder) / str(place))
            for place, settings in enumerate(chain.from_iterable(wanted))
        ]
        told = play_all(runs, processes=processes)
        ended = (each for each in told if isinstance(each, Ended))
        found: dict[int, Outcome] = {}
        for each in track(ended, description=what, total=len(runs), transient=True):
            if each.result is None:
                raise RuntimeError(f"{each.run.settings.strategy}: {each.error}")
            found[each.run.place] = Outcome(each.result, _spread(each.run.folder, each.result.metric))
    in_order = iter([found[place] for place in range(len(runs))])
    return [list(islice(in_order, len(group))) for group in wanted]


def _spread(folder: Path, metric: str) -> float:
    """Return the largest minus the least of the last evaluations of a run."""
    evaluations: dict[int, float] = {}
    for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
        if evaluation := json.loads(line).get("evaluation"):
            evaluations[evaluation["version"]] = evaluation["metrics"][metric]
    last = list(evaluations.values())[-LAST:]
    return max(last) - min(last)


def _rank(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return the median time to the target, and of settings that mostly do not hold it, the mean of those."""
    times = [one.result.target_s for one in outcomes]
    finite = [each for each in times if math.isfinite(each)]
    return median(times), sum(finite) / len(finite) if finite else math.inf


if __name__ == "__main__":
    main()
