"""The Keras model of a task: its weights by name and group, and what a round resets."""

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import LayoutError, TaskError
from fluffle.logs import get_logger
from fluffle.model import SHARED_GROUPS, Group, Layout, Weights
from fluffle.plan import Plan
from fluffle.task_errors import blamed_on
from fluffle_worker.data.weights import LossRemedy
from fluffle_worker.keras_task.backend import (
    KerasLayer,
    KerasModel,
    KerasVariable,
    import_keras,
    inner_optimizer,
)
from fluffle_worker.keras_task.files import (
    add_adapters,
    read_adapters,
    require_same_model,
    weights_with_adapters,
)
from fluffle_worker.keras_task.freezing import freeze_first_layers
from fluffle_worker.keras_task.losses import TrainingLoss
from fluffle_worker.keras_task.steps import ProximalTerm
from fluffle_worker.keras_task.tensors import (
    copies_of,
    groups_of,
    named_weights,
    refreshing_constants,
    reset_recurrent_states,
)

log = get_logger(__name__)

Arrays = dict[str, NDArray[np.generic]]

# Random seeds are global to a process, so one model is built at a time.
BUILDING = threading.Lock()


class BuiltModel:
    """What `build_model` returned, checked.

    `first_trained` is the name of the first weight that is sent and not frozen for a share.
    """

    def __init__(
        self,
        build_model: Callable[[], KerasModel],
        seed: int,
        local: Sequence[str],
        *,
        share: float = 1.0,
        dtype_policy: str = "",
    ) -> None:
        """Build the model in a new thread, under a dtype policy if one is given.

        Raises TaskError when it cannot be trained, or when the policy has no effect.

        A `share` below 1 is the largest part of the trained parameters that this site trains: of the last
        layers. The groups of the weights are those of the whole model all the same.

        Keras counts layers per thread to name them: a new thread gives the same names each time, and does not
        disturb models that other threads train.
        """
        self._keras = import_keras()
        with BUILDING, ThreadPoolExecutor(1) as new_thread:
            self.model = new_thread.submit(_build, build_model, seed, dtype_policy).result()
        self._named = named_weights(self.model)
        self.groups: dict[str, Group] = groups_of(self.model, self._named, local)
        self._layout = Layout.of(self.all_weights(), self.groups)
        self.first_trained = next((name for name, group in self.groups.items() if group in SHARED_GROUPS), "")
        if share < 1:
            self.first_trained = freeze_first_layers(self.model, self._named, self.groups, share)
        self.model.optimizer.build(self.model.trainable_variables)
        self._fresh_optimizer = list(map(_compact, copies_of(self.model.optimizer.variables)))
        rate = inner_optimizer(self.model).get_config().get("learning_rate")
        # None where the model was compiled with a schedule.
        self._learning_rate = float(rate) if isinstance(rate, int | float) else None
        self._own_optimizers = _own_optimizers(self.model)
        self._proximal = ProximalTerm(self.model)
        self.loss = TrainingLoss(self.model)
        inputs = getattr(self.model, "inputs", None)
        # The size of each minibatch where the model is built for one, as stateful layers need it.
        self.batch_size: int | None = inputs[0].shape[0] if inputs else None

    @property
    def named(self) -> Mapping[str, KerasVariable]:
        """The weights by name."""
        return self._named

    @property
    def own_optimizers(self) -> list[str]:
        """The attributes of the model that hold other optimizers than `model.optimizer`."""
        return self._own_optimizers

    def all_weights(self) -> Arrays:
        """Return copies of all weights by name."""
        return _copied(self._named)

    def assign(self, weights: Weights) -> None:
        """Assign weights to the model; local ones that are not given stay as they are.

        Raises LayoutError unless they are this model's.
        """
        local = {name for name in weights if self.groups.get(name) == "local"}
        self._layout.require_weights({name: array for name, array in weights.items() if name not in local})
        for name, array in weights.items():
            if array.shape != self._named[name].shape:
                raise LayoutError(
                    f"the local tensor {name} has the shape {array.shape} and not {self._named[name].shape}"
                )
        with refreshing_constants(self.model):
            for name, array in weights.items():
                self._named[name].assign(array)
        reset_recurrent_states(self.model)

    def save(self, weights: Weights, path: Path) -> None:
        """Write a `.keras` file of these weights with a fresh optimizer."""
        self.assign(weights)
        self.restore_optimizer({})
        self.model.save(path)
        if adapted := weights_with_adapters(self.model, self._named):
            add_adapters(path, _copied(adapted))

    def load(self, path: Path) -> None:
        """Read the weights of a `.keras` file; see `require_same_model`.

        A file that Keras itself wrote of a model with LoRA holds no adapters: then the first factor of each
        is the one that this model was built with, and the second is zero.
        """
        adapted = weights_with_adapters(self.model, self._named)
        before = _copied(adapted)
        require_same_model(self.model, path)
        stored = read_adapters(path, before)
        with refreshing_constants(self.model):
            self.model.load_weights(path)
        for name, variable in adapted.items():
            if name in stored:
                variable.assign(stored[name])
            elif variable.name.startswith("lora_") and variable.name.endswith("_a"):
                variable.assign(before[name])

    def optimizer_state(self) -> Arrays:
        """See `KerasTask.optimizer_state`."""
        return _copied({f"{at}/{one.path}": one for at, one in enumerate(self.model.optimizer.variables)})

    def restore_optimizer(self, state: Weights) -> None:
        """Assign what `optimizer_state` returned, or a fresh state when it is empty.

        A fresh state has the learning rate that the model was built with, too. Raises LayoutError for the
        state of another optimizer or model.
        """
        if state:
            Layout.of(self.optimizer_state()).require(Layout.of(state), whose="the optimizer")
        arrays = state.values() if state else self._fresh_optimizer
        for variable, array in zip(self.model.optimizer.variables, arrays, strict=True):
            variable.assign(array)

    def start_round(
        self, weights: Weights, plan: Plan, rng: np.random.Generator, remedy: LossRemedy | None = None
    ) -> None:
        """Set the whole state of the model, so that a round depends on these arguments and its minibatches.

        Except for the optimizer's state, where the plan keeps it. `remedy` changes the loss of the round.
        """
        self.assign(weights)
        self._require_plan_reaches_optimizers(plan)
        if not plan.keep_optimizer:
            self.restore_optimizer({})
        self._set_learning_rate(plan)
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":
                variable.assign([rng.integers(2**31), 0])
        self._proximal.start_round(plan.proximal_mu)
        self.loss.start_round(remedy)

    def _require_plan_reaches_optimizers(self, plan: Plan) -> None:
        """Raise TaskError for a plan that a model with several optimizers, such as a GAN, would ignore."""
        if not self._own_optimizers:
            return
        if not plan.keep_optimizer:
            log.warning(
                "the plan starts rounds with a fresh optimizer, but optimizers of the model keep their state",
                optimizers=", ".join(self._own_optimizers),
            )
        asked = {
            "learning_rate": plan.learning_rate is not None,
            "learning_rate_schedule": plan.learning_rate_scale != 1,
            "proximal_mu": plan.proximal_mu > 0,
        }
        if ignored := [name for name, is_asked in asked.items() if is_asked]:
            raise TaskError(
                f"the plan's {' and '.join(ignored)} would not reach the model's own optimizers "
                f"({', '.join(self._own_optimizers)}), but only model.optimizer: leave it out of the plan, "
                "or train with model.optimizer alone"
            )

    def _set_learning_rate(self, plan: Plan) -> None:
        rate = self.learning_rate(plan)
        if rate is not None:
            self.model.optimizer.learning_rate = rate

    def learning_rate(self, plan: Plan) -> float | None:
        """Return the rate of a round, or None where the model was compiled with a schedule.

        Raises TaskError for a plan that would change a schedule.
        """
        if self._learning_rate is None:
            if plan.learning_rate is None and plan.learning_rate_scale == 1:
                return None
            raise TaskError(
                "the plan's learning rate cannot replace the schedule of the model's own optimizer: compile "
                "the model with a number, or leave learning_rate and learning_rate_schedule out of the plan"
            )
        rate = self._learning_rate if plan.learning_rate is None else plan.learning_rate
        return rate * plan.learning_rate_scale

    @property
    def learning_rate_power(self) -> float:
        """How the learning rate follows the size of minibatches; 0 where the plan cannot change it."""
        if self._learning_rate is None or self._own_optimizers:
            return 0.0
        return 1.0 if isinstance(inner_optimizer(self.model), self._keras.optimizers.SGD) else 0.5

    def end_round(self) -> Arrays:
        """Return all weights but the frozen ones, or their moving average when the optimizer keeps one."""
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        return _copied({name: each for name, each in self._named.items() if self.groups[name] != "frozen"})


