"""The rounds of simulated devices: trained one after the other, as a worker does, or many in one step.

A device's round needs to be trained when it ends, not before. So all rounds that have begun can be trained
together as soon as the first of them ends. Which ones are trained together depends on the virtual clock
alone, and the same settings give the same bits on any machine.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import nsmallest
from time import monotonic
from typing import Protocol

import numpy as np

from fluffle.checked_task import CheckedTask, TrainedRound
from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.sites import SiteMetric
from fluffle.task import Trained
from fluffle.task_errors import in_one_line
from fluffle.update import UpdateId
from fluffle_cli.simulate.sites import Sites
from fluffle_worker.keras_task import KerasTask, NotStackable, OptimizerState, RoundAtSite, StackedModel
from fluffle_worker.round import TrainedUpdate, ignore_progress, minibatch_seed, train_round, update_of

log = get_logger(__name__)

# The largest difference between a round that is trained with others and the same round trained by itself, as
# a part of what the round changed. Both are in float32, and sum in another order: that makes some 1e-6 in a
# step, and Adam divides small gradients by small numbers.
MAX_DIFFERENCE = 1e-2
# Memory for the rounds that are trained together.
STACK_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """A round that a device has begun from the version `base`; it ends at `ends_s` of the virtual clock."""

    device: int
    base: ModelVersion
    local: Weights
    update_id: UpdateId
    seed: int
    ends_s: float

    @property
    def minibatch_seed(self) -> int:
        """The seed of the order of its examples."""
        return minibatch_seed(self.seed, self.update_id.sequence)


class Trainer(Protocol):
    """Trains the rounds of all devices. A device begins no round before its last one has ended."""

    def examples(self, device: int) -> int:
        """Return the number of examples at a device."""

    def begin(self, one: Round) -> None:
        """Take note of a round that a device has begun and will end."""

    def trained(self, one: Round) -> TrainedUpdate:
        """Return the update of a round that ends now."""

    def abort(self, device: int) -> None:
        """Forget the round that a device has begun: it sends nothing, and its optimizer is as before."""


class OneByOne:
    """Trains each round by itself when it ends, as `fluffle worker` does."""

    def __init__(self, task: CheckedTask, sites: Sites) -> None:
        self.task, self.sites = task, sites
        self._prepared: dict[int, tuple[CheckedTask, int]] = {}
        self._optimizers: dict[int, Weights] = {}

    def examples(self, device: int) -> int:
        """Return the number of examples at a device."""
        return self.prepared(device)[1]

    def begin(self, one: Round) -> None:
        """Wait until it ends."""

    def abort(self, device: int) -> None:
        """Do nothing, since a round is trained when it ends."""

    def trained(self, one: Round) -> TrainedUpdate:
        """Return the update of a round that ends now."""
        task, _ = self.prepared(one.device)
        with _naming(one.device):
            if task is self.task:
                # Only the data of a KerasTask can be told apart from its model: others load theirs again.
                task.prepare(self.sites.of(one.device))
            if one.base.plan.keep_optimizer:
                task.restore_optimizer(self._optimizers.get(one.device, {}))
            trained = train_round(
                task,
                one.base,
                one.local,
                update_id=one.update_id,
                seed=one.minibatch_seed,
                progress=ignore_progress,
            )
            if one.base.plan.keep_optimizer:
                self._optimizers[one.device] = task.optimizer_state()
        return trained

    def validate(self, device: int, weights: Weights) -> tuple[int, tuple[SiteMetric, ...]] | None:
        """Return what a device measures on the data that it holds out; None if it holds out none."""
        task, _ = self.prepared(device)
        with _naming(device):
            if task is self.task:
                task.prepare(self.sites.of(device))
            return task.validate(weights)

    def prepared(self, device: int) -> tuple[CheckedTask, int]:
        """Return the task with a device's data, and how many examples these are."""
        site = self.sites.of(device)
        if site.index not in self._prepared:
            is_keras = isinstance(self.task.task, KerasTask)
            own = self.task.with_the_same_model() if is_keras else self.task
            with _naming(device):
                self._prepared[site.index] = own, own.prepare(site)
        return self._prepared[site.index]


