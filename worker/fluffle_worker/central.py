"""The baseline of a federation: the same model, trained centrally on the data of all sites."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from fluffle.checked_task import CheckedTask
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Site, Task


def train_centrally(
    task: Task, *, epochs: int, plan: Plan, seed: int, max_seconds: float = math.inf
) -> Mapping[str, float]:
    """Train from the seeded initial weights on all the data, and return the metrics on held-out data.

    Batch size and learning rate are the plan's. The optimizer keeps its state over all epochs, as usual in
    central training. No epoch begins after `max_seconds`. Afterwards the task is prepared for one site that
    has all the data. Raises TaskError when the data is missing.
    """
    checked = CheckedTask(task)
    model = checked.model(seed)
    checked.prepare(Site(index=0, count=1, split="iid"))
    checked.restore_optimizer({})
    one_epoch = replace(plan, local_epochs=1, local_steps=None, proximal_mu=0.0, keep_optimizer=True)
    weights: Weights = {**model.weights, **model.local}
    began = time.monotonic()
    for epoch in range(epochs):
        if time.monotonic() - began > max_seconds:
            break
        trained = checked.train(weights, one_epoch, seed=seed + epoch, progress=_silent)
        weights = {**trained.weights, **trained.local}
    return checked.evaluate(weights)


def _silent(done: int, total: int) -> None:
    """Report nothing."""
