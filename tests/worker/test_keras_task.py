"""A KerasTask, with real TensorFlow: what it promises to the loop that drives it."""

import hashlib
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features.feature import needs_tensorflow
from numpy.typing import NDArray

from fluffle.errors import LayoutError, TaskError
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.task import Site, Task, Trained
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

Floats = NDArray[np.float32]

INPUTS: Floats = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
TARGETS: Floats = (INPUTS[:, :1] > 0).astype(np.float32)


def train_data(site: Site) -> tuple[Floats, Floats]:
    return INPUTS, TARGETS


def silent(done: int, total: int) -> None:
    """Report nothing."""


OTHER_PROCESS = """
from test_keras_task import digest, a_task, trained
task = a_task()
weights = task.initial_weights(5)
print(digest(weights), digest(trained(task, weights, seed=7).weights))
"""


def a_model(*middle: str, optimizer: object = "adam", metric: object = "accuracy") -> KerasModel:
    """Six inputs, eight units, then the layers that `middle` names, then one sigmoid."""
    keras = import_keras()
    layers = {
        "batch normalization": keras.layers.BatchNormalization,
        "dropout": lambda: keras.layers.Dropout(0.5),
        "float16": lambda: keras.layers.Dense(4, dtype="float16"),
        "count": keras.layers.Normalization,
    }
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="relu")])
    for name in middle:
        model.add(layers[name]())
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(optimizer, loss="binary_crossentropy", metrics=[metric])
    return model


def a_task(*middle: str) -> KerasTask:
    return KerasTask(lambda: a_model(*middle), train_data, lambda: (INPUTS, TARGETS))


def a_started_task(*middle: str) -> tuple[KerasTask, Weights]:
    task = a_task(*middle)
    return task, task.initial_weights(0)


def a_line() -> KerasTask:
    """A model of one weight: w * 3 should be 12, with squared error and plain SGD of rate 0.01."""

    def build_model() -> KerasModel:
        keras = import_keras()
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(0.01), loss="mean_squared_error")
        return model

    return KerasTask(build_model, lambda _: (np.full((1, 1), 3.0), np.full((1, 1), 12.0)))


def tensorflow_data_set(*, passes: int = 1) -> object:
    data_sets = importlib.import_module("tensorflow").data.Dataset
    return data_sets.from_tensor_slices((INPUTS, TARGETS)).batch(16).repeat(passes)


def trained(task: Task, weights: Weights, plan: Plan | None = None, *, seed: int = 0) -> Trained:
    task.prepare(Site())
    return task.train(weights, plan or Plan(), seed=seed, progress=silent)


def digest(weights: Weights) -> str:
    return hashlib.sha256(b"".join(name.encode() + weights[name].tobytes() for name in weights)).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def other_process() -> Iterator[subprocess.Popen[str]]:
    # Started first, since TensorFlow takes seconds to import; read by one test.
    command = [sys.executable, "-c", OTHER_PROCESS]
    folder = Path(__file__).parent
    environ = os.environ | {"PYTHONPATH": str(folder.parent)}
    with subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_keras_task_is_a_task_and_names_its_weights_by_layer() -> None:
    task, weights = a_started_task()

    assert isinstance(task, Task)
    assert [str(spec) for spec in Layout.of(weights).tensors] == [
        "dense/kernel float32[6, 8]",
        "dense/bias float32[8]",
        "dense_1/kernel float32[8, 1]",
        "dense_1/bias float32[1]",
    ]


def test_the_same_seed_weights_and_data_give_the_same_bits_in_every_round() -> None:
    task, weights = a_started_task("batch normalization", "dropout")

    first, other, again = (digest(trained(task, weights, seed=seed).weights) for seed in (1, 2, 1))

    assert first == again
    assert first != other


def test_a_round_leaves_its_argument_and_earlier_results_as_they_were() -> None:
    task, weights = a_started_task()
    before = digest(weights)

    first = trained(task, weights)
    first_before = digest(first.weights)
    trained(task, first.weights)

    assert digest(weights) == before
    assert digest(first.weights) == first_before


def test_statistics_of_batch_normalization_travel_and_the_state_of_dropout_does_not() -> None:
    task, weights = a_started_task("batch normalization", "dropout")

    result = trained(task, weights)

    assert [name for name in weights if "batch" in name] == [
        "batch_normalization/gamma",
        "batch_normalization/beta",
        "batch_normalization/moving_mean",
        "batch_normalization/moving_variance",
    ]
    assert not [name for name in weights if "seed" in name or "dropout" in name]
    assert np.any(result.weights["batch_normalization/moving_mean"] != 0)


def test_an_integer_tensor_passes_through_and_dtypes_stay() -> None:
    task = a_task("count", "float16")
    weights = {**task.initial_weights(0)}
    # An int64 with TensorFlow, an int32 with JAX.
    weights["normalization/count"] = np.full_like(weights["normalization/count"], 7)

    result = trained(task, weights)

    assert Layout.of(result.weights) == Layout.of(weights)
    assert result.weights["normalization/count"] == 7
    assert result.weights["dense_1/kernel"].dtype == np.float16
    assert np.any(result.weights["dense_1/kernel"] != weights["dense_1/kernel"])


