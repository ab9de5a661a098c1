"""What a person asks for becomes noise and a sentence, and what nobody could keep is refused."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Steps
from fluffle.privacy.noise import NoiseSequence
from fluffle.privacy.promise import Mechanism, PrivacyTarget, promise
from fluffle.privacy.usefulness import NoisyRun

TARGET = PrivacyTarget(epsilon=8.0, clip=0.5, updates=8, separation=10)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: replace(TARGET, epsilon=0.0), "epsilon must be above 0 and at most 1000, not 0"),
        (lambda: replace(TARGET, epsilon=-1.0), "not -1"),
        (lambda: replace(TARGET, epsilon=math.nan), "not nan"),
        (lambda: replace(TARGET, epsilon=1e6), r"at most 1000, not 1e\+06"),
        (lambda: replace(TARGET, delta=0.0), "delta must be above 0 and below 1, not 0: 1e-5 is usual"),
        (lambda: replace(TARGET, delta=1.0), "not 1: "),
        (lambda: replace(TARGET, delta=math.nan), "not nan"),
        (lambda: replace(TARGET, clip=0.0), r"the clip must be from 1e-09 to 1e\+30, not 0"),
        (lambda: replace(TARGET, clip=math.inf), "not inf"),
        (lambda: replace(TARGET, clip=math.nan), "not nan"),
        (lambda: replace(TARGET, clip=1e-300), "not 1e-300"),
        (lambda: replace(TARGET, updates=0), "a worker must be allowed at least 1 update, not 0"),
        (lambda: replace(TARGET, separation=0), "no worker has two updates in one version"),
        (
            lambda: replace(TARGET, updates=10**12),
            "must be at most 1,000,000, not 1,000,000,000,000 times 10",
        ),
        (lambda: replace(TARGET, separation=10**6), "not 8 times 1,000,000"),
    ],
)
def test_what_nobody_could_keep_is_refused(wrong: Callable[[], PrivacyTarget], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrong()


@pytest.mark.parametrize("mechanism", ["distributed", "local"])
def test_only_the_aggregator_can_add_correlated_noise(mechanism: Mechanism) -> None:
    with pytest.raises(ConfigError, match=f"noise cannot be correlated with the mechanism {mechanism}"):
        replace(TARGET, mechanism=mechanism, correlated=True)


@given(
    st.floats(0.1, 50.0),
    st.floats(-9, -2).map(lambda power: 10.0**power),
    st.integers(1, 40),
    st.integers(1, 30),
    st.booleans(),
)
def test_the_noise_keeps_the_target(
    epsilon: float, delta: float, updates: int, separation: int, correlated: bool
) -> None:
    target = PrivacyTarget(
        epsilon=epsilon,
        delta=delta,
        clip=3.0,
        updates=updates,
        separation=separation,
        correlated=correlated,
    )

    noise = target.gaussian_noise()

    assert noise.epsilon_after(updates, delta) == pytest.approx(epsilon, rel=1e-6)
    assert noise.epsilon_after(updates, delta) <= epsilon * (1 + 1e-12)
    assert (noise.clip, noise.updates, noise.separation) == (3.0, updates, separation)
    assert correlated or noise.bands == 1


def test_plain_noise_has_the_multiplier_of_the_formula_and_correlated_noise_more_bands() -> None:
    plain = TARGET.gaussian_noise()
    correlated = replace(TARGET, correlated=True).gaussian_noise()

    # mu is 1.666 at epsilon 8 and delta 1e-5.
    assert plain.multiplier == pytest.approx(math.sqrt(8) / 1.66603, rel=1e-4)
    assert plain.bands == 1
    assert correlated.bands > 1
    assert replace(TARGET, correlated=True).gaussian_noise(steps=500, most_bands=3).bands == 3


def test_the_promise_of_the_aggregators_noise_is_one_sentence() -> None:
    assert promise(TARGET, TARGET.gaussian_noise()) == (
        "Whoever sees all versions of the model and guesses whether the updates of one worker are in them is "
        "right at most 80 times in 100, where tossing a coin is right 50 times (epsilon 8, delta 1e-05, at "
        "most 8 updates); who sends updates, and when, is not protected."
    )


def test_the_promise_of_a_workers_own_noise_is_about_what_it_sends() -> None:
    local = replace(TARGET, mechanism="local", epsilon=1.0)

    said = promise(local, local.gaussian_noise())

    assert said.startswith("Whoever sees all that one worker sends, as the aggregator does, and guesses")
    assert "right at most 56 times in 100" in said


def test_the_promise_of_noise_in_shares_names_who_has_to_be_honest() -> None:
    target = replace(TARGET, mechanism="distributed")

    noise = target.skellam_noise(levels=32767.0, size=1000, honest=3)

    assert noise.epsilon_after(8, 1e-5) <= 8.0
    assert promise(target, noise) == (
        "As long as 3 workers of each sum are honest, nothing that the sums show, also to the aggregator, is "
        "more than e^8 times as likely with the updates of one worker as without them, but for a chance of "
        "1e-05 (epsilon 8, delta 1e-05, at most 8 updates); who sends updates, and when, is not protected."
    )


def test_noise_in_shares_that_cannot_be_is_a_wrong_setting() -> None:
    target = replace(TARGET, mechanism="distributed")

    with pytest.raises(ConfigError, match="at least 1 worker of each sum must be honest, not 0"):
        target.skellam_noise(levels=127.0, size=10, honest=0)


def test_a_delta_that_would_allow_to_publish_a_worker_is_warned_about() -> None:
    [said] = replace(TARGET, delta=0.01).warnings(workers=200)

    assert said == (
        "delta 0.01 is more than 1 / 200 workers: to publish all data of one worker, drawn at random, would "
        "keep to that too; take 5e-04 or less"
    )
    assert replace(TARGET, delta=0.01).warnings(workers=100) == []


def test_buffers_that_could_never_fill_are_refused() -> None:
    TARGET.require_workers(workers=40, buffer_size=4)

    with pytest.raises(
        ConfigError, match="10 versions in a row, of 4 updates each, need 40 different workers"
    ):
        TARGET.require_workers(workers=39, buffer_size=4)


RUN = NoisyRun(workers=30, updates=4, separation=3, buffer_size=4, size=500, clip=1.0, std=2.0, bands=5)


def noise_of(noise: GaussianNoise, run: NoisyRun) -> float:
    """The length of the noise in the last model of a run."""
    model = np.zeros(run.size)
    sequence = NoiseSequence(noise.coefficients, 2.0**25, run.size, kept=9)
    for step in range(run.steps):
        total: Steps = np.zeros(run.size, np.int64)
        sequence.add_next(step.to_bytes(16), total)
        model += total * (noise.std / 2.0**25) / run.buffer_size
    return float(np.linalg.norm(model))


@pytest.mark.parametrize("bands", [1, 5])
def test_the_noise_of_a_run_is_as_long_as_it_turns_out_to_be(bands: int) -> None:
    run = replace(RUN, bands=bands)
    noise = GaussianNoise(clip=1.0, updates=4, separation=3, bands=bands, std=2.0)

    assert run.steps == 30
    assert run.noise_to_updates * run.steps == pytest.approx(noise_of(noise, run), rel=0.1)


def test_noise_of_each_update_grows_with_the_buffer_so_that_no_buffer_helps() -> None:
    run = replace(RUN, bands=1, to_each_update=True, buffer_size=1, std=50.0)

    assert run.noise_to_updates > 1
    assert run.useful_buffer() is None
    assert replace(run, buffer_size=4).noise_to_updates == pytest.approx(run.noise_to_updates)
    assert "take a larger epsilon, more workers or fewer parameters" in run.warnings()[0]


@settings(max_examples=50)
@given(st.integers(10, 5000), st.integers(1, 10), st.integers(1, 5), st.integers(1, 10**7))
def test_a_larger_buffer_that_is_recommended_is_large_enough_and_can_be_filled(
    workers: int, updates: int, separation: int, size: int
) -> None:
    run = NoisyRun(
        workers=workers,
        updates=updates,
        separation=separation,
        buffer_size=2,
        size=size,
        clip=0.1,
        std=0.4,
    )

    useful = run.useful_buffer()

    if useful is None:
        largest = max(2, workers // separation)
        assert replace(run, buffer_size=largest).noise_to_updates >= 0.9
    else:
        assert useful * separation <= workers
        assert replace(run, buffer_size=useful).noise_to_updates < 1


def test_a_run_that_learns_nothing_is_warned_about_with_the_buffer_that_would_do() -> None:
    run = NoisyRun(workers=1000, updates=8, separation=1, buffer_size=4, size=100_000, clip=1.0, std=1.7)

    assert run.warnings() == [
        "the noise is so strong that little can be learnt: after 2000 versions it is 3.0 times as long as "
        "all updates together can be; take a buffer_size of 37 or more"
    ]
    assert replace(run, buffer_size=37).warnings() == []
    assert replace(run, workers=20, buffer_size=20).warnings()[0].endswith("or fewer parameters")


@settings(max_examples=50)
@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 10**6), st.sampled_from([1, 4, 16]))
def test_with_one_worker_fewer_than_enough_the_noise_is_as_long_as_the_updates(
    buffer_size: int, updates: int, size: int, bands: int
) -> None:
    run = replace(RUN, workers=1, buffer_size=buffer_size, updates=updates, size=size, bands=bands)

    enough = run.enough_workers()

    assert enough is not None
    assert replace(run, workers=enough).is_useful
    assert enough == 1 or not replace(run, workers=enough - 1).is_useful


def test_no_number_of_workers_is_enough_for_noise_that_is_far_too_strong() -> None:
    assert replace(RUN, bands=1, std=1e9).enough_workers() is None
