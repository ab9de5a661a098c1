"""What an oracle could do: each step is what helps most on the held-out data, of all workers' last updates.

    python -m benchmarks.bound --scene demo

The runs are those of `fluffle simulate`, with the devices, the data, the training and the seeds of a scene of
`benchmarks.algorithms`. But whenever an update comes, the model moves by the combination of the workers' last
updates that gives the least loss on the held-out data: one after the other is added, subtracted or doubled,
whichever helps most, until nothing helps. No strategy can do that, because no aggregator has the data. An
oracle that looked several updates ahead could be sooner still, so this is no proof; but where the oracle is
less than three times as soon as FedAvg, no weights for updates that have come will make a strategy so. What
FedAvg takes is read from the newest results of `benchmarks.algorithms`.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from benchmarks.algorithms import SCENES, Scene, newest_rows
from benchmarks.measuring import OtherWork, Report, seconds_in_words, times_as_fast, wide_console
from fluffle.codecs.floats import Float32Vector
from fluffle.model import FlatWeights, Vector
from fluffle.record import ModelVersion
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.one_run import play
from fluffle_cli.simulate.training import Round, Trainer
from fluffle_worker.round import TrainedUpdate

# How much of a worker's last update one move of the search adds.
SHARES: Final = (-0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
# The leader adds what it gets to the model as it is.
AS_IT_IS: Final = {"strategy": "fedbuff", "buffer_size": 1, "staleness": "constant", "weigh_by": "none"}
Loss = Callable[[Vector], float]


def best_move(model: Vector, updates: list[Vector], loss: Loss) -> Vector:
    """Return a combination of the updates that lowers the loss at the model, found greedily; maybe zeros.

    The model and the updates are float32 of one size.
    """
    move, least = np.zeros_like(model), loss(model)
    while True:
        tried = [
            (loss(model + move + np.float32(share) * update), share, index)
            for (index, update), share in product(enumerate(updates), SHARES)
        ]
        found, share, index = min(tried)
        if not found < least:
            return move
        move, least = move + np.float32(share) * updates[index], found


class Oracle:
    """Trains like another trainer, and puts the best move in the place of each update."""

    def __init__(self, trainer: Trainer, newest: Callable[[], ModelVersion], loss: Loss) -> None:
        self._trainer, self._newest, self._loss = trainer, newest, loss
        self._last: dict[int, Vector] = {}
        self.examples, self.begin, self.abort = trainer.examples, trainer.begin, trainer.abort

    def trained(self, one: Round) -> TrainedUpdate:
        """Return a round that ends now, with the move to make in the place of its update."""
        trained = self._trainer.trained(one)
        self._last[one.device] = trained.vector.copy()
        move = best_move(self._newest().vector, list(self._last.values()), self._loss)
        update = replace(trained.update, vector=Float32Vector.of(move))
        return replace(trained, update=update, vector=move)


class FederationOfOracle(SimulatedFederation):
    """A simulated federation whose updates are an oracle's moves."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        first = self.leader.newest

        def loss(vector: Vector) -> float:
            flat = FlatWeights(vector, first.statistics, first.integers)
            return self._evaluator.evaluate({**first.layout.restore(flat), **self._local})["loss"]

        self._trainer = Oracle(self._trainer, lambda: self.leader.newest, loss)


def held_s(scene: Scene, seed: int) -> float:
    """Return the virtual seconds after which the oracle holds the scene's target."""
    with tempfile.TemporaryDirectory(prefix="fluffle-bound-") as folder:
        played = play(
            scene.settings(AS_IT_IS, seed), Path(folder) / "run", lambda _: None, make=FederationOfOracle
        )
    return played.result.target_s


def main() -> None:
    """Play, write and print."""
    parser = argparse.ArgumentParser(prog="bound", description=__doc__.partition("\n")[0])
    parser.add_argument("--scene", default="demo", choices=SCENES)
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on (default: 5)")
    given = parser.parse_args()
    report, others = Report("bound", "an oracle that knows the held-out data (virtual)"), OtherWork()
    fedavg = next(row for row in newest_rows(given.scene) if row["strategy"].startswith("fedavg"))
    found = [held_s(SCENES[given.scene], seed) for seed in track(range(given.seeds), transient=True)]
    report.add(
        {
            "scene": given.scene,
            "held_s": seconds_in_words(found),
            "fedavg_s": seconds_in_words(fedavg["held_s_values"][: given.seeds]),
            "against_fedavg": times_as_fast(
                found, fedavg["held_s_values"][: given.seeds], SCENES[given.scene].max_seconds
            ),
        },
        others=others.share,
    )
    report.show(wide_console())


if __name__ == "__main__":
    main()
