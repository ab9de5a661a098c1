"""The settings of differential privacy: what is missing, idle or impossible is said in a sentence."""

import math
from pathlib import Path

import pytest
from builders import a_layout
from privately import a_privacy_plan

from fluffle.errors import ConfigError
from fluffle.model import Layout, TensorSpec
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.secret_file import write_new_secret
from fluffle.settings import load_settings
from fluffle_aggregator.private.combinations import require_no_statistics
from fluffle_aggregator.private.settings import same_privacy_plan
from fluffle_aggregator.private.starting import SecretFile, grid_for, run_of, say_noise
from fluffle_aggregator.settings import AggregatorSettings

GIVEN = {"dp": "central", "dp_epsilon": 8, "dp_clip": 1, "dp_max_updates": 10, "dp_secret": "noise.secret"}


def settings(**given: object) -> AggregatorSettings:
    return load_settings(AggregatorSettings, {**GIVEN, **given})


def test_the_strategy_is_fedbuff_and_weighs_by_staleness_alone() -> None:
    strategy = settings().make_strategy()

    assert strategy.name == "fedbuff"
    assert "weigh_by=none" in str(strategy)
    assert strategy.is_private


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "dp"])
def test_what_a_promise_needs_must_be_given(name: str) -> None:
    given = {key: value for key, value in GIVEN.items() if key != name}

    with pytest.raises(ConfigError, match=f"dp central needs {name}, "):
        load_settings(AggregatorSettings, given)


@pytest.mark.parametrize(
    "name", [*[name for name in GIVEN if name != "dp"], "dp_delta", "dp_separation", "dp_noise"]
)
def test_a_setting_without_dp_has_no_effect(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no effect without dp"):
        load_settings(AggregatorSettings, {name: GIVEN.get(name, "plain" if name == "dp_noise" else 1)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dp_epsilon": 0}, "epsilon must be above 0 and at most 1000, not 0"),
        ({"dp_epsilon": -1}, "epsilon must be above 0 and at most 1000, not -1"),
        ({"dp_delta": 1}, "delta must be above 0 and below 1, not 1"),
        ({"dp_clip": 0}, "must be a number above 0 such as 1, or adaptive or adaptive:0.1, not '0'"),
        ({"dp_clip": "adaptive:"}, "must be a number above 0 such as 1, or adaptive or"),
        ({"dp_clip": "adaptive:-1"}, "must be a number above 0 such as 1, or adaptive or"),
        ({"dp_clip": "adaptive"}, "an adaptive clip needs plain noise, since"),
        ({"dp_max_updates": 0}, "a worker must be allowed at least 1 update, not 0"),
        ({"dp_max_updates": 10**11}, "must be at most 1,000,000, not 100,000,000,000 times 1"),
        ({"dp_separation": 0}, "the separation must be at least 1, not 0"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(**given).privacy_target()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "reuse"}, "dp has no strategy reuse"),
        ({"strategy": "fedasync"}, "dp has no strategy fedasync"),
        ({"rule": "median"}, "dp has no rule median"),
        ({"weigh_by": "sqrt"}, "leave weigh_by out"),
        ({"batch_size": "auto"}, "batch_size auto does not go together with dp"),
        ({"codec": "int8+zstd"}, r"leave \+zstd out"),
        ({"target": "sites.accuracy>=0.9"}, "dp has no sites.accuracy"),
        ({"best": "worst.loss:min"}, "dp has no worst.loss"),
    ],
)
def test_what_needs_more_than_a_sum_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(**given).make_strategy()


