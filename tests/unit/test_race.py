"""A race plays with real processes what the simulator plays, and its rows say what never held its target."""

import math

import numpy as np
import pytest

from benchmarks.algorithms import GRIDS, SCENES
from benchmarks.contenders import flags_of, label_of, read_label
from benchmarks.measuring import Spread
from benchmarks.race import demo_of, rows, tuned
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.simulate.devices import seconds_of_devices

LABELS = [label_of(each) for grid in GRIDS.values() for each in grid]


@pytest.mark.parametrize("label", LABELS)
def test_a_tuned_strategy_is_raced_with_the_settings_that_the_simulator_had(label: str) -> None:
    simulated = SCENES["demo"].settings(read_label(label), 3)

    raced = demo_of(simulated)

    for name in STRATEGIES[simulated.strategy].model_fields:
        assert getattr(raced, name) == getattr(simulated, name)
    assert (raced.seed, raced.workers, list(raced.each_seed)) == (3, 4, [3])
    assert raced.task_defaults.local_epochs == simulated.local_epochs
    assert raced.task_defaults.learning_rate == simulated.learning_rate


def test_a_race_takes_the_settings_that_the_page_of_results_has() -> None:
    strategies = [read_label(label)["strategy"] for label in tuned("demo")]

    assert set(strategies) == set(STRATEGIES)
    with pytest.raises(SystemExit, match="nothing is tuned for the scene mars"):
        tuned("mars")


@pytest.mark.parametrize("name", SCENES)
def test_the_workers_of_a_race_are_as_unequal_as_those_of_the_simulator(name: str) -> None:
    simulated = SCENES[name].settings({"strategy": "fedavg"}, 0)

    raced = demo_of(simulated)

    seconds = seconds_of_devices(simulated.device_seconds, simulated.clients, np.random.default_rng(0))
    assert raced.delays_s == pytest.approx(seconds.tolist(), abs=1e-4)


def test_the_label_of_a_strategy_becomes_an_aggregators_flags() -> None:
    assert flags_of("ca2fl buffer_size=2 server_learning_rate=1.25") == [
        *("--strategy=ca2fl", "--buffer-size=2", "--server-learning-rate=1.25")
    ]
    for wrong in ("", "nothing", "fedbuff buffer_size", "fedbuff buffer_size="):
        with pytest.raises(SystemExit, match="must read like 'fedbuff buffer_size=2'"):
            read_label(wrong)


def test_what_never_held_stands_in_the_rows_and_is_in_no_ratio_to_the_simulator() -> None:
    real = {"fedavg": [40.0, math.inf, 30.0], "fedbuff": [10.0, 20.0, math.inf]}
    simulated = {"fedavg": [20.0, 20.0, 20.0], "fedbuff": [10.0, 5.0, 5.0]}

    first, second, together = rows(real, simulated, SCENES["demo"])

    assert first["held_s"] == "40 never 30"
    # Seed by seed 4 times, at least 40 / 20 times within the 40 s of the scene, and never.
    assert second["against_fedavg"] == "at least 2.0, worst never"
    assert second["simulated_against_fedavg"] == "4.0, worst 2.0"
    assert together["real_over_simulated"] == Spread((2.0, 1.5, 1.0, 4.0))
    assert together["strategy"] == "all 4 that hold it in both"
