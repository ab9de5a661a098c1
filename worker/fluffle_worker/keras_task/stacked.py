"""Many rounds of one model trained in one step: the trained weights of each are one row of a matrix.

TensorFlow's `vectorized_map` turns the model and its loss into operations on such stacks. The optimizer needs
no change: it treats each element by itself. A simulation uses this; a worker trains one round at a time.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.task import Trained
from fluffle_worker.data.weights import LossRemedy
from fluffle_worker.keras_task.backend import KerasModel, import_keras
from fluffle_worker.keras_task.data import ArrayData, joined, rows_of_one_pass
from fluffle_worker.keras_task.losses import TrainingLoss
from fluffle_worker.keras_task.model import BuiltModel
from fluffle_worker.keras_task.stackable import reasons_against

# A stack has as many rounds as a power of two between these, since TensorFlow compiles each size once. More
# than the largest are no faster, because they leave the CPU's cache.
SMALLEST, LARGEST = 4, 256

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class NotStackable(Exception):
    """Rounds of this model must be trained one after the other; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundAtSite:
    """A round to train: from which shared and local weights, at which site, in which order.

    `optimizer` is what it was at the end of the worker's last round, and None for a fresh one. `local_steps`
    is its own number, in place of the plan's.
    """

    weights: Weights
    site: int
    seed: int
    optimizer: "OptimizerState | None" = None
    local_steps: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """How many steps an optimizer has taken, and its moments [weights], as many as it has."""

    steps: int
    moments: tuple[Floats, ...]


