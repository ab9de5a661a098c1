"""Models for devices that only infer: pruned, quantized by Keras, read again and evaluated.

What public reports tell: a quantized model that Keras writes and cannot read (keras #21378), one inside
another that cannot be quantized (keras #16888), subclassed models (tensorflow #40699).
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import small_device_task
from typer.testing import CliRunner

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.plan import Plan
from fluffle.task import Site
from fluffle_cli.main import app
from fluffle_cli.small_export import export_small
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.keras_task.backend import uses_tensorflow
from fluffle_worker.keras_task.shrinking import Shrinking, Shrunk

X: NDArray[np.float32] = np.random.default_rng(0).random((60, 4, 6), np.float32)
Y: NDArray[np.float32] = (X.sum(axis=(1, 2)) > X.sum(axis=(1, 2)).mean()).astype(np.float32)[:, np.newaxis]


def silent(done: int, total: int) -> None:
    """Report nothing."""


def trained(task: KerasTask, epochs: int = 8) -> dict[str, NDArray[np.generic]]:
    """Train a model by itself, and return its weights."""
    checked = CheckedTask(task)
    model = checked.model()
    checked.prepare(Site())
    result = checked.train(model.weights, Plan(local_epochs=epochs, batch_size=32), seed=1, progress=silent)
    return dict(result.weights)


def shrunk(task: KerasTask, path: Path, shrinking: Shrinking, epochs: int = 8) -> Shrunk:
    return task.save_small(trained(task, epochs), path, shrinking)


def test_a_quantized_dense_model_is_a_third_as_large_and_as_good(tmp_path: Path) -> None:
    found = shrunk(small_device_task.dense, tmp_path / "small.keras", Shrinking(quantize=True))

    loaded = import_keras().models.load_model(tmp_path / "small.keras")
    assert {str(layer.kernel.dtype) for layer in loaded.layers if hasattr(layer, "kernel")} == {"int8"}
    assert (list(found.quantized), list(found.not_quantized)) == (["hidden", "last"], [])
    assert found.after.size_bytes == (tmp_path / "small.keras").stat().st_size < 0.6 * found.before.size_bytes
    assert found.before.metrics["accuracy"] > 0.85
    assert abs(found.after.metrics["accuracy"] - found.before.metrics["accuracy"]) < 0.02
    images, labels = small_device_task.eval_data()
    again = loaded.evaluate(images, labels, verbose=0, return_dict=True)
    assert again["accuracy"] == pytest.approx(found.after.metrics["accuracy"], abs=1e-6)


def test_a_pruned_cnn_has_the_zeros_in_each_kernel_and_says_what_it_costs(tmp_path: Path) -> None:
    shrinking = Shrinking(prune=0.75)

    found = shrunk(small_device_task.cnn, tmp_path / "small.keras", shrinking)

    loaded = import_keras().models.load_model(tmp_path / "small.keras")
    kernels = [variable for variable in loaded.weights if variable.name == "kernel"]
    shares = [np.mean(import_keras().ops.convert_to_numpy(kernel) == 0) for kernel in kernels]
    assert len(kernels) == 4
    assert shares == pytest.approx([0.75] * 4, abs=0.01)
    assert found.before.zeros < 0.02
    assert 0.7 < found.after.zeros < 0.76
    assert found.after.size_bytes < 0.6 * found.before.size_bytes
    # Three quarters are too much without training, and the table says so.
    assert found.after.metrics["accuracy"] < found.before.metrics["accuracy"]


def test_pruning_comes_before_quantization_and_zeros_stay(tmp_path: Path) -> None:
    found = shrunk(
        small_device_task.cnn, tmp_path / "small.keras", Shrinking(prune=0.3, quantize=True), epochs=12
    )

    assert (list(found.quantized), list(found.not_quantized)) == (["hidden", "last"], ["conv_0", "conv_1"])
    assert found.after.zeros > 0.28
    assert found.after.metrics["accuracy"] > 0.8


def attention(keras: ModuleType) -> KerasModel:
    inputs = keras.Input((4, 6))
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = keras.layers.TimeDistributed(keras.layers.Dense(5, name="each"), name="times")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="last")(x))


def nested(keras: ModuleType) -> KerasModel:
    inner = keras.Sequential([keras.Input((24,)), keras.layers.Dense(8, "relu", name="within")], name="inner")
    inputs = keras.Input((4, 6))
    x = inner(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="last")(x))


def convolution(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    model = [layers.Conv1D(1, 4, name="conv"), layers.Flatten(), layers.Activation("sigmoid")]
    return keras.Sequential([keras.Input((4, 6)), *model])


def without_kernels(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    model = [layers.GlobalAveragePooling1D(), layers.LayerNormalization(), layers.GlobalMaxPooling1D()]
    return keras.Sequential([keras.Input((4, 6)), model[0], model[1], layers.Reshape((6, 1)), model[2]])


def subclassed(keras: ModuleType) -> KerasModel:
    flat, last = keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")
    methods = {"call": lambda self, inputs: self.last(self.flat(inputs))}
    model = type("Unknown", (keras.Model,), methods)()
    model.flat, model.last = flat, last
    model(X[:1])
    return model


def a_task(build: Callable[[ModuleType], KerasModel], *, held_out: bool = True) -> KerasTask:
    def build_model() -> KerasModel:
        model = build(import_keras())
        model.compile("adam", loss="binary_crossentropy", metrics=["accuracy"])
        return model

    return KerasTask(build_model, lambda _: (X, Y), (lambda: (X, Y)) if held_out else None)


@pytest.mark.parametrize(
    ("build", "quantized", "left"),
    [
        (attention, ["last"], ["attention_output", "each", "key", "query", "value"]),
        (nested, ["within", "last"], []),
    ],
)
def test_layers_that_keras_could_not_read_again_are_left_as_they_are(
    build: Callable[[ModuleType], KerasModel], quantized: list[str], left: list[str], tmp_path: Path
) -> None:
    found = shrunk(a_task(build), tmp_path / "small.keras", Shrinking(quantize=True), epochs=1)

    assert (list(found.quantized), list(found.not_quantized)) == (quantized, left)
    assert found.after.metrics["loss"] == pytest.approx(found.before.metrics["loss"], abs=0.05)


@pytest.mark.parametrize(
    ("build", "shrinking", "says"),
    [
        (convolution, Shrinking(quantize=True), r"--quantize: Keras quantizes Dense, .*; it has Conv1D$"),
        (without_kernels, Shrinking(prune=0.5), "--prune: no layer of the model has a kernel of floats"),
        (
            subclassed,
            Shrinking(quantize=True),
            r"Keras cannot read .*your own classes and functions need",
        ),
    ],
)
def test_a_model_that_cannot_be_shrunk_is_an_error_and_no_file_is_left(
    build: Callable[[ModuleType], KerasModel], shrinking: Shrinking, says: str, tmp_path: Path
) -> None:
    task = a_task(build)
    weights = CheckedTask(task).model().weights

    with pytest.raises(TaskError, match=says):
        task.save_small(weights, tmp_path / "small.keras", shrinking)

    assert list(tmp_path.iterdir()) == []


def test_without_held_out_data_there_are_no_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = CheckedTask(a_task(nested, held_out=False))

    export_small(task, task.model().weights, tmp_path / "small.keras", quantize=True, prune=0.5)

    said = capsys.readouterr()
    assert "The task has no held-out data here, so the model was not evaluated." in said.err
    assert "int8: within, last" in said.out
    assert (tmp_path / "small.keras").is_file()


def test_only_a_keras_file_is_shrunk_and_only_a_keras_task(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["model", "export", "--out", "a.safetensors", "--quantize", "int8"])

    assert refused.exit_code == 2
    assert "--quantize and --prune write .keras files, not 'a.safetensors'" in refused.output
    wrong = CliRunner().invoke(app, ["model", "export", "--out", "a.keras", "--prune", "1"])
    assert wrong.exit_code == 2
    assert "prune" in wrong.output


pytestmark = pytest.mark.skipif(not uses_tensorflow(), reason="Keras quantizes the same way on each backend")