def _copied(named: Mapping[str, KerasVariable]) -> Arrays:
    return dict(zip(named, copies_of(named.values()), strict=True))


def _own_optimizers(model: KerasModel) -> list[str]:
    """Return the names of the attributes of a model that hold other optimizers than `model.optimizer`."""
    compiled = {id(model.optimizer), id(inner_optimizer(model))}
    found = []
    for name, value in vars(model).items():
        members = value.values() if isinstance(value, dict) else value
        for each in members if isinstance(value, dict | list | tuple) else [value]:
            is_own = isinstance(each, import_keras().optimizers.Optimizer) and id(each) not in compiled
            # Where a name begins with _self_, TensorFlow keeps track of attributes.
            if is_own and name not in found and not name.startswith("_self_"):
                found.append(name)
    return found


def _build(build_model: Callable[[], KerasModel], seed: int, dtype_policy: str) -> KerasModel:
    import_keras().utils.set_random_seed(seed)
    if dtype_policy:
        # For this thread only.
        import_keras().config.set_dtype_policy(dtype_policy)
    with blamed_on("build_model"):
        model = build_model()
    _require_trainable(model)
    if dtype_policy:
        _require_policy(model, dtype_policy)
    # All weights exist. Otherwise Keras would call the model to build it, and it may have no call method.
    model.built = True
    return model