class StackedModel:
    """Trains rounds that start from different weights, with the data of different sites."""

    def __init__(
        self, built: BuiltModel, sites: Sequence[ArrayData], remedies: Sequence[LossRemedy | None]
    ) -> None:
        """Put the data of all sites into one; `remedies` change their losses. Raises NotStackable."""
        for reason in reasons_against(built, sites[0]):
            raise NotStackable(reason)
        self._built, self._data, self._losses = built, joined(sites), StackedLosses(built.loss, remedies)
        self._counted = [each.counted for each in sites]
        ends = np.cumsum([each.examples for each in sites])
        self._sites = [np.arange(end - each.examples, end) for end, each in zip(ends, sites, strict=True)]
        names = {id(variable): name for name, variable in built.named.items()}
        self._size = sum(int(prod(variable.shape)) for variable in built.model.trainable_variables)
        self._names = [names[id(variable)] for variable in built.model.trainable_variables]
        self._stacks: dict[int, _Stack] = {}

    @property
    def bytes_of_a_round(self) -> int:
        """How much memory one round takes: weights before and after, their gradient, the optimizer."""
        optimizer = self._built.model.optimizer
        return 16 * self._size + 4 * sum(int(prod(variable.shape)) for variable in optimizer.variables)

    def train(self, rounds: Sequence[RoundAtSite], plan: Plan) -> list[tuple[Trained, OptimizerState]]:
        """Train rounds with one plan, and return their results in the same order.

        The results are those of `KerasTask.train` but for rounding; the only metric is the loss.
        """
        minibatches = [self._minibatches(one, plan) for one in rounds]
        # Rounds of about as many steps stand together, as a stack takes as long as its longest.
        order = sorted(range(len(rounds)), key=lambda at: len(minibatches[at]))
        trained: dict[int, tuple[Trained, OptimizerState]] = {}
        for start in range(0, len(order), LARGEST):
            some = order[start : start + LARGEST]
            found = self._train_stack([rounds[at] for at in some], [minibatches[at] for at in some], plan)
            trained |= dict(zip(some, found, strict=True))
        return [trained[at] for at in range(len(rounds))]

    def _minibatches(self, one: RoundAtSite, plan: Plan) -> list[Indices]:
        """Return the same examples for each minibatch as `KerasTask.train` takes."""
        rows, rng = self._sites[one.site], np.random.default_rng(one.seed)

        def endless() -> Iterator[Indices]:
            while True:
                yield from rows_of_one_pass(rows.size, plan.batch_size, rng)

        per_pass = -(-rows.size // plan.batch_size)
        steps = one.local_steps or plan.local_steps or plan.local_epochs * per_pass
        return [rows[each] for each in islice(endless(), steps)]

    def _train_stack(
        self, rounds: Sequence[RoundAtSite], minibatches: Sequence[list[Indices]], plan: Plan
    ) -> Iterator[tuple[Trained, OptimizerState]]:
        size = SMALLEST
        while size < len(rounds):
            size *= 2
        if size not in self._stacks:
            self._stacks[size] = _Stack(self._built.model, self._data, self._losses, size)
        steps = np.array([len(each) for each in minibatches])
        # What is left at zero is computed, and has no weight.
        rows = np.zeros((steps.max(), size, plan.batch_size), np.int32)
        weights = np.zeros(rows.shape, np.float32)
        sizes = np.zeros(rows.shape[:2])
        for at, of_round in enumerate(minibatches):
            for step, of_step in enumerate(of_round):
                rows[step, at, : of_step.size] = of_step
                # Keras divides a minibatch's loss by its size, with what is left at zero.
                weights[step, at, : of_step.size] = plan.batch_size / of_step.size
                sizes[step, at] = of_step.size
        last = np.full(size, -1, np.int32)
        last[: len(rounds)] = steps - 1
        offsets = self._losses.offsets[[*(one.site for one in rounds), *[0] * (size - len(rounds))]]
        base, taken = np.zeros((size, self._size), np.float32), np.zeros((size, 1), np.int64)
        moments = [np.zeros_like(base) for _ in self._stacks[size].fresh]
        for at, one in enumerate(rounds):
            np.concatenate([one.weights[name].reshape(-1) for name in self._names], out=base[at])
            taken[at] = one.optimizer.steps if one.optimizer else 0
            own = one.optimizer.moments if one.optimizer else self._stacks[size].fresh
            for stack, start in zip(moments, own, strict=True):
                stack[at] = start
        state = _State(base, moments, taken)
        rate = self._built.learning_rate(plan)
        ends, losses = self._stacks[size].train(
            state, _Minibatches(rows, weights, last, offsets), rate, plan.proximal_mu
        )
        for at, one in enumerate(rounds):
            counted = slice(0 if plan.local_steps else steps[at] - steps[at] // plan.local_epochs, steps[at])
            examples = int(sizes[counted, at].sum())
            loss = float(np.average(losses[counted, at], weights=sizes[counted, at]))
            trained = Trained(
                self._by_name(ends[0][at]), min(examples, self._counted[one.site]), {"loss": loss}
            )
            # Copies: a view would keep the whole stack.
            after = tuple(stack[at].copy() for stack in ends[1:])
            yield trained, OptimizerState(int(taken[at, 0] + steps[at]), after)

    def _by_name(self, flat: Floats) -> dict[str, NDArray[np.generic]]:
        variables = self._built.model.trainable_variables
        ends = np.cumsum([prod(variable.shape) for variable in variables])
        parts = np.split(flat, ends[:-1])
        return {
            name: part.reshape(variable.shape)
            for name, part, variable in zip(self._names, parts, variables, strict=True)
        }


class StackedLosses:
    """The losses of sites: `offsets` are those of the logits [sites, classes], or [sites, 0] without any."""

    def __init__(self, loss: TrainingLoss, remedies: Sequence[LossRemedy | None]) -> None:
        self._loss = loss
        given = [each for each in remedies if each is not None]
        self._gamma = given[0].gamma if given else 0.0
        # Each of them is checked, also where there are no offsets.
        offsets = [loss.all_offsets(each) for each in given]
        has_offsets = bool(given) and given[0].offsets is not None
        self.offsets: Floats = np.stack(offsets) if has_offsets else np.zeros((len(remedies), 0), np.float32)

    def of_one(self, offsets: Any) -> AbstractContextManager[None]:
        """Within this block, compute the loss of one round with its offsets."""
        return self._loss.changed(offsets if self.offsets.shape[1] else None, self._gamma)


class _State(NamedTuple):
    """The weights and the optimizer's moments [rounds, weights], and its steps [rounds, 1]."""

    weights: Floats
    moments: list[Floats]
    steps: Indices


class _Minibatches(NamedTuple):
    """The examples of each minibatch [steps, rounds, batch], their weights, and each round's last step.

    `offsets` are those of the logits in each round's loss [rounds, classes].
    """

    rows: NDArray[np.int32]
    weights: Floats
    last: NDArray[np.int32]
    offsets: Floats


class _Stack:
    """The variables and the compiled step of so many rounds."""

    def __init__(self, model: KerasModel, data: ArrayData, losses: "StackedLosses", size: int) -> None:
        keras = import_keras()
        self._tf: Any = importlib.import_module("tensorflow")
        self._tree, self._model, self._losses = keras.tree, model, losses
        self._data = keras.tree.map_structure(self._tf.constant, data.parts)
        self._sizes = [prod(variable.shape) for variable in model.trainable_variables]
        self._weights = keras.Variable(np.zeros((size, sum(self._sizes)), np.float32))
        self._optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        schedules = keras.optimizers.schedules.LearningRateSchedule
        self._has_schedule = isinstance(self._optimizer._learning_rate, schedules)
        # Each round has its own number of steps, which Adam's correction of its bias needs.
        self._optimizer._iterations = keras.Variable(
            np.zeros((size, 1), np.int64), trainable=False, dtype="int64"
        )
        self._optimizer.build([self._weights])
        self._moments = [
            each for each in self._optimizer.variables if tuple(each.shape) == tuple(self._weights.shape)
        ]
        # An optimizer's moments begin with one number everywhere, such as 0.
        self.fresh = [keras.ops.convert_to_numpy(each.value)[0, :1] for each in self._moments]
        spec = self._tf.TensorSpec
        matrix = spec(self._weights.shape)
        state = _State(matrix, [matrix] * len(self._moments), spec((size, 1), "int64"))
        given = _Minibatches(
            spec((None, size, None), "int32"),
            spec((None, size, None)),
            spec((size,), "int32"),
            spec((size, losses.offsets.shape[1])),
        )
        self._run = self._tf.function(
            self._train, autograph=False, input_signature=[state, given, spec(()), spec(())]
        )

    def train(
        self, state: _State, minibatches: _Minibatches, rate: float | None, mu: float
    ) -> tuple[list[Floats], Floats]:
        """Return weights and moments after each round's last step, and the losses [steps, rounds].

        `state` is where they start, and `mu` the weight of the proximal term.
        """
        constant = self._tf.constant
        start = _State(constant(state.weights), list(map(constant, state.moments)), constant(state.steps))
        given = _Minibatches(*map(constant, minibatches))
        ends, losses = self._run(start, given, constant(rate or 0.0), constant(mu))
        return [each.numpy() for each in ends], losses.numpy()

    def _train(self, start: _State, given: _Minibatches, rate: Any, mu: Any) -> Any:
        tf = self._tf
        rows, weights, last, offsets = given
        variables = [self._weights, *self._moments]
        before = [start.weights, *start.moments]
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        self._optimizer._iterations.assign(start.steps)
        if not self._has_schedule:
            self._optimizer.learning_rate = rate

        def step(at: Any, done: Any, losses: Any) -> Any:
            loss = self._descend(rows[at], weights[at], offsets, start.weights, mu)
            ends = tf.equal(last, at)[:, None]
            newest = [each.value for each in variables]
            done = tf.cond(
                tf.reduce_any(ends),
                lambda: [tf.where(ends, new, old) for new, old in zip(newest, done, strict=True)],
                lambda: done,
            )
            return at + 1, done, losses.write(at, loss)

        steps = tf.shape(rows)[0]
        first = tf.constant(0), before, tf.TensorArray(tf.float32, steps)
        _, done, losses = tf.while_loop(lambda at, *_: at < steps, step, first, parallel_iterations=1)
        return done, losses.stack()

    def _descend(self, rows: Any, weights: Any, offsets: Any, base: Any, mu: Any) -> Any:
        """Let every round take one step, and return its losses before it."""
        tf, values = self._tf, self._weights.value
        x, y, *own = self._tree.map_structure(lambda array: tf.gather(array, rows), self._data)
        if own:
            weights *= tf.cast(tf.reshape(own[0], tf.shape(weights)), tf.float32)
        with tf.GradientTape() as tape:
            values = tf.identity(values)
            tape.watch(values)
            losses = tf.vectorized_map(
                self._loss, (values, x, y, weights, offsets), fallback_to_while_loop=False
            )
            # No round's loss depends on the weights of another: the gradient of the sum is that of each.
            total = tf.reduce_sum(losses)
        self._optimizer.apply([tape.gradient(total, values) + mu * (values - base)])
        return losses

    def _loss(self, one: Any) -> Any:
        """Return the loss of one minibatch of one round."""
        tf, model = self._tf, self._model
        flat, x, y, weights, offsets = one
        parts = zip(tf.split(flat, self._sizes), model.trainable_variables, strict=True)
        trained = [tf.reshape(part, variable.shape) for part, variable in parts]
        others = [each.value for each in model.non_trainable_variables]
        options = {"training": True} if model._call_has_training_arg else {}
        outputs, _ = model.stateless_call(trained, others, x, **options)
        metrics = [each.value for each in model.metrics_variables]
        with self._losses.of_one(offsets):
            loss, _ = model.stateless_compute_loss(
                trained, others, metrics, x=x, y=y, y_pred=outputs, sample_weight=weights, training=True
            )
        return loss
