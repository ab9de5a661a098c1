"""A Task from two or three functions that speak Keras: the only importer of keras and tensorflow."""

from __future__ import annotations

import importlib
import io
import itertools
import operator
import os
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import LayoutError, TaskError
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.task import KERAS_ENVIRONMENT, Progress, Site, Trained

if TYPE_CHECKING:
    import keras

T = TypeVar("T")
KerasModel: TypeAlias = "keras.Model"

EVALUATION_BATCH_SIZE = 256

_ACCURACIES = {"acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"}


def import_keras() -> ModuleType:
    """Import Keras when it is first needed: that takes seconds, and the aggregator does without.

    Raises TaskError when Keras or TensorFlow is not installed.
    """
    for name, value in KERAS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("keras")
    except ImportError as error:
        message = f"this task needs TensorFlow: pip install 'fluffle[worker]' ({error})"
        raise TaskError(message) from error


class KerasTask:
    """A `fluffle.task.Task` from a compiled Keras model and numpy arrays, or anything that `fit` takes.

    `build_model()` returns a compiled and built `keras.Model`. It runs in a cleared Keras session, so that
    variables have the same names in every process; what is global to Keras, such as a dtype policy, is set
    there. `train_data(site)` returns (x, y) or (x, y, sample_weight): arrays, or lists or dictionaries of
    arrays, with the examples along the first axis. Or it returns a finite `tf.data.Dataset` or `PyDataset`
    of such minibatches: then the plan's batch size does not count, and the order within a `tf.data.Dataset`
    is its own. `eval_data()` returns held-out data in the same forms.

    Every round starts from the given weights with a fresh optimizer; only weights travel. The model is built
    once for each process, and its training step is compiled in the first round.
    """

    def __init__(
        self,
        build_model: Callable[[], KerasModel],
        train_data: Callable[[Site], object],
        eval_data: Callable[[], object] | None = None,
    ) -> None:
        self._build_model = build_model
        self._train_data = train_data
        self._eval_data = eval_data
        self._built: _BuiltModel | None = None
        self._training: _Minibatches | None = None
        self._evaluation: object = None

    def initial_weights(self, seed: int) -> dict[str, NDArray[np.generic]]:
        """Build the model anew from the seed, and return its weights."""
        self._built = _BuiltModel(self._build_model, seed)
        return self._built.weights()

    def prepare(self, site: Site) -> int:
        """Load this site's training data and return its number of examples."""
        self._training = _Minibatches(_call(lambda: self._train_data(site)))
        return self._training.examples

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """Train from `weights` as the plan says, in an order of the examples drawn from `seed`.

        `local_steps` minibatches begin the data again as often as they must. The result counts the examples
        of one pass over the data, or those that the steps reached if they are fewer. Its metrics are averages
        over the last epoch, or over all local steps; the proximal term is not in the loss.

        Raises TaskError when `prepare` has not been called, and LayoutError for weights of another model.
        """
        if self._training is None:
            raise TaskError("there is no data to train on: call prepare(site) first")
        built, rng = self._model(), np.random.default_rng(seed)
        built.start_round(weights, plan, rng)
        epoch = self._training.per_epoch(plan.batch_size)
        total = plan.local_steps or plan.local_epochs * epoch
        measured_from = 0 if plan.local_steps else total - epoch
        sums: defaultdict[str, float] = defaultdict(float)
        examples = 0
        minibatches = itertools.islice(self._training.endless(plan.batch_size, rng), total)
        for done, minibatch in enumerate(minibatches):
            metrics = built.model.train_on_batch(*minibatch, return_dict=True)
            if done >= measured_from:
                examples += (rows := _rows(minibatch))
                for name, value in metrics.items():
                    sums[name] += value * rows
            progress(done + 1, total)
        averages = _metrics({name: value / examples for name, value in sums.items()})
        return Trained(built.end_round(), min(examples, self._training.examples), averages)

    def evaluate(self, weights: Weights) -> dict[str, float]:
        """Return the loss and the compiled metrics on held-out data; any accuracy is called "accuracy"."""
        if self._eval_data is None:
            raise TaskError("this task has no held-out data: give its KerasTask an eval_data function")
        if self._evaluation is None:
            self._evaluation = _evaluation_set(_call(self._eval_data))
        built = self._model()
        built.assign(weights)
        return _metrics(built.model.evaluate(self._evaluation, verbose=0, return_dict=True))

    def save(self, weights: Weights, path: Path) -> None:
        """Write the model with a fresh optimizer. Raises TaskError unless `path` ends in `.keras`."""
        if path.suffix != ".keras":
            raise TaskError(f"Keras writes files that end in .keras, not {path.name}")
        built = self._model()
        built.assign(weights)
        built.reset_optimizer()
        built.model.save(path)

    def load(self, path: Path) -> dict[str, NDArray[np.generic]]:
        """Read the weights of a `.keras` file; no code or class in it is looked at.

        Raises TaskError when there is no such file, LayoutError when it holds another model.
        """
        built, found = self._model(), _stored_tensors(path)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "own.keras"
            built.model.save(own)
            expected = _stored_tensors(own)
        # Compared here, since Keras says nothing of layers that only the file has.
        for name in sorted(expected.keys() | found.keys()):
            there, here = found.get(name, "nothing"), expected.get(name, "nothing")
            if there != here:
                raise LayoutError(f"{path} holds another model: {there} at {name}, where the task has {here}")
        built.model.load_weights(path)
        return built.weights()

    def _model(self) -> _BuiltModel:
        if self._built is None:
            self._built = _BuiltModel(self._build_model, seed=0)
        return self._built


