"""What the data functions of a KerasTask may return, and what they are told when it is something else."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray
from scipy import sparse

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, data, import_keras

X: NDArray[np.float32] = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
Y: NDArray[np.float32] = (X[:, :1] > 0).astype(np.float32)

Read = Callable[[], object]


class Frame:
    """As much of a pandas data frame as matters here."""

    def __init__(self, array: NDArray[Any], dtypes: dict[str, np.dtype[Any]] | None = None) -> None:
        self.shape, self.dtypes, self._array = array.shape, dtypes or {}, array

    def to_numpy(self) -> NDArray[Any]:
        return self._array


def tensorflow_data_set(parts: object = (X, Y)) -> Any:
    return importlib.import_module("tensorflow").data.Dataset.from_tensor_slices(parts)


def py_dataset(length: int | None) -> object:
    keras = import_keras()
    cut: dict[str, object] = {
        "__getitem__": lambda _, index: (X[index * 16 :][:16], Y[index * 16 :][:16]),
        "num_batches": length,
    }
    if length is not None:
        cut["__len__"] = lambda _: length
    return type("Pairs", (keras.utils.PyDataset,), cut)()


def minibatches_without_end() -> Iterator[tuple[object, object]]:
    for _ in itertools.count():
        yield X[:16], Y[:16]


def endless_data_set() -> object:
    keras = import_keras()
    spec = tuple(importlib.import_module("tensorflow").TensorSpec((16, n), "float32") for n in (6, 1))
    assert keras
    return importlib.import_module("tensorflow").data.Dataset.from_generator(
        minibatches_without_end, output_signature=spec
    )


class Loader:
    """Minibatches as lists, again and again, as PyTorch's DataLoader gives them."""

    def __iter__(self) -> Iterator[list[object]]:
        return iter([[X[start : start + 16], Y[start : start + 16]] for start in range(0, 100, 16)])