@pytest.mark.parametrize("strategy", ["fedbuff", "fedavg"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_follows_the_sum_is_free(strategy: str, optimizer: str) -> None:
    assert settings(strategy=strategy, server_optimizer=optimizer, average_versions=0.9).make_strategy()


def test_a_model_with_averages_of_the_sites_data_is_refused_and_says_what_to_do() -> None:
    layout = Layout(
        (TensorSpec("kernel", (2,), "float32"), TensorSpec("bn/moving_mean", (2,), "float32", "statistic"))
    )

    with pytest.raises(ConfigError, match=r"the model has bn/moving_mean: keep such layers at the sites"):
        require_no_statistics(layout)


def test_a_model_whose_clip_is_lost_in_the_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="is lost in the noise of a model of"):
        grid_for(a_privacy_plan(epsilon=1e-4, updates=1000), a_layout(10_000_000), 1.0)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (a_privacy_plan(updates=10, epsilon=7.0), "dp_epsilon is 8.0, and the federation has begun with 7.0"),
        (a_privacy_plan(updates=10, clip=2.0), "dp_clip is 1.0, and the federation has begun with 2.0"),
        (a_privacy_plan(updates=9), "dp_max_updates is 10, and the federation has begun with 9"),
        (a_privacy_plan(updates=10, separation=3), "dp_separation is 1, and the federation has begun with 3"),
    ],
)
def test_what_is_promised_stays(other: PrivacyPlan, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        same_privacy_plan(settings().privacy_target(), other)


def test_plain_noise_has_the_mu_of_so_many_gaussian_mechanisms() -> None:
    plan = settings(dp_noise="plain", dp_separation=5).new_privacy_plan()

    assert plan is not None
    assert plan.bands == 1
    assert plan.noise.mu == pytest.approx(math.sqrt(10) / plan.noise.multiplier)
    assert plan.epsilon_after(10) == pytest.approx(8.0)


def test_an_adaptive_clip_begins_with_a_number_and_its_noise_is_a_part_of_the_promise() -> None:
    plan = settings(dp_clip="adaptive:0.2", dp_noise="plain", buffer_size=100).new_privacy_plan(100)

    assert plan is not None
    assert (plan.clip, plan.count_std) == (0.2, 5.0)
    of_sums, of_counts = plan.std_at(0.2) / 0.2, 2 * 5.0
    assert 1 / of_sums**2 + 1 / of_counts**2 == pytest.approx(plan.noise.mu**2 / 10)
    assert plan.std_at(0.4) == pytest.approx(2 * plan.std_at(0.2))
    assert plan.epsilon_after(10) == pytest.approx(8.0)


@pytest.mark.parametrize(("now", "before"), [("adaptive:0.1", "1"), ("adaptive:0.1", "adaptive:0.2")])
def test_an_adaptive_clip_stays_one_with_the_same_beginning(now: str, before: str) -> None:
    begun = settings(dp_clip=before, dp_noise="plain").new_privacy_plan()

    with pytest.raises(ConfigError, match=f"dp_clip is {now}, and the federation has begun with {before}"):
        same_privacy_plan(settings(dp_clip=now, dp_noise="plain").privacy_target(), begun)


@pytest.mark.parametrize(("now", "before"), [("plain", "correlated"), ("correlated", "plain")])
def test_the_kind_of_noise_stays(now: str, before: str) -> None:
    begun = settings(dp_noise=before, dp_separation=5).new_privacy_plan()

    with pytest.raises(ConfigError, match=f"dp_noise is {now}, and the federation has begun with {before}"):
        same_privacy_plan(settings(dp_noise=now, dp_separation=5).privacy_target(), begun)


def test_noise_is_taken_from_the_federation_that_has_begun() -> None:
    begun = a_privacy_plan(updates=10, bands=1)

    assert same_privacy_plan(settings().privacy_target(), begun) is begun


def test_the_secret_file_must_be_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "noise.secret"
    write_new_secret(path)
    path.chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        SecretFile.reading(path)
    with pytest.raises(ConfigError, match="is a folder: give the file"):
        SecretFile.reading(tmp_path)


def test_as_many_workers_as_the_log_says_are_enough_for_the_numbers_of_a_plan() -> None:
    # Those of docs/privacy.md.
    plan = a_privacy_plan(updates=20, separation=2, clip=0.3)

    enough = run_of(plan, 4810, 12).enough_workers()

    assert enough == 81


@pytest.mark.parametrize(("buffer_size", "warns"), [(4, True), (100, False)])
def test_noise_that_is_longer_than_all_updates_of_so_few_workers_is_warned_about(
    caplog: pytest.LogCaptureFixture, buffer_size: int, warns: bool
) -> None:
    say_noise(a_privacy_plan(updates=20, separation=4), 4810, buffer_size)

    assert ("with fewer workers than this, the noise" in caplog.text) == warns