@needs_tensorflow
def test_two_sgd_steps_follow_the_gradient_and_the_second_is_pulled_towards_the_base() -> None:
    task = a_line()
    weights = {"dense/kernel": np.full((1, 1), 2.0, np.float32)}

    free = trained(task, weights, Plan(local_steps=2))
    two_epochs = trained(task, weights, Plan(local_epochs=2))
    pulled = trained(task, weights, Plan(local_steps=2, proximal_mu=5.0))
    pulled_more = trained(task, weights, Plan(local_steps=2, proximal_mu=20.0))

    # The loss is (3w - 12)^2, its gradient 6(3w - 12): w = 2, then 2 + 0.36 = 2.36, then 2.36 + 0.2952.
    assert free.weights["dense/kernel"].item() == pytest.approx(2.6552, abs=1e-5)
    # The pull is mu(w - 2): none in the first step, then 0.01 * 5 * 0.36 = 0.018, or four times as much.
    assert pulled.weights["dense/kernel"].item() == pytest.approx(2.6552 - 0.018, abs=1e-5)
    assert pulled_more.weights["dense/kernel"].item() == pytest.approx(2.6552 - 0.072, abs=1e-5)
    # The loss that is reported is that of the data, of all steps, or of the last epoch: 7.08 is 4.92 short.
    assert pulled.metrics["loss"] == free.metrics["loss"] == pytest.approx((36 + 24.2064) / 2, rel=1e-5)
    assert two_epochs.metrics["loss"] == pytest.approx(24.2064, rel=1e-5)


def test_the_plan_s_learning_rate_counts_for_its_round_only() -> None:
    task = a_line()
    weights = {"dense/kernel": np.full((1, 1), 2.0, np.float32)}

    faster = trained(task, weights, Plan(learning_rate=0.02))
    after = trained(task, weights)

    assert faster.weights["dense/kernel"].item() == pytest.approx(2.72, abs=1e-5)
    assert after.weights["dense/kernel"].item() == pytest.approx(2.36, abs=1e-5)


def test_every_round_starts_with_fresh_moments_and_at_the_start_of_a_schedule() -> None:
    keras = import_keras()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    task = KerasTask(lambda: a_model(optimizer=keras.optimizers.Adam(schedule)), train_data)
    weights = task.initial_weights(0)

    first, again = trained(task, weights), trained(task, weights)

    assert digest(first.weights) == digest(again.weights)
    with pytest.raises(TaskError, match="cannot replace the schedule of the model's own optimizer"):
        trained(task, weights, Plan(learning_rate=0.5))


@needs_tensorflow
def test_only_the_first_round_traces_the_training_step_and_a_change_to_a_proximal_term() -> None:
    traces: list[object] = []
    keras = import_keras()

    def traced(x: object) -> object:
        traces.append(x)
        return x

    def build_model() -> KerasModel:
        layers = [keras.layers.Lambda(traced, output_shape=(6,)), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((6,)), *layers])
        model.compile("adam", loss="mean_squared_error")
        return model

    task = KerasTask(build_model, train_data)
    weights = task.initial_weights(0)

    counts = []
    for mu in (0.0, 0.0, 0.0, 0.1, 0.1, 0.2):
        trained(task, weights, Plan(proximal_mu=mu))
        counts.append(len(traces))

    assert counts[0] == counts[1] == counts[2] < counts[3] == counts[4] == counts[5]


@pytest.mark.parametrize(
    ("plan", "minibatches", "examples"),
    [
        (Plan(local_epochs=2), 8, 100),  # Each epoch has three minibatches of 32 and one of 4.
        (Plan(local_epochs=2, local_steps=2), 2, 64),
        (Plan(local_steps=9, batch_size=40), 9, 100),
    ],
)
def test_a_round_has_the_plan_s_epochs_or_steps_and_tells_of_every_minibatch(
    plan: Plan, minibatches: int, examples: int
) -> None:
    task, weights = a_started_task()
    told: list[tuple[int, int]] = []
    task.prepare(Site())

    result = task.train(weights, plan, seed=0, progress=lambda done, total: told.append((done, total)))

    assert told == [(done, minibatches) for done in range(1, minibatches + 1)]
    assert result.examples == examples
    assert set(result.metrics) == {"loss", "accuracy"}
    assert all(type(value) is float for value in result.metrics.values())


