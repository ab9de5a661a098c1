"""The settings of a sealed federation: what goes together, and what stays as the federation has begun."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sealing import KEY, OTHER_KEY, a_sealed_plan

from fluffle.errors import ConfigError, MessageTooLarge
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.sealed.plan import SealedPlan, SealedState
from fluffle.sealed.public_file import SealedPublic, write_public
from fluffle.settings import SharedSettings, load_settings
from fluffle_aggregator.sealed.combinations import REFUSED, require_sealable
from fluffle_aggregator.sealed.settings import same_sealed_plan
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return the file that an aggregator gets."""
    path = tmp_path / "sealed.public"
    write_public(path, SealedPublic(KEY))
    return path


def settings_of(public: Path, **given: object) -> AggregatorSettings:
    return AggregatorSettings.model_validate({"sealed": public, **given})


def plan_of(public: Path, **given: object) -> Plan:
    settings = settings_of(public, **given)
    return settings.make_plan(settings.make_strategy())


def test_workers_are_told_the_key_the_clip_and_by_what_the_sum_moves_the_model(public: Path) -> None:
    asked = {"sealed_clip": 0.25, "buffer_size": 8, "server_learning_rate": 0.5, "sealed_only": "head/*, out"}

    plan = plan_of(public, **asked)

    assert plan.codec == "sealed"
    assert plan.sealed == SealedPlan(
        key=KEY, clip=0.25, greatest=64, buffer_size=8, server_learning_rate=0.5, only=("head/*", "out")
    )
    assert plan.sealed.step == 0.5 / 512


def test_a_sealed_federation_runs_fedbuff_unless_told_otherwise(public: Path) -> None:
    assert settings_of(public).make_strategy().name == "fedbuff"
    assert settings_of(public).make_strategy().is_sealed
    rounds = plan_of(public, strategy="fedavg").sealed
    assert rounds is not None
    assert rounds.greatest == 1


def test_large_buffers_get_smaller_weights_and_still_larger_ones_are_refused(public: Path) -> None:
    plan = plan_of(public, buffer_size=4096, sealed_clip=1.0).sealed
    assert plan is not None
    assert plan.greatest == 15

    with pytest.raises(ConfigError, match="at most 8191 updates fit; lower one of the two"):
        plan_of(public, buffer_size=10_000, sealed_clip=1.0)


# A setting and a value of it that is refused; of REFUSED each one stands here.
NOT_TOGETHER: dict[str, object] = {
    "secure_aggregation": True,
    "dp": "central",
    "codec": "int8",
    "downlink_codec": "bfloat16",
    "average_versions": 0.9,
    "staleness": "constant",
    "weigh_by": "examples",
    "throttle": 1.5,
    "normalize_steps": True,
    "round_seconds": 5.0,
    "limit_norm": 10.0,
    "on_large_norm": "clip",
    "limit_share": 0.5,
    "survey": 3,
    "survey_seconds": 30.0,
}
BESIDE: dict[str, dict[str, object]] = {
    "dp": {"dp_epsilon": 8, "dp_clip": 1, "dp_max_updates": 9, "dp_secret": "noise"},
    "on_large_norm": {"limit_norm": None},
}


def test_the_table_of_what_is_refused_is_tested_as_a_whole() -> None:
    assert set(NOT_TOGETHER) == set(REFUSED)


def test_the_page_names_each_setting_that_is_refused() -> None:
    page = (Path(__file__).parents[2] / "docs/sealed.md").read_text(encoding="utf-8")
    rows = [line.partition(" | ")[0] for line in page.splitlines() if line.startswith("| ")]

    missing = [name for name in REFUSED if not any(f"`--{name.replace('_', '-')}`" in row for row in rows)]

    assert missing == []


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_what_needs_the_values_of_updates_is_refused_with_the_reason(public: Path, name: str) -> None:
    settings = settings_of(public, **{name: NOT_TOGETHER[name]}, **BESIDE.get(name, {}))

    with pytest.raises(ConfigError, match=f"{name} does not go together with sealed: .*"):
        settings.make_strategy()


