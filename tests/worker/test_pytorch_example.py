"""The PyTorch example. TensorFlow is not imported here: with it, torch's CUDA build crashes in Triton."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fluffle.checked_task import CheckedTask
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.task import Site, load_task
from fluffle_cli.main import app

NAME = "examples.pytorch_task:task"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def silent(done: int, total: int) -> None:
    """Report nothing."""


def are_equal(some: Weights, others: Weights) -> bool:
    return all(np.array_equal(some[name], others[name]) for name in {*some, *others})


def test_the_pytorch_example_learns_saves_and_loads(tmp_path: Path) -> None:
    task = load_task(NAME)
    weights = task.initial_weights(0)

    examples = task.prepare(Site(index=1, count=3))
    plan = Plan(local_epochs=15, proximal_mu=0.01)
    result = task.train(weights, plan, seed=0, progress=silent)
    again = task.train(weights, plan, seed=0, progress=silent)
    task.save(result.weights, tmp_path / "model.keras")

    assert result.examples == examples
    assert task.evaluate(result.weights)["accuracy"] > 0.85
    assert Layout.of(result.weights) == Layout.of(weights)
    assert are_equal(result.weights, again.weights)
    assert are_equal(result.weights, task.load(tmp_path / "model.keras"))


def test_the_pytorch_example_passes_the_task_check() -> None:
    checked = CliRunner().invoke(app, ["task", "check", "--task", NAME])

    assert checked.exit_code == 0, checked.stderr
    assert f"{NAME} works" in checked.stdout


def test_the_pytorch_example_multiplies_the_learning_rate_by_the_plans_scale() -> None:
    task = load_task(NAME)
    weights = task.initial_weights(0)
    task.prepare(Site())

    halved = Plan(local_steps=1, learning_rate=0.1, learning_rate_scale=0.5)
    scaled = task.train(weights, halved, seed=0, progress=silent)
    plain = task.train(weights, Plan(local_steps=1, learning_rate=0.05), seed=0, progress=silent)

    assert are_equal(scaled.weights, plain.weights)


def test_the_proximal_term_of_the_pytorch_example_keeps_weights_near_the_base() -> None:
    task = load_task(NAME)
    weights = task.initial_weights(0)
    task.prepare(Site())

    def distance(plan: Plan) -> float:
        trained = task.train(weights, plan, seed=0, progress=silent).weights
        return float(np.linalg.norm(np.subtract(trained["3.weight"], weights["3.weight"], dtype=np.float64)))

    assert distance(Plan(proximal_mu=1.0)) < distance(Plan()) / 2


def test_the_statistics_of_batch_norm_travel_as_values() -> None:
    layout = CheckedTask(load_task(NAME)).model().layout

    groups = {spec.name: spec.group for spec in layout.tensors}

    assert {name for name, group in groups.items() if group == "statistic"} >= {
        "1.running_mean",
        "1.running_var",
    }
    assert groups["0.weight"] == groups["1.weight"] == "trained"