def test_evaluation_calls_any_accuracy_by_one_name() -> None:
    metric = import_keras().metrics.BinaryAccuracy()
    task = KerasTask(lambda: a_model(metric=metric), train_data, lambda: (INPUTS, TARGETS))

    found = task.evaluate(task.initial_weights(0))

    assert set(found) == {"loss", "accuracy"}
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("kind", ["tf.data.Dataset", "PyDataset"])
def test_a_data_set_brings_its_own_minibatches(kind: str) -> None:
    keras = import_keras()
    cut = {
        "__len__": lambda _: 7,
        "__getitem__": lambda _, index: (INPUTS[index * 16 :][:16], TARGETS[index * 16 :][:16]),
    }
    pairs = type("Pairs", (keras.utils.PyDataset,), cut)
    data_set = pairs() if kind == "PyDataset" else tensorflow_data_set()
    task = KerasTask(a_model, lambda _: data_set, lambda: data_set)
    weights = task.initial_weights(0)
    told: list[tuple[int, int]] = []

    examples = task.prepare(Site())
    result = task.train(weights, Plan(), seed=0, progress=lambda done, total: told.append((done, total)))

    assert examples == result.examples == 100
    assert told == [(done, 7) for done in range(1, 8)]
    assert task.evaluate(result.weights)["loss"] < task.evaluate(weights)["loss"]


def test_a_saved_model_is_a_keras_model_and_loads_with_the_same_bits(tmp_path: Path) -> None:
    task = a_task("batch normalization", "dropout")
    result = trained(task, task.initial_weights(0))

    task.save(result.weights, tmp_path / "model.keras")
    loaded = a_task("batch normalization", "dropout").load(tmp_path / "model.keras")
    as_keras_reads_it = import_keras().saving.load_model(tmp_path / "model.keras")

    assert list(loaded) == list(result.weights)
    assert digest(loaded) == digest(result.weights)
    assert as_keras_reads_it.predict(INPUTS, verbose=0).shape == (100, 1)


def test_another_model_or_none_is_refused(tmp_path: Path) -> None:
    larger, task = a_task("batch normalization"), a_task()
    larger.save(larger.initial_weights(0), tmp_path / "larger.keras")
    (tmp_path / "junk.keras").write_bytes(b"junk")

    with pytest.raises(LayoutError, match=r"another model: float32\[8\] at .* where the task has nothing"):
        task.load(tmp_path / "larger.keras")
    with pytest.raises(LayoutError, match=r"^the model has no batch_normalization/beta"):
        task.evaluate(larger.initial_weights(0))
    with pytest.raises(TaskError, match="no model in Keras's own format"):
        task.load(tmp_path / "junk.keras")
    with pytest.raises(TaskError, match="there is no file"):
        task.load(tmp_path / "missing.keras")
    with pytest.raises(TaskError, match=r"end in \.keras, not model\.h5"):
        task.save(task.initial_weights(0), tmp_path / "model.h5")


def test_a_model_built_in_one_thread_trains_in_another() -> None:
    task, weights = a_started_task("dropout")
    results = [trained(task, weights)]

    thread = threading.Thread(target=lambda: results.append(trained(task, weights)))
    thread.start()
    thread.join()

    assert digest(results[0].weights) == digest(results[1].weights)


def an_unbuilt_model() -> KerasModel:
    model = import_keras().Sequential([import_keras().layers.Dense(1)])
    model.compile("sgd", loss="mean_squared_error")
    return model


def an_uncalled_subclass() -> KerasModel:
    keras = import_keras()

    def start(model: Any) -> None:
        keras.Model.__init__(model)
        model.last = keras.layers.Dense(1)

    own = type("Own", (keras.Model,), {"__init__": start, "call": lambda model, x: model.last(x)})
    model = own()
    model.compile("sgd", loss="mean_squared_error")
    return model


@pytest.mark.parametrize(
    ("build_model", "said"),
    [
        (an_uncalled_subclass, r"a subclass of keras.Model .* call it on an example before you return it"),
        (lambda: None, "must return a compiled keras.Model"),
        (lambda: import_keras().Sequential(), "must return a compiled keras.Model"),
        (an_unbuilt_model, r"let it begin with keras.Input\(shape\)"),
    ],
)
def test_a_build_model_with_a_mistake_is_told_what_to_do(
    build_model: Callable[[], KerasModel], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        KerasTask(build_model, train_data).initial_weights(0)


def test_what_is_called_too_early_or_without_held_out_data_says_so() -> None:
    task = a_line()
    weights = task.initial_weights(0)

    with pytest.raises(TaskError, match=r"call prepare\(site\) first"):
        task.train(weights, Plan(), seed=0, progress=silent)
    with pytest.raises(TaskError, match="give its KerasTask an eval_data function"):
        task.evaluate(weights)


def test_without_tensorflow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")

    with pytest.raises(TaskError, match=r"needs Keras on tensorflow: install Fluffle with .* \[worker\]"):
        a_task().initial_weights(0)


def test_another_process_gets_the_same_bits_from_the_same_seed(other_process: subprocess.Popen[str]) -> None:
    task = a_task()
    other_seed = digest(task.initial_weights(6))
    weights = task.initial_weights(5)

    here = [digest(weights), digest(trained(task, weights, seed=7).weights)]
    there, _ = other_process.communicate(timeout=200)

    assert there.split() == here
    assert other_seed not in here