class _BuiltModel:
    """The one model of a process, its layout, and what a round resets."""

    def __init__(self, build_model: Callable[[], KerasModel], seed: int) -> None:
        self._keras = import_keras()
        self._keras.utils.clear_session()
        self._keras.utils.set_random_seed(seed)
        self.model = _call(build_model)
        if getattr(self.model, "optimizer", None) is None:
            raise TaskError("build_model must return a compiled keras.Model: call compile(optimizer, loss)")
        if not all(layer.built for layer in [self.model, *self.model.layers]):
            raise TaskError("build_model must return a built model: let it begin with keras.Input(shape)")
        self.model.optimizer.build(self.model.trainable_variables)
        self._fresh_optimizer = list(map(_compact, self._copies(self.model.optimizer.variables)))
        self._names = _unique_names(self.model)
        self._layout = Layout.of(self.weights())
        self._proximal = _ProximalTerm(self.model)

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """Return copies of all weights by name, trainable or not; the state of a seed generator is none."""
        return dict(zip(self._names, self._copies(self.model.weights), strict=True))

    def assign(self, weights: Weights) -> None:
        """Put weights into the model. Raises LayoutError unless they are this model's."""
        Layout.of(weights).require(self._layout)
        for name, variable in zip(self._names, self.model.weights, strict=True):
            variable.assign(weights[name])
        for layer in self.model.layers:
            # Normalization computes with numbers that it derives from its weights.
            getattr(layer, "finalize_state", lambda: None)()

    def reset_optimizer(self) -> None:
        """Bring moments, iterations and the learning rate back to what they were when the model was built."""
        for state, fresh in zip(self.model.optimizer.variables, self._fresh_optimizer, strict=True):
            state.assign(fresh)

    def start_round(self, weights: Weights, plan: Plan, rng: np.random.Generator) -> None:
        """Let what follows depend on nothing but these arguments and the minibatches."""
        self.assign(weights)
        self.reset_optimizer()
        if plan.learning_rate is not None:
            try:
                self.model.optimizer.learning_rate = plan.learning_rate
            except (TypeError, AttributeError) as error:
                raise TaskError(
                    f"the plan's learning rate {plan.learning_rate} cannot replace the model's schedule: "
                    "compile the model with a number, or leave the rate out of the plan"
                ) from error
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":
                variable.assign([rng.integers(2**31), 0])
        self._proximal.start_round(plan.proximal_mu)

    def end_round(self) -> dict[str, NDArray[np.generic]]:
        """Return the trained weights, or their moving average when the optimizer keeps one."""
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        return self.weights()

    @staticmethod
    def _copies(variables: Iterable[keras.Variable]) -> list[NDArray[np.generic]]:
        return [np.array(variable.numpy()) for variable in variables]


class _ProximalTerm:
    """Adds the gradient of mu/2 * ||x - x_base||^2, which is mu * (x - x_base), to that of the loss.

    It sits between the model's training step, whatever that is, and the optimizer.
    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019), section 3, equation 2.
    """

    def __init__(self, model: KerasModel) -> None:
        self._keras = import_keras()
        self._model = model
        self._mu = self._keras.Variable(0.0, trainable=False, name="proximal_mu")
        self._base: dict[int, keras.Variable] = {}
        # Mixed precision wraps the optimizer; the inner one gets the gradients in their true scale.
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._plain_apply = optimizer.apply
        optimizer.apply = self._apply

    def start_round(self, mu: float) -> None:
        """Take the present weights for x_base. Only a change between zero and more compiles the step anew."""
        trained = self._model.trainable_variables if mu > 0 else []
        if len(trained) != len(self._base):
            self._base = {id(x): self._keras.Variable(x, trainable=False) for x in trained}
            self._model.make_train_function(force=True)
        self._mu.assign(mu)
        for x in trained:
            self._base[id(x)].assign(x)

    def _apply(self, gradients: Sequence[object], trainable_variables: Sequence[keras.Variable]) -> None:
        if self._base:
            gradients = list(map(self._with_pull, gradients, trainable_variables))
        self._plain_apply(gradients, trainable_variables)

    def _with_pull(self, gradient: object, x: keras.Variable) -> object:
        if gradient is None:
            return None
        ops = self._keras.ops
        return ops.add(gradient, ops.cast(self._mu, x.dtype) * (x - self._base[id(x)]))