@pytest.mark.parametrize("name", [name for name, (harmless, _) in REFUSED.items() if harmless])
def test_a_value_that_changes_nothing_goes_together(public: Path, name: str) -> None:
    harmless, _ = REFUSED[name]

    for value in harmless:
        assert plan_of(public, **{name: value}).sealed is not None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"strategy": "fedasync"}, "sealed has no strategy fedasync, .*: choose fedbuff or fedavg"),
        ({"strategy": "reuse"}, "sealed has no strategy reuse"),
        ({"rule": "median"}, "sealed has no rule median"),
        ({"server_optimizer": "adam"}, "sealed has no server_optimizer adam, .*: sgd is the only one"),
        ({"batch_size": "auto"}, "batch_size auto does not go together with sealed"),
    ],
)
def test_what_is_no_sum_is_refused(public: Path, given: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        settings_of(public, **given).make_strategy()


@pytest.mark.parametrize(
    "given",
    [
        {"commit_every": 5},
        {"commit_after": 2.0},
        {"min_examples": 10},
        {"limit_examples": 1000},
        {"limit_messages": 60},
        {"limit_mib": 100},
        {"max_staleness": 8},
        {"evaluate_every": 2},
        {"target": "sites.accuracy>=0.9"},
        {"best": "accuracy:max"},
        {"local_steps": 5},
        {"proximal_mu": 0.1},
        {"learning_rate_schedule": "cosine"},
        {"keep_optimizer": False},
    ],
    ids=str,
)
def test_what_needs_no_values_goes_together(public: Path, given: dict[str, object]) -> None:
    assert plan_of(public, **given).sealed is not None


@pytest.mark.parametrize("given", [{"sealed_clip": 1.0}, {"sealed_only": "head/*"}])
def test_a_setting_without_sealed_has_no_effect_and_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="has no effect without sealed"):
        AggregatorSettings.model_validate(given)


@pytest.mark.parametrize("settings", [WorkerSettings, EvaluatorSettings])
def test_a_site_that_says_what_must_be_sealed_has_the_key(settings: type[SharedSettings]) -> None:
    with pytest.raises(ConfigError, match="sealed_only has no effect without sealed_secret: give both"):
        load_settings(settings, {"task": "digits", "sealed_only": "head/*"})


@pytest.mark.parametrize("text", ["", " , ", ",".join(f"p{n}" for n in range(65))])
def test_no_pattern_and_too_many_are_refused(public: Path, text: str) -> None:
    with pytest.raises(ValidationError, match="must have 1 to 64 patterns such as head"):
        settings_of(public, sealed_only=text)


def test_a_file_that_is_missing_or_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        settings_of(tmp_path / "missing").make_strategy()
    secret = tmp_path / "sealed.secret"
    secret.write_bytes(bytes(100))
    with pytest.raises(ConfigError, match=r"is no public file .*sealed\.public that"):
        settings_of(secret).make_strategy()


def a_layout_with_averages() -> Layout:
    zeros = np.zeros(3, np.float32)
    weights = {"body/kernel": zeros, "body/mean": zeros, "head/kernel": zeros}
    return Layout.of({**weights, "head/seed": np.zeros(2, np.uint32)}, {"body/mean": "statistic"})


def test_averages_of_the_sites_data_are_refused_unless_they_stay_open() -> None:
    with pytest.raises(ConfigError, match=r"the model has body/mean: .* or leave them open with sealed_only"):
        require_sealable(a_layout_with_averages(), ())
    require_sealable(a_layout_with_averages(), ("head/*",))


def test_a_pattern_that_no_tensor_matches_is_refused_with_some_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'tail/\*' matches no trained tensor .* body/kernel, head/kernel"):
        require_sealable(a_layout_with_averages(), ("head/*", "tail/*"))


def test_a_model_that_is_too_large_is_refused_before_training_with_the_sizes(public: Path) -> None:
    settings = settings_of(public, max_message_mib=16)
    large = Layout.of({"kernel": np.zeros(1_000_000, np.float32)})

    with pytest.raises(MessageTooLarge, match=r"an update takes 25\.8 MiB\) takes 29\.7 MiB"):
        settings.require_room(settings.make_strategy(), large)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"key": OTHER_KEY}, f"the key of sealed is {OTHER_KEY}, and the federation has begun with {KEY}"),
        ({"clip": 1.0}, "sealed_clip is 1.0, and the federation has begun with 4.0"),
        ({"buffer_size": 9}, "buffer_size is 9, and the federation has begun with 2"),
        ({"greatest": 8}, "the weight of a fresh update, .* is 8, and the federation has begun with 64"),
        ({"server_learning_rate": 0.5}, "server_learning_rate is 0.5, and the federation has begun with 1.0"),
        ({"only": ("a", "b")}, "sealed_only is a b, and the federation has begun with no pattern"),
    ],
)
def test_an_aggregator_with_other_settings_refuses_to_lead(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        same_sealed_plan(replace(a_sealed_plan(), **changed), a_sealed_plan())


def test_a_federation_is_sealed_from_its_beginning_to_its_end() -> None:
    same_sealed_plan(None, None)
    same_sealed_plan(a_sealed_plan(), a_sealed_plan())
    with pytest.raises(ConfigError, match="sealed cannot begin in a federation that runs without it"):
        same_sealed_plan(a_sealed_plan(), None)
    with pytest.raises(ConfigError, match=f"is sealed under the key {KEY}, and its model cannot be read"):
        same_sealed_plan(None, a_sealed_plan())


def test_a_plan_leaves_room_for_versions_before_the_first_refresh(public: Path) -> None:
    plan = plan_of(public, buffer_size=8000, sealed_clip=1.0).sealed
    assert plan is not None

    assert not SealedState().with_updates(8 * plan.divisor - 1).wants_refresh(plan)
    assert SealedState().has_room(plan, 16 * plan.divisor)
