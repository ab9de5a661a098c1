"""LoRA: only what is trainable travels, and training goes on from a file."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import lora_task

from fluffle.checked_task import CheckedTask, TaskModel
from fluffle.errors import LayoutError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.wire import encode_update
from fluffle_cli.task_command import train_once
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.round import TrainedUpdate, weights_after

Floats = NDArray[np.float32]


def silent(done: int, total: int) -> None:
    """Report nothing."""


def trained_weights(model: TaskModel, trained: TrainedUpdate) -> Weights:
    """Return all tensors after a round that began with this model."""
    return weights_after(model.layout, model.layout.flatten(model.weights), trained)


def a_trained_file(path: Path) -> Floats:
    """Train a round, write the model to a file, and return its predictions."""
    built: list[KerasModel] = []
    checked, model = a_task_that_keeps_its_model_in(built)
    trained = train_once(checked, model, Plan(local_steps=20), seed=0, progress=silent)
    checked.save(trained_weights(model, trained), path)
    predicted: Floats = built[-1].predict(lora_task.TOKENS, verbose=0)
    return predicted


def a_task_that_keeps_its_model_in(built: list[KerasModel]) -> tuple[CheckedTask, TaskModel]:
    def build_model() -> KerasModel:
        built.append(lora_task.build_model(16))
        return built[-1]

    checked = CheckedTask(KerasTask(build_model, lora_task.train_data, lora_task.eval_data))
    model = checked.model()
    checked.prepare(lora_task.SITE)
    return checked, model


def test_a_round_of_a_transformer_of_which_two_hundredths_are_trainable_sends_no_more() -> None:
    checked = CheckedTask(lora_task.make_task(width=128))
    model = checked.model()
    checked.prepare(lora_task.SITE)

    trained = train_once(checked, model, Plan(local_steps=2), seed=0, progress=silent)

    assert model.layout.frozen is not None
    whole = 4 * (model.layout.frozen.parameters + model.layout.size)
    assert whole > 300_000
    assert len(encode_update(trained.update)) < 0.03 * whole
    assert {name.rpartition("/")[2] for name in model.weights} == {
        *("lora_kernel_a", "lora_kernel_b", "kernel", "bias")
    }


def test_keras_reads_the_file_as_a_plain_model_that_predicts_the_same_trains_and_takes_new_adapters(
    tmp_path: Path,
) -> None:
    predicted = a_trained_file(tmp_path / "model.keras")

    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        plain = import_keras().saving.load_model(tmp_path / "model.keras")
    layer = plain.get_layer("base").get_layer("forward")
    before = layer.kernel.numpy()

    assert [each.path for each in plain.weights if "lora" in each.path] == []
    assert plain.predict(lora_task.TOKENS, verbose=0) == pytest.approx(predicted, abs=1e-5)
    plain.fit(lora_task.TOKENS, lora_task.LABELS, verbose=0)
    assert np.any(layer.kernel.numpy() != before)
    layer.enable_lora(4)
    assert np.any(layer.lora_kernel_a.numpy() != 0)


def test_a_federation_goes_on_from_the_file_with_the_same_base_and_the_same_adapters(tmp_path: Path) -> None:
    a_trained_file(tmp_path / "model.keras")
    expected = CheckedTask(lora_task.make_task()).model()
    other = CheckedTask(lora_task.make_task())

    loaded = other.load(tmp_path / "model.keras")
    other.prepare(lora_task.SITE)
    trained = train_once(other, loaded, Plan(local_steps=3), seed=0, progress=silent)

    assert loaded.layout == expected.layout
    adapters = [name for name in loaded.weights if "lora" in name]
    assert all(np.any(loaded.weights[name] != 0) for name in adapters)
    after = trained_weights(loaded, trained)
    assert all(np.any(after[name] != loaded.weights[name]) for name in adapters)


def test_from_a_file_of_keras_itself_the_adapters_begin_anew_and_train(tmp_path: Path) -> None:
    built: list[KerasModel] = []
    checked, model = a_task_that_keeps_its_model_in(built)
    trained = train_once(checked, model, Plan(local_steps=20), seed=0, progress=silent)
    metrics = checked.evaluate(trained_weights(model, trained))
    built[-1].save(tmp_path / "model.keras")
    other = CheckedTask(lora_task.make_task())

    loaded = other.load(tmp_path / "model.keras")
    other.prepare(lora_task.SITE)
    after = trained_weights(loaded, train_once(other, loaded, Plan(local_steps=3), seed=0, progress=silent))

    assert other.evaluate(loaded.weights) == pytest.approx(metrics, abs=1e-4)
    adapters = [name for name in loaded.weights if "lora" in name]
    assert all(np.any(after[name] != loaded.weights[name]) for name in adapters)


def test_adapters_of_another_rank_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_trained_file(tmp_path / "model.keras")
    monkeypatch.setattr(lora_task, "RANK", 3)

    with pytest.raises(LayoutError, match=r"holds adapters of another model: .*lora_kernel_a"):
        CheckedTask(lora_task.make_task()).load(tmp_path / "model.keras")


def test_a_file_of_a_model_without_lora_is_as_keras_has_written_it(tmp_path: Path) -> None:
    keras = import_keras()

    def build_model() -> KerasModel:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    task = KerasTask(build_model, lambda _: None)
    task.save(task.initial_weights(0), tmp_path / "model.keras")

    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert set(archive.namelist()) == {"metadata.json", "config.json", "model.weights.h5"}