class _Minibatches:
    """One site's training data: arrays, which are shuffled and cut, or a data set, which brings its own."""

    def __init__(self, data: object) -> None:
        self._tree = import_keras().tree
        self._data: keras.utils.PyDataset = data
        self._per_epoch: int | None = None
        if isinstance(data, tuple):
            self._data = self._tree.map_structure(np.asarray, data)
            lengths = {len(array) for array in self._tree.flatten(self._data)}
            if len(lengths) != 1:
                raise TaskError(f"train_data must return arrays of one length, not of {sorted(lengths)}")
            self.examples = lengths.pop()
        elif getattr(data, "cardinality", lambda: 0)() == -1:
            raise TaskError("train_data must return a finite data set: leave out its repeat()")
        else:
            sizes = [_rows(minibatch) for minibatch in self._one_pass(1, np.random.default_rng(0))]
            self._per_epoch, self.examples = len(sizes), sum(sizes)
        if self.examples == 0:
            raise TaskError("train_data returned no examples")

    def per_epoch(self, batch_size: int) -> int:
        """Return how many minibatches one pass over the data has."""
        return self._per_epoch or -(-self.examples // batch_size)

    def endless(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[object, ...]]:
        """Pass over the data again and again, each time in another order."""
        while True:
            yield from self._one_pass(batch_size, rng)

    def _one_pass(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[object, ...]]:
        if isinstance(self._data, tuple):
            order = rng.permutation(self.examples)
            for start in range(0, self.examples, batch_size):
                rows = order[start : start + batch_size]
                yield self._tree.map_structure(operator.itemgetter(rows), self._data)
        elif hasattr(self._data, "__getitem__"):
            yield from (_as_tuple(self._data[int(index)]) for index in rng.permutation(len(self._data)))
            self._data.on_epoch_end()
        else:
            yield from map(_as_tuple, self._data)


def _as_tuple(minibatch: object) -> tuple[object, ...]:
    return minibatch if isinstance(minibatch, tuple) else (minibatch,)


def _rows(minibatch: tuple[object, ...]) -> int:
    return int(import_keras().tree.flatten(minibatch)[0].shape[0])


def _evaluation_set(data: object) -> object:
    if not isinstance(data, tuple):
        return data
    # Made once: from arrays, Keras would make it again for each evaluation, ten times as slow. A list would
    # become one tensor.
    arrays = tuple(tuple(part) if isinstance(part, list) else part for part in data)
    import_keras()  # first, since it sets TensorFlow's environment
    data_sets = importlib.import_module("tensorflow").data.Dataset
    return data_sets.from_tensor_slices(arrays).batch(EVALUATION_BATCH_SIZE)


def _metrics(raw: Mapping[str, float]) -> dict[str, float]:
    return {"accuracy" if name in _ACCURACIES else name: float(value) for name, value in raw.items()}


def _compact(state: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the same values; an array of equal ones, such as fresh moments, then takes no memory."""
    if state.size == 0 or (state != state.flat[0]).any():
        return state
    return np.broadcast_to(state.flat[0], state.shape)


def _unique_names(model: KerasModel) -> list[str]:
    """Name each weight by its path, without the model's name, which Keras numbers."""
    names: list[str] = []
    times: Counter[str] = Counter()
    for variable in model.weights:
        path = variable.path.removeprefix(f"{model.name}/")
        times[path] += 1
        names.append(path if times[path] == 1 else f"{path}:{times[path]}")
    return names


def _stored_tensors(path: Path) -> dict[str, str]:
    """Return the dtype and shape of each tensor in a `.keras` file but the optimizer's, by name."""
    if path.suffix != ".keras" or not path.is_file():
        raise TaskError(f"there is no file {path} that ends in .keras")
    h5py = importlib.import_module("h5py")
    found: dict[str, str] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = f"{item.dtype}{list(item.shape)}"

    try:
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content) as stored:
            stored.visititems(note)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise TaskError(f"{path} is no model in Keras's own format: {error}") from error
    return found


def _call(function: Callable[[], T]) -> T:
    """Call what the user wrote; what is not there becomes a TaskError."""
    try:
        return function()
    except ImportError as error:
        message = f"the task needs more than is installed: pip install 'fluffle[worker]' ({error})"
        raise TaskError(message) from error
    except OSError as error:
        raise TaskError(f"the task's data cannot be read: {error}") from error
