"""Sums with noise in shares: they have room for all of it, and everybody computes the same plan."""

import json
import shlex
from dataclasses import replace

import pytest
from builders import a_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fluffle.errors import ConfigError
from fluffle.model import Layout, TensorSpec
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.shares import ENOUGH, SharedSums, shares_of, why_not_kept
from fluffle.secure.plan import SecurePlan
from fluffle.settings import load_settings
from fluffle_aggregator.private.settings import same_privacy_plan
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.main import app

TARGET = PrivacyTarget(epsilon=8.0, clip=0.5, updates=10, mechanism="distributed")
SUMS = SharedSums(size=1000, honest=3, buffer_size=4)
GIVEN: dict[str, object] = {
    "dp": "distributed",
    "dp_epsilon": 8,
    "dp_clip": 0.5,
    "dp_max_updates": 10,
    "secure_aggregation": True,
    "buffer_size": 4,
}


def a_plan(target: PrivacyTarget = TARGET, sums: SharedSums = SUMS) -> tuple[PrivacyPlan, SecurePlan]:
    promised = sums.new_plan(target)
    return promised, sums.secure_plan(promised, epoch=1)


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-2, 3).map(lambda power: 10.0**power),
    st.integers(1, 10_000_000),
    st.integers(2, 4096),
    st.integers(2, 4096),
    st.sampled_from([None, 16, 24, 32]),
)
def test_sums_have_room_for_all_updates_and_all_shares_or_are_refused(
    epsilon: float, size: int, honest: int, others: int, modulus_bits: int | None
) -> None:
    sums = SharedSums(size=size, honest=honest, buffer_size=honest + others, modulus_bits=modulus_bits)
    target = replace(TARGET, epsilon=epsilon)
    try:
        promised, secure = a_plan(target, sums)
    except ConfigError:
        # Of what fits: see below.
        return

    noise = shares_of(promised)

    furthest = sums.buffer_size * secure.fixed_point.levels + noise.farthest(sums.buffer_size, size)
    assert furthest < 2 ** (secure.modulus_bits - 1)
    assert promised.epsilon_after(target.updates) <= epsilon
    assert why_not_kept(promised, secure, a_layout(size)) == ""
    assert modulus_bits in (None, secure.modulus_bits)


def test_the_smallest_modulus_is_taken_in_which_rounding_does_not_show() -> None:
    small, large = a_plan()[1], a_plan(sums=replace(SUMS, size=5_000_000))[1]

    assert (small.bits, small.modulus_bits) == (11, 16)
    assert (large.bits, large.modulus_bits) == (16, 24)
    noise = shares_of(SUMS.new_plan(TARGET))
    assert noise.l2 <= ENOUGH * noise.clip


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    sums = SharedSums(size=1000, honest=3, buffer_size=1000, modulus_bits=16)

    with pytest.raises(ConfigError, match=r"at most (\d+) updates fit; .* raise secure_modulus") as error:
        sums.new_plan(TARGET)

    most = int(str(error.value).partition("at most ")[2].split()[0])
    assert replace(sums, buffer_size=most).new_plan(TARGET)
    with pytest.raises(ConfigError, match=f"at most {most} updates fit"):
        replace(sums, buffer_size=most + 1).new_plan(TARGET)


def test_a_larger_buffer_of_a_federation_that_has_begun_takes_a_larger_modulus_or_is_refused() -> None:
    promised = SUMS.new_plan(TARGET)

    assert SUMS.secure_plan(promised, 1).modulus_bits == 16
    assert replace(SUMS, buffer_size=400).secure_plan(promised, 1).modulus_bits == 24
    with pytest.raises(ConfigError, match=r"with what this federation has promised, at most \d+ updates fit"):
        replace(SUMS, buffer_size=400, modulus_bits=16).secure_plan(promised, 1)


PROMISED, SECURE = a_plan()


@pytest.mark.parametrize(
    ("promised", "secure", "says"),
    [
        (PROMISED, None, "no shares of noise under masks"),
        (replace(PROMISED, shares=None), SECURE, "no shares of noise under masks"),
        (replace(PROMISED, epsilon=7.0), SECURE, "after 10 updates epsilon is 7.9"),
        (replace(PROMISED, updates=11), SECURE, "after 11 updates epsilon is 8"),
        (replace(PROMISED, clip=0.6), SECURE, "not clipped, weighed and masked"),
        (PROMISED, replace(SECURE, bits=12), "shorter updates than those of 12 bits"),
        (PROMISED, replace(SECURE, by_norm=False).numbered(), "not clipped, weighed and masked"),
        (PROMISED, replace(SECURE, greatest=2).numbered(), "not clipped, weighed and masked"),
        (PROMISED, replace(SECURE, honest=2).numbered(), "not clipped, weighed and masked"),
        (PROMISED, replace(SECURE, metrics=("loss",)).numbered(), "not clipped, weighed and masked"),
    ],
)
def test_a_worker_finds_a_plan_that_does_not_keep_to_its_promise(
    promised: PrivacyPlan, secure: SecurePlan | None, says: str
) -> None:
    assert says in why_not_kept(promised, secure, a_layout(1000))