def a_model(inputs: int = 1) -> KerasModel:
    keras = import_keras()
    given = [keras.Input((6,), name=f"in{n}") for n in range(inputs)]
    whole = given[0] if inputs == 1 else keras.layers.Concatenate()(given)
    model = keras.Model(given if inputs > 1 else given[0], keras.layers.Dense(1, "sigmoid")(whole))
    model.compile("sgd", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def a_task(read: Read, *, inputs: int = 1) -> CheckedTask:
    return CheckedTask(KerasTask(lambda: a_model(inputs), lambda _: read(), read))


def silent(done: int, total: int) -> None:
    """Report nothing."""


TAKEN: dict[str, tuple[Read, int]] = {
    "arrays": (lambda: (X, Y), 1),
    "arrays with sample weights": (lambda: (X, Y, np.ones(100)), 1),
    "lists in place of arrays": (lambda: (X.tolist(), Y.tolist()), 1),
    "a data frame and a series": (lambda: (Frame(X), Frame(Y)), 1),
    "a sparse matrix": (lambda: (sparse.csr_matrix(X), Y), 1),
    "a sparse array of another format": (lambda: (sparse.coo_array(X), Y), 1),
    "two inputs in a tuple": (lambda: ((X, X), Y), 2),
    "two inputs in a list": (lambda: ([X, X], Y), 2),
    "two inputs in a dictionary": (lambda: ({"in0": X, "in1": X}, Y), 2),
    "float64": (lambda: (X.astype(np.float64), Y.astype(np.float64)), 1),
    "tensors of TensorFlow": (lambda: tuple(tensorflow_data_set((X, Y)).batch(100).get_single_element()), 1),
    "a tf.data.Dataset": (lambda: tensorflow_data_set().batch(16), 1),
    "a tf.data.Dataset of unknown length": (
        lambda: tensorflow_data_set().batch(16).filter(lambda *_: True),
        1,
    ),
    "a PyDataset": (lambda: py_dataset(7), 1),
    "what PyTorch's DataLoader is": (Loader, 1),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_whatever_can_be_read_again_and_again_is_trained_on_and_evaluated(kind: str) -> None:
    read, inputs = TAKEN[kind]
    task = a_task(read, inputs=inputs)
    model = task.model()

    examples = task.prepare(Site())
    trained = task.train(model.weights, Plan(), seed=0, progress=silent)

    assert examples == trained.examples == 100
    assert task.evaluate(trained.weights)["loss"] < task.evaluate(model.weights)["loss"]


class OnceOnly:
    """Minibatches that come once, however often they are asked for."""

    def __init__(self) -> None:
        self._left = iter(Loader())

    def __iter__(self) -> Iterator[list[object]]:
        return self._left


REFUSED: dict[str, tuple[Read, str]] = {
    "None": (lambda: None, r"train_data returned None \(no return statement\?\)"),
    "a list [x, y]": (lambda: [X, Y], r"train_data returned a list of 2; .*: \(x, y\), not \[x, y\]"),
    "(x, None)": (lambda: (X, None), r"returned x without y, and the model is compiled with a loss"),
    "x alone": (lambda: X, "returned x without y"),
    "(None, y)": (lambda: (None, Y), "train_data returned None for x"),
    "an empty tuple": (lambda: (), "train_data returned a tuple of 0"),
    "four arrays": (lambda: (X, X, Y, Y), "train_data returned a tuple of 4"),
    "a number": (lambda: 7, "train_data returned int; it must return a tuple"),
    "a text": (lambda: "scans.npy", "train_data returned"),
    "arrays of two lengths": (lambda: (X, Y[1:]), r"arrays of one length, not of \[99, 100\]"),
    "no examples": (lambda: (X[:0], Y[:0]), "train_data returned no examples"),
    "objects": (
        lambda: (np.array([[None, 1]] * 9), Y[:9]),
        "x holds object, and Keras takes numbers or text",
    ),
    "a data frame with text": (
        lambda: (Frame(np.array([["a", 1]] * 9, object), {"city": np.dtype(object)}), Y[:9]),
        r"x holds object \(in the columns city\)",
    ),
    "ragged lists": (lambda: ([[1.0], [1.0, 2.0]], Y[:2]), "x cannot become an array"),
    "a single number for x": (lambda: (3.0, Y), "x is a single float64"),
    "a generator": (minibatches_without_end, "returned a generator, which can be read only once"),
    "an iterator": (lambda: iter([(X, Y)]), "which can be read only once"),
    "a tf.data.Dataset with repeat()": (
        lambda: tensorflow_data_set().batch(16).repeat(),
        r"never ends: leave out its repeat\(\)",
    ),
    "a tf.data.Dataset of single examples": (
        lambda: tensorflow_data_set((X, Y[:, 0])),
        r"of single examples: call batch\(32\) on it",
    ),
    "minibatches that come once only": (
        OnceOnly,
        "the data set that train_data returned gave 7 minibatches once, and then none",
    ),
    "a sparse tensor": (
        lambda: (importlib.import_module("tensorflow").sparse.from_dense(X), Y),
        "x is a SparseTensor, and must be an array",
    ),
    "two data sets in a tuple": (
        lambda: (tensorflow_data_set(X), tensorflow_data_set(Y)),
        "train_data: x is a .*Dataset, and must be an array",
    ),
    "numbers in place of minibatches": (
        lambda: range(3),
        r"a data set that gives int in place of a minibatch of arrays: it must give tuples \(x, y\)",
    ),
    "a function": (lambda: minibatches_without_end, "train_data returned function; it must return a tuple"),
    "a PyDataset without a length": (lambda: py_dataset(None), "PyDataset that never ends"),
    "a file that is not there": (
        lambda: Path("/nowhere/scans.npy").read_bytes(),
        "train_data cannot read its data: .*/nowhere/scans.npy",
    ),
    "a package that is not there": (
        lambda: importlib.import_module("skan"),
        "train_data needs the package 'skan', which is not installed: pip install it",
    ),
    "a key that is not there": (
        lambda: {"a": 1}["b"],
        r"train_data raised KeyError: 'b' "
        r"\(test_keras_data.py",
    ),
    "another width than the model's": (
        lambda: (X[:, :5], Y),
        "train_data gives 5 columns, and the model takes 6",
    ),
    "class weights in place of sample weights": (
        lambda: (X, Y, {0: 1.0, 1: 9.0}),
        "sample_weight is a dictionary .* weight of its class",
    ),
    "text in place of labels": (
        lambda: (X, np.where(Y > 0, "yes", "no")),
        "Cast string|y is text, which works with Keras on TensorFlow only",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_a_task_error_that_says_what_came_and_what_is_wanted(kind: str) -> None:
    read, said = REFUSED[kind]
    task = a_task(read)
    model = task.model()

    def begin() -> None:
        task.prepare(Site())
        task.train(model.weights, Plan(), seed=0, progress=silent)

    with pytest.raises(TaskError, match=said):
        begin()


def test_examples_that_do_not_fill_the_models_own_minibatches_are_refused() -> None:
    def build_model() -> KerasModel:
        keras = import_keras()
        given = keras.Input(batch_shape=(16, 6))
        model = keras.Model(given, keras.layers.Dense(1, "sigmoid")(given))
        model.compile("sgd", loss="binary_crossentropy")
        return model

    task = CheckedTask(KerasTask(build_model, lambda _: (X, Y), lambda: (X[:32], Y[:32])))
    model = task.model()
    task.prepare(Site())

    assert task.evaluate(model.weights)["loss"] > 0
    with pytest.raises(TaskError, match=r"train_data returned 100 examples, .* return a multiple of 16"):
        task.train(model.weights, Plan(), seed=0, progress=silent)


@pytest.mark.parametrize(
    "kind",
    [
        "None",
        "a list [x, y]",
        "a tf.data.Dataset with repeat()",
        "a generator",
        "minibatches that come once only",
    ],
)
def test_held_out_data_is_held_to_the_same(kind: str) -> None:
    read, said = REFUSED[kind]
    task = a_task(read)

    with pytest.raises(TaskError, match=said.replace("train_data", "eval_data")):
        task.evaluate(task.model().weights)


def test_a_data_set_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_MINIBATCHES", 50)

    with pytest.raises(TaskError, match=r"has not ended after 50 minibatches: is it endless\?"):
        a_task(endless_data_set).prepare(Site())


@needs_tensorflow
def test_a_custom_train_step_gets_the_tuple_that_fit_would_give_it() -> None:
    got: list[int] = []

    def train_step(model: Any, minibatch: Any) -> Any:
        got.append(len(minibatch))
        x, y = minibatch
        return import_keras().Model.train_step(model, (x, y))

    def build_model() -> KerasModel:
        keras = import_keras()
        own = type("Own", (keras.Model,), {"train_step": train_step})
        given = keras.Input((6,))
        model = own(given, keras.layers.Dense(1, "sigmoid")(given))
        model.compile("sgd", loss="binary_crossentropy", metrics=["accuracy"])
        return model

    task = CheckedTask(KerasTask(build_model, lambda _: (X, Y)))
    model = task.model()
    task.prepare(Site())

    trained = task.train(model.weights, Plan(), seed=0, progress=silent)

    assert set(got) == {2}
    assert set(trained.metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_metrics_are_those_of_the_whole_epoch_however_many_steps_keras_takes_at_once(steps: int) -> None:
    def build_model() -> KerasModel:
        model = a_model()
        metrics = import_keras().metrics
        measured = ["accuracy", metrics.AUC(name="auc"), metrics.F1Score(threshold=0.5)]
        model.compile("sgd", loss="binary_crossentropy", metrics=measured, steps_per_execution=steps)
        return model

    task = CheckedTask(KerasTask(build_model, lambda _: (X, Y), lambda: (X, Y)))
    model = task.model()
    task.prepare(Site())
    told: list[tuple[int, int]] = []

    # With a rate of nothing the metrics of training are those of the weights that it started from.
    plan = Plan(learning_rate=1e-20, batch_size=16)
    trained = task.train(model.weights, plan, seed=0, progress=lambda *now: told.append(now))

    assert trained.metrics == pytest.approx(task.evaluate(model.weights), abs=1e-5)
    assert set(trained.metrics) == {"loss", "accuracy", "auc", "f1_score/0"}
    assert told[-1] == (7, 7)


def a_task_that_counts(*metrics: object) -> KerasTask:
    def build_model() -> KerasModel:
        model = a_model()
        model.compile("sgd", loss="binary_crossentropy", metrics=list(metrics))
        return model

    return KerasTask(build_model, lambda _: (X, Y), lambda: (X, Y))


def test_of_two_accuracies_both_are_reported_by_the_names_of_keras() -> None:
    keras = import_keras()
    stricter = keras.metrics.BinaryAccuracy(threshold=0.9)

    task = a_task_that_counts("accuracy", stricter)

    found = task.evaluate(task.initial_weights(0))

    assert set(found) == {"loss", "accuracy", "binary_accuracy"}
    assert found["accuracy"] != found["binary_accuracy"]


def test_a_metric_that_is_a_dictionary_is_reported_by_its_keys() -> None:
    keras = import_keras()

    def start(metric: Any) -> None:
        keras.metrics.Metric.__init__(metric, name="counts")
        metric.batches = metric.add_weight(shape=(), initializer="zeros")

    def update(metric: Any, *_arguments: object, **_options: object) -> None:
        metric.batches.assign_add(1.0)

    def result(metric: Any) -> dict[str, object]:
        return {"batches": 1 * metric.batches, "twice": 2 * metric.batches}

    counts = type(
        "Counts", (keras.metrics.Metric,), {"__init__": start, "update_state": update, "result": result}
    )
    task = a_task_that_counts(counts())
    weights = task.initial_weights(0)
    task.prepare(Site())

    round_of_five = task.train(weights, Plan(local_steps=5), seed=0, progress=silent).metrics

    assert (round_of_five["batches"], round_of_five["twice"]) == (5.0, 10.0)
    assert task.evaluate(weights)["twice"] > 0


@pytest.mark.parametrize("function", ["build_model", "train_data", "eval_data"])
def test_what_is_no_function_or_takes_other_arguments_is_refused_by_name(function: str) -> None:
    functions: dict[str, Any] = {
        "build_model": a_model,
        "train_data": lambda _site: (X, Y),
        "eval_data": lambda: (X, Y),
    }
    given = a_model() if function == "build_model" else (X, Y)

    with pytest.raises(TaskError, match=f"needs a function as {function}, not .* without calling it"):
        KerasTask(**functions | {function: given})
    task = CheckedTask(KerasTask(**functions | {function: lambda one, two: (one, two)}))

    def begin() -> None:
        weights = task.model().weights
        task.prepare(Site())
        task.evaluate(weights)

    with pytest.raises(TaskError, match=f"{function} raised TypeError: .* missing"):
        begin()
