"""`fluffle demo --dp-epsilon`: what it chooses, what it refuses, and which end is a success."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version
from privately import a_privacy_plan, a_private_version

from fluffle.errors import ConfigError
from fluffle.privacy.plan import NoisySum
from fluffle.safetensors_file import read_model, write_model
from fluffle.settings import load_arguments, load_settings
from fluffle.task import Site, load_task
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.digits_in_numpy import TENSORS, task
from fluffle_cli.demo.privacy import USUAL_TASK, USUAL_WORKERS
from fluffle_cli.demo.program import introduction, is_failure
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.report.run import AboutFederation, FederationRun
from fluffle_cli.watching.view import Version


def demo_settings(**given: object) -> DemoSettings:
    return load_settings(DemoSettings, given).checked()


def test_an_epsilon_alone_chooses_all_other_numbers() -> None:
    settings = demo_settings(dp_epsilon=8)

    assert (settings.workers, settings.task, settings.strategy) == (USUAL_WORKERS, USUAL_TASK, "fedbuff")
    assert settings.buffer_size == USUAL_WORKERS // 2
    assert "(epsilon 8, delta 1e-05, at most 20 updates)" in introduction(settings, Path("runs"))


def test_what_is_given_stays() -> None:
    settings = demo_settings(dp_epsilon=8, workers=6, task="digits", dp_separation=3, buffer_size=1)

    assert (settings.workers, settings.task, settings.buffer_size) == (6, "digits", 1)
    assert settings.separation_of(6) == 3


def test_one_worker_alone_does_not_wait_for_others() -> None:
    settings = demo_settings(dp_epsilon=8, workers=1)

    assert (settings.buffer_size, settings.separation_of(1)) == (1, 1)


def test_the_aggregators_of_the_demo_begin_with_what_it_says(tmp_path: Path) -> None:
    settings = demo_settings(dp_epsilon=8, dp_clip=0.5)
    [setup] = settings.setups
    [one, _] = parts.aggregators(
        settings, setup, initial_model=tmp_path / "initial", secret=tmp_path / "noise", federation="demo"
    )

    names = {name.removeprefix("FLUFFLE_").lower(): value for name, value in one.environment.items()}
    given = {name: value for name, value in names.items() if name in AggregatorSettings.model_fields}
    aggregator = load_arguments(AggregatorSettings, given)

    assert aggregator.new_privacy_plan() == settings.privacy_plan(settings.workers)
    assert aggregator.make_strategy().is_private


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dp_epsilon": 0}, "epsilon must be above 0"),
        ({"dp_epsilon": 8, "dp_max_updates": 0}, "at least 1 update"),
        ({"dp_epsilon": 8, "dp_delta": 1}, "delta must be above 0 and below 1"),
        ({"dp_epsilon": 8, "workers": 4, "buffer_size": 4}, "4 workers are too few"),
        ({"dp_epsilon": 8, "strategy": "fedasync"}, "dp has no strategy fedasync"),
        ({"dp_epsilon": 8, "compare": True}, "leave out --sites uneven, --compare"),
        ({"dp_epsilon": 8, "sites": "uneven"}, "leave out --sites uneven, --compare"),
        ({"dp_clip": 1}, "--dp-clip has no effect without --dp-epsilon"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        demo_settings(**given)


def a_run(*, is_spent: bool) -> FederationRun:
    plan = a_privacy_plan(updates=1)
    record = a_private_version(plan, a_version(1, finished="because"))
    assert record.privacy is not None
    state = record.privacy.with_sum(NoisySum(1, 1, ""), ("w1",) if is_spent else (), plan)
    last = Version.of(replace(record, privacy=state))
    return FederationRun(about=AboutFederation(strategy="fedbuff", folder="."), versions=[last])


def test_to_spend_all_privacy_is_a_success_unless_a_target_was_asked_for() -> None:
    usual, wanted = demo_settings(dp_epsilon=8), demo_settings(dp_epsilon=8, target="accuracy>=0.99")

    assert not is_failure(a_run(is_spent=True), usual)
    assert is_failure(a_run(is_spent=True), wanted)
    assert is_failure(a_run(is_spent=False), usual)


def test_the_network_in_numpy_is_saved_as_the_keras_model_that_it_is(tmp_path: Path) -> None:
    task.prepare(Site(split="iid"))
    weights = task.initial_weights(3)
    # As it is read back from a file, in the order of names.
    write_model(tmp_path / "model.safetensors", weights)
    stored = read_model(tmp_path / "model.safetensors")

    task.save(stored, tmp_path / "model.keras")

    digits = load_task("digits")
    loaded = digits.load(tmp_path / "model.keras")
    assert digits.evaluate(loaded) == pytest.approx(dict(task.evaluate(weights)), abs=1e-4)
    assert tuple(weights) == TENSORS
