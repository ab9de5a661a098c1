"""The ready tasks and the examples, on their real data with real TensorFlow."""

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from fluffle import initial_model
from fluffle.errors import TaskError
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.safetensors_file import read_model
from fluffle.task import Site, load_task
from fluffle_cli.main import app
from fluffle_worker.keras_task.backend import uses_tensorflow
from fluffle_worker.round import train_centrally
from fluffle_worker.tasks import diabetes, digits, fashion_mnist

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = ["own_keras_task", "numpy_task", "sklearn_task"]

needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir() and not os.environ.get("CI"),
    reason="Debian's package dataset-fashion-mnist is not installed",
)


def silent(done: int, total: int) -> None:
    """Report nothing."""


def centrally(task_name: str, *, epochs: int) -> Mapping[str, float]:
    return train_centrally(load_task(task_name), epochs=epochs, plan=Plan(), seed=0)


def test_digits_trained_centrally_gets_more_than_95_percent_right() -> None:
    found = centrally("digits", epochs=30)

    assert found["accuracy"] > 0.95


def test_diabetes_trained_centrally_explains_much_that_the_mean_does_not() -> None:
    _, targets = diabetes.eval_data()
    loss_of_the_mean = float(np.mean(targets**2))

    found = centrally("diabetes", epochs=15)

    assert 0.9 < loss_of_the_mean < 1.1
    assert found["loss"] < 0.75 * loss_of_the_mean
    assert found["mae"] < 0.75


@pytest.mark.parametrize("module", [digits, diabetes])
def test_held_out_examples_are_a_fifth_and_no_site_trains_on_them(module: ModuleType) -> None:
    inputs, targets = module.eval_data()
    shares = [module.train_data(Site(index=index, count=4)) for index in range(4)]

    trained_on = {row.tobytes() for share, _ in shares for row in share}
    examples = sum(len(share) for share, _ in shares)
    assert len(inputs) / (len(inputs) + examples) == pytest.approx(0.2, abs=0.003)
    assert not trained_on & {row.tobytes() for row in inputs}
    assert all(len(share) >= 20 and len(share) == len(labels) for share, labels in shares)
    assert inputs.dtype == np.float32
    assert len(targets) == len(inputs)


def test_every_digit_is_held_out_in_its_proportion() -> None:
    _, held_out = digits.eval_data()
    _, kept = digits.train_data(Site())

    shares = np.bincount(held_out) / (np.bincount(held_out) + np.bincount(kept))

    assert np.all(np.abs(shares - 0.2) < 0.005)


@needs_fashion_mnist
def test_fashion_mnist_is_read_from_debian_s_files_and_soon_learnt() -> None:
    images, labels = fashion_mnist.train_data(Site())
    task = fashion_mnist.task
    weights = task.initial_weights(0)

    examples = task.prepare(Site(index=1, count=4, split="iid"))
    result = task.train(weights, Plan(local_steps=120, batch_size=64), seed=0, progress=silent)

    assert images.shape == (60000, 28, 28, 1)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [6000] * 10
    assert examples == 15000
    assert Layout.of(weights).size == 16330
    assert task.evaluate(result.weights)["accuracy"] > 0.6


def test_fashion_mnist_is_found_in_the_cache_of_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    folder = tmp_path / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    sizes = np.array([2, 28, 28], ">u4").tobytes()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x03" + sizes + images.tobytes())
    )
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + sizes[:4] + bytes([9, 3]))
    )

    found, labels = fashion_mnist.eval_data()

    assert np.array_equal(found[..., 0], images)
    assert labels.tolist() == [9, 3]


def test_fashion_mnist_that_is_nowhere_is_an_error_that_names_both_places_and_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    with pytest.raises(TaskError) as refused:
        fashion_mnist.task.prepare(Site())

    said = str(refused.value)
    assert "debian/train-images-idx3-ubyte.gz" in said
    assert "keras/datasets/fashion-mnist/train-images-idx3-ubyte.gz" in said
    assert "apt-get install dataset-fashion-mnist" in said


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns_saves_and_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    task = load_task(f"examples.{name}:task")
    weights = task.initial_weights(0)

    examples = task.prepare(Site(index=1, count=3))
    has_proximal_term = uses_tensorflow() and name != "sklearn_task"
    plan = Plan(local_epochs=15, proximal_mu=0.01 if has_proximal_term else 0.0)
    result = task.train(weights, plan, seed=0, progress=silent)
    again = task.train(weights, plan, seed=0, progress=silent)
    task.save(result.weights, tmp_path / "model.keras")
    loaded = task.load(tmp_path / "model.keras")

    assert result.examples == examples
    assert task.evaluate(result.weights)["accuracy"] > 0.85
    assert Layout.of(result.weights) == Layout.of(weights)
    for other in (again.weights, loaded):
        assert all(np.array_equal(other[tensor], result.weights[tensor]) for tensor in result.weights)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_the_task_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)

    checked = CliRunner().invoke(app, ["task", "check", "--task", f"examples.{name}:task"])

    assert checked.exit_code == 0, checked.stderr
    assert f"examples.{name}:task works" in checked.stdout


@pytest.mark.parametrize("name", [each for each in EXAMPLES if each != "own_keras_task"])
def test_an_example_without_keras_multiplies_the_learning_rate_by_the_plans_scale(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    task = load_task(f"examples.{name}:task")
    weights = task.initial_weights(0)
    task.prepare(Site())

    halved = Plan(local_steps=1, learning_rate=0.1, learning_rate_scale=0.5)
    scaled = task.train(weights, halved, seed=0, progress=silent)
    plain = task.train(weights, Plan(local_steps=1, learning_rate=0.05), seed=0, progress=silent)

    assert all(np.array_equal(scaled.weights[tensor], plain.weights[tensor]) for tensor in weights)


def test_the_scikit_learn_example_refuses_a_plan_with_a_proximal_term(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(CHECKOUT)
    task = load_task("examples.sklearn_task:task")

    with pytest.raises(TaskError, match="SGDClassifier has no proximal term"):
        task.train(task.initial_weights(0), Plan(proximal_mu=0.1), seed=0, progress=silent)


def test_the_initial_model_of_digits_is_seeded_or_comes_from_a_keras_file(tmp_path: Path) -> None:
    expected = digits.task.initial_weights(3)
    digits.task.save(digits.task.initial_weights(4), tmp_path / "four.keras")
    seeded, given = tmp_path / "seeded.safetensors", tmp_path / "given.safetensors"

    initial_model.main(["--task", "digits", "--seed", "3", "--out", str(seeded)])
    initial_model.main(["--task", "digits", "--from", str(tmp_path / "four.keras"), "--out", str(given)])

    three, four = read_model(seeded), read_model(given)
    assert list(three) == list(four) == list(expected)
    assert np.array_equal(three["dense/kernel"], expected["dense/kernel"])
    assert np.array_equal(four["dense/kernel"], digits.task.initial_weights(4)["dense/kernel"])
