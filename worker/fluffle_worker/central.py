"""The yardstick of a federation: the same architecture, trained in one place on the data of all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fluffle.checked_task import CheckedTask
from fluffle.plan import Plan
from fluffle.task import Site, Task


def train_centrally(task: Task, *, epochs: int, plan: Plan, seed: int) -> Mapping[str, float]:
    """Train from the seeded initial weights on all the data, and return the metrics on held-out data.

    Batch size and learning rate are the plan's. The optimizer keeps its state over all epochs, as in any
    training without a federation. Afterwards the task is prepared for the one site that has everything.
    Raises TaskError when the data is not there.
    """
    checked = CheckedTask(task)
    model = checked.model(seed)
    checked.prepare(Site(index=0, count=1, split="iid"))
    central = replace(plan, local_epochs=epochs, local_steps=None, proximal_mu=0.0)
    trained = checked.train({**model.weights, **model.local}, central, seed=seed, progress=_silent)
    return checked.evaluate({**trained.weights, **trained.local})


def _silent(done: int, total: int) -> None:
    """Report nothing."""
