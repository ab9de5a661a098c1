"""`--round-seconds`: what is refused, what it does to a strategy, and what a simulation makes of it."""

from collections import defaultdict
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy_task
import pytest

from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.settings import load_arguments
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.simulate.federation import SimulatedFederation
from fluffle_cli.simulate.queueing import QueueFederation
from fluffle_cli.simulate.settings import SimulateSettings


def settings(**given: Any) -> AggregatorSettings:
    return load_arguments(AggregatorSettings, given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"local_steps": 5}, "round_seconds and local_steps both say how long a round is"),
        ({"local_epochs": 2}, "round_seconds and local_epochs both say how long a round is"),
        ({"min_steps": 9, "max_steps": 3}, "min_steps is 9 and max_steps 3: the least must not be more"),
        ({"strategy": "fedasync"}, "fedasync has workers send their weights, which cannot be normalised"),
        ({"round_seconds": None, "min_steps": 2}, "min_steps has no effect without round_seconds"),
        ({"round_seconds": None, "max_steps": 2}, "max_steps has no effect without round_seconds"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], says: str) -> None:
    chosen = settings(**{"round_seconds": 5, **given})

    with pytest.raises(ConfigError, match=says):
        chosen.make_plan(chosen.make_strategy())


@pytest.mark.parametrize("wrong", [0, -1, "nan", "inf", "soon"])
def test_a_length_that_no_round_can_have_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="round_seconds must be"):
        settings(round_seconds=wrong)


@pytest.mark.parametrize("strategy", ["reuse", "fedbuff", "fedavg", "ace", "ca2fl", "ringleader", "fedac"])
def test_updates_of_chosen_steps_are_normalised_unless_that_is_forbidden(strategy: str) -> None:
    fixed = settings(strategy=strategy)
    chosen = settings(strategy=strategy, round_seconds=5)
    forbidden = settings(strategy=strategy, round_seconds=5, normalize_steps=False)

    assert not fixed.make_strategy().normalizes_steps
    assert chosen.make_strategy().normalizes_steps
    assert "normalize_steps" in str(chosen.make_strategy())
    assert not forbidden.make_strategy().normalizes_steps
    assert chosen.make_plan(chosen.make_strategy()).round_seconds == 5


def simulated(**given: Any) -> tuple[list[ModelVersion], dict[str, list[tuple[int, float]]]]:
    """Return the versions of a simulation, and the steps and seconds of each worker's rounds."""
    defaults = {"federation": "digits", "task": "numpy_task:task", "clients": 4, "max_seconds": 40}
    devices = {"device_seconds": "constant:0.1", "example_seconds": "spread:0.002:16"}
    checked = load_arguments(SimulateSettings, defaults | devices | {"round_seconds": 2} | given)
    checked.check()
    versions: list[ModelVersion] = []
    SimulatedFederation(checked, numpy_task.task, versions.append).run()
    rounds = defaultdict(list)
    for version in versions:
        for one in version.folded:
            assert one.batch_size == 32
            rounds[one.id.worker].append((one.steps, one.train_s))
    return versions, dict(rounds)


@pytest.mark.parametrize("given", [{}, {"strategy": "fedbuff"}, {"strategy": "fedavg"}], ids=str)
def test_simulated_devices_of_different_speed_have_rounds_of_one_length(given: dict[str, Any]) -> None:
    versions, rounds = simulated(**given)

    steps = [mean(steps for steps, _ in rounds[worker][2:]) for worker in sorted(rounds)]
    assert steps[0] > 8 * steps[-1]
    assert all(1.0 < seconds < 2.1 for each in rounds.values() for _, seconds in each[2:])
    # Each counts by its data, whatever it had time for.
    examples = [one.examples for _, one in sorted(versions[-1].contributors.items())]
    assert examples == [numpy_task_examples(site) for site in range(4)]


def numpy_task_examples(site: int) -> int:
    checked = load_arguments(SimulateSettings, {"task": "numpy_task:task", "clients": 4})
    return numpy_task.task.prepare(checked.site(site))


def test_the_rounds_of_synchronous_devices_are_as_long_as_one_although_one_is_16_times_slower() -> None:
    versions, _ = simulated(strategy="fedavg")

    lengths = [after.committed_at - before.committed_at for before, after in pairwise(versions[2:])]
    assert lengths
    assert max(lengths[:-1]) < 2.1


def test_devices_are_counted_with_the_same_rounds_without_training() -> None:
    given = {
        "clients": 4,
        "train": False,
        "device_seconds": "constant:0.1",
        "example_seconds": "spread:0.002:16",
        "round_seconds": 2,
        "max_seconds": 40,
    }
    checked = load_arguments(SimulateSettings, given)
    checked.check()
    federation = QueueFederation(checked)
    federation.run()

    _, rounds = simulated()
    counted = [each.updates for each in federation.workers]
    assert counted == pytest.approx([len(each) for _, each in sorted(rounds.items())], abs=1)


def test_devices_whose_steps_take_no_time_cannot_choose_their_number() -> None:
    given = {"round_seconds": 2, "max_updates": 9, "device_seconds": "constant:1"}

    with pytest.raises(ConfigError, match="device 0 takes no time for an example: give --example-seconds"):
        load_arguments(SimulateSettings, given).check()