def _require_trainable(model: object) -> None:
    keras = import_keras()
    if not isinstance(model, keras.Model) or getattr(model, "optimizer", None) is None:
        raise TaskError(
            f"build_model must return a compiled keras.Model, not {type(model).__name__}: call "
            "compile(optimizer, loss)"
        )
    for step in ("train_step", "test_step"):
        wanted, found = (inspect.signature(getattr(each, step)) for each in (keras.Model, type(model)))
        try:
            found.bind(*wanted.parameters)
        except TypeError:
            raise TaskError(
                f"the model's {step}{found} is written for another backend: with Keras on "
                f"{keras.backend.backend()} it is {step}{wanted} (or set KERAS_BACKEND)"
            ) from None
    if not _has_its_weights(model):
        hint = "let it begin with keras.Input(shape)"
        if not isinstance(model, keras.Sequential):
            hint = (
                "a subclass of keras.Model is built when it is first called, so call it on an example before "
                "you return it, as in model(np.zeros((1, 30), 'float32'))"
            )
        raise TaskError(f"build_model must return a built model: {hint}")


def _require_policy(model: KerasModel, policy: str) -> None:
    """Raise TaskError where no layer follows a policy; warn of what its loss scale would not reach."""
    compute_dtype = policy.removeprefix("mixed_")
    # A layer of layers, as the model itself, follows the policy without computing anything.
    single = [layer for layer in model._flatten_layers() if layer.weights and not layer._layers]
    if all(layer.compute_dtype != compute_dtype for layer in single):
        raise TaskError(
            f"quantize_training {policy} has no effect: no layer with weights computes in {compute_dtype}, "
            "since build_model sets their dtype itself; leave one of the two out"
        )
    is_scaled = type(model.optimizer).__name__ == "LossScaleOptimizer"
    own_step = type(model).train_step is not import_keras().Model.train_step
    if is_scaled and own_step:
        log.warning(
            "the model's own train_step must multiply its loss by optimizer.scale_loss, or its gradients "
            "become too small: see Keras's LossScaleOptimizer, or take mixed_bfloat16, which needs no scale"
        )


def _has_its_weights(layer: KerasLayer) -> bool:
    """Tell whether a layer is built, or consists of built layers, as a model with train_step alone does."""
    return layer.built or (bool(layer._layers) and all(map(_has_its_weights, layer._layers)))


def _compact(state: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the same values, without memory for an array of equal ones, such as fresh moments."""
    if state.size == 0 or (state != state.flat[0]).any():
        return state
    return np.broadcast_to(state.flat[0], state.shape)