@contextmanager
def _naming(device: int) -> Iterator[None]:
    """Name the client in an error of its task: one task has the data of all of them."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"client {device}: {error}") from error


class Together:
    """Trains rounds that have begun in one step, when the first of them ends."""

    def __init__(self, model: StackedModel, examples: Sequence[int]) -> None:
        """Train rounds of sites that have so many examples."""
        self._model, self._examples = model, examples
        self._most = max(1, STACK_BYTES // model.bytes_of_a_round)
        self._begun: dict[int, Round] = {}
        self._trained: dict[int, TrainedUpdate] = {}
        self._optimizers: dict[int, OptimizerState] = {}
        # Those from before the rounds that are trained but have not ended.
        self._before: dict[int, OptimizerState | None] = {}

    def examples(self, device: int) -> int:
        """Return the number of examples at a device."""
        return self._examples[device % len(self._examples)]

    def begin(self, one: Round) -> None:
        """Let a round be trained with others."""
        self._begun[one.device] = one

    def trained(self, one: Round) -> TrainedUpdate:
        """Return the update of a round that ends now."""
        if one.device not in self._trained:
            self._train_with(one)
        self._before.pop(one.device, None)
        return self._trained.pop(one.device)

    def abort(self, device: int) -> None:
        """Forget a round, even if it is trained already."""
        self._begun.pop(device, None)
        if self._trained.pop(device, None) is None:
            return
        self._optimizers.pop(device, None)
        if before := self._before.pop(device, None):
            self._optimizers[device] = before

    def train(self, rounds: Sequence[Round]) -> list[TrainedUpdate]:
        """Train rounds that have one plan, but for steps that their workers chose, in one step."""
        started = monotonic()
        # A record makes its dictionary of tensors anew each time.
        shared = {each.base.version: each.base.weights for each in rounds}
        at_sites = [
            RoundAtSite(
                {**shared[each.base.version], **each.local},
                each.device % len(self._examples),
                each.minibatch_seed,
                self._optimizers.get(each.device),
                each.base.plan.local_steps,
            )
            for each in rounds
        ]
        plan, updates = rounds[0].base.plan, []
        after = self._model.train(at_sites, plan)
        for one, began, (trained, optimizer) in zip(rounds, at_sites, after, strict=True):
            steps = optimizer.steps - (began.optimizer.steps if began.optimizer else 0)
            if plan.keep_optimizer:
                self._optimizers[one.device] = optimizer
            updates.append(
                update_of(
                    _split(trained, one), one.base, update_id=one.update_id, steps=steps, started=started
                )
            )
        return updates

    def _train_with(self, one: Round) -> None:
        """Train a round, and with it those that end next."""
        plan = _without_own_steps(one.base.plan)
        alike = [each for each in self._begun.values() if _without_own_steps(each.base.plan) == plan]
        rounds = nsmallest(self._most, alike, key=lambda each: (each is not one, each.ends_s, each.device))
        for each in rounds:
            del self._begun[each.device]
            self._before[each.device] = self._optimizers.get(each.device)
        self._trained |= zip([each.device for each in rounds], self.train(rounds), strict=True)


def _without_own_steps(plan: Plan) -> Plan:
    """Return a plan without the number of local steps that a worker has chosen."""
    return plan if plan.round_seconds is None else replace(plan, local_steps=None)


def make_trainer(one_by_one: OneByOne, first: ModelVersion, local: Weights, seed: int) -> Trainer:
    """Return what trains many rounds in one step, or one by one with the reason why in the log.

    A round from the version `first` is trained in both ways, and must give the same but for rounding.
    """
    try:
        return _together(one_by_one, Round(0, first, local, UpdateId("check", "0", 1), seed, 0.0))
    except NotStackable as error:
        log.warning(
            "rounds are trained one by one: with a small network this is some 20 to 50 times slower",
            because=str(error),
        )
        return one_by_one


def _together(one_by_one: OneByOne, check: Round) -> Together:
    task, sites = one_by_one.task, one_by_one.sites
    if not isinstance(task.task, KerasTask):
        raise NotStackable("only a KerasTask can train several rounds in one step")
    prepared = [one_by_one.prepared(device) for device in range(sites.count)]
    examples = [count for _, count in prepared]
    of_sites = [each.task for each, _ in prepared if isinstance(each.task, KerasTask)]
    plan = replace(check.base.plan, keep_optimizer=False)
    together = Together(task.task.stacked(of_sites), examples)
    # A last minibatch that is not full is where an own loss would show.
    at = next((at for at, count in enumerate(examples) if count % plan.batch_size), 0)
    check = replace(check, device=at, base=replace(check.base, plan=plan))
    alone = one_by_one.trained(check)
    tensorflow = logging.getLogger("tensorflow")
    level = tensorflow.level
    # TensorFlow would log the whole graph of an operation that it cannot stack.
    tensorflow.setLevel(logging.CRITICAL)
    try:
        [stacked] = together.train([check])
    except Exception as error:  # whatever TensorFlow raises for an operation that it cannot stack
        raise NotStackable(
            f"TensorFlow cannot train several rounds in one step: {in_one_line(error)}"
        ) from error
    finally:
        tensorflow.setLevel(level)
    # In float64, in which the squares of all float32 numbers are finite.
    ends = alone.vector.astype(np.float64)
    moved, difference = float(np.linalg.norm(ends)), float(np.linalg.norm(stacked.vector - ends))
    if not difference <= MAX_DIFFERENCE * moved:
        raise NotStackable(
            f"trained with others, a round that moves the model by {moved:.2g} ends {difference:.2g} away "
            "from where it ends by itself"
        )
    return together


def _split(trained: Trained, one: Round) -> TrainedRound:
    """Return a round's result with its local weights by themselves."""
    shared = {name: array for name, array in trained.weights.items() if name not in one.local}
    # Copies: a view would keep the weights of all rounds that were trained together.
    local = {name: trained.weights[name].copy() for name in one.local}
    return TrainedRound(shared, local, trained.examples, trained.metrics)