def test_a_worker_finds_noise_that_is_too_small() -> None:
    noise = shares_of(PROMISED)

    less = replace(PROMISED, shares=replace(noise, share=noise.share * 0.99))
    shorter = replace(PROMISED, shares=replace(noise, l2=noise.l2 * 0.99))

    assert "epsilon is 8.0" in why_not_kept(less, SECURE, a_layout(1000))
    assert "for shorter updates" in why_not_kept(shorter, SECURE, a_layout(1000))
    assert "for shorter updates" in why_not_kept(PROMISED, SECURE, a_layout(100_000))


def test_a_worker_finds_statistics_that_no_noise_covers() -> None:
    layout = Layout(
        (TensorSpec("kernel", (1000,), "float32"), TensorSpec("mean", (2,), "float32", "statistic"))
    )

    assert "no noise for averages" in why_not_kept(PROMISED, SECURE, layout)


def test_privacy_plan_says_what_the_aggregator_computes_and_how_to_start_it() -> None:
    words = "privacy plan --workers 100 --buffer-size 20 --parameters 50000 --epsilon 4 --max-updates 12"
    asked = [*words.split(), "--mechanism", "distributed", "--honest", "15", "--clip", "0.3", "--json"]

    found = json.loads(CliRunner().invoke(app, asked).stdout)

    flags = shlex.split(found["aggregator_command"].removeprefix("fluffle aggregator ").rpartition(" ")[0])
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    given = {**dict(zip(names, flags[1::2], strict=True)), "secure_aggregation": True, "task": "digits"}
    chosen = load_settings(AggregatorSettings, given)
    target = chosen.privacy_target()
    assert target is not None
    begun = chosen.shared_sums(chosen.make_strategy().buffer_size, 50_000).new_plan(target)
    plain = found["by_noise"]["plain"]
    assert begun.promise == found["promise"]
    assert begun.std / begun.clip == pytest.approx(plain["noise_multiplier"], rel=1e-12)
    assert shares_of(begun).bits == found["bits"]


def of(**given: object) -> AggregatorSettings:
    return load_settings(AggregatorSettings, {**GIVEN, "task": "digits", **given})


def test_all_updates_weigh_the_same_and_travel_clipped_to_dp_clip() -> None:
    chosen = of()
    strategy = chosen.make_strategy()
    promised = chosen.shared_sums(4, 1000).new_plan(TARGET)

    plan = chosen.make_plan(strategy, 3, promised, size=1000)

    assert "discount=integer:1, weigh_by=none" in str(strategy)
    assert strategy.is_private
    assert plan.secure is not None
    assert (plan.secure.clip, plan.secure.by_norm, plan.secure.greatest) == (0.5, True, 1)
    assert (plan.secure.metrics, plan.secure.honest, plan.secure.epoch) == ((), 3, 3)
    assert (plan.updates_per_version, plan.may_repeat) == (1, False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"secure_aggregation": False}, "dp distributed needs secure_aggregation"),
        ({"dp": "central", "dp_secret": "s"}, "secure_aggregation does not go together with dp central"),
        ({"dp_secret": "noise.secret"}, "dp_secret does not go together with dp distributed"),
        ({"dp_noise": "plain"}, "dp_noise does not go together with dp distributed"),
        ({"dp_separation": 2}, "dp_separation does not go together with dp distributed"),
        ({"secure_clip": "norm:1"}, "secure_clip does not go together with dp distributed"),
        ({"secure_bits": 12}, "secure_bits does not go together with dp distributed"),
        ({"survey": 3}, "survey does not go together with dp"),
        ({"codec": "int8"}, "codec does not go together with secure_aggregation"),
        ({"staleness": "polynomial:0.5"}, "staleness does not go together with secure_aggregation"),
        ({"batch_size": "auto"}, "batch_size auto does not go together with dp"),
        ({"target": "sites.accuracy>=0.9"}, r"dp has no sites\.accuracy"),
        ({"strategy": "reuse"}, "dp has no strategy reuse"),
        ({"secure_min_workers": 5}, "secure_min_workers is 5, and a buffer has 4 updates"),
    ],
)
def test_what_does_not_go_together_with_shares_is_refused(given: dict[str, object], says: str) -> None:
    chosen = of(**given)

    with pytest.raises(ConfigError, match=says):
        chosen.make_plan(chosen.make_strategy())


@pytest.mark.parametrize("strategy", ["fedbuff", "fedavg"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_follows_the_sum_is_free(strategy: str, optimizer: str) -> None:
    chosen = of(strategy=strategy, server_optimizer=optimizer, average_versions=0.9, secure_modulus=32)

    assert chosen.make_plan(chosen.make_strategy())


def test_how_many_are_to_be_honest_stays() -> None:
    target = of().privacy_target()
    begun = SUMS.new_plan(TARGET)

    assert same_privacy_plan(target, begun, honest=3) is begun
    with pytest.raises(ConfigError, match="secure_min_workers is 4, and the federation has begun with 3"):
        same_privacy_plan(target, begun, honest=4)
    with pytest.raises(ConfigError, match="dp is central, and the federation has begun with distributed"):
        same_privacy_plan(replace(TARGET, mechanism="central"), begun)
