"""The canary game: whoever sees all sums, and knows all but whether the canary took part, tries to tell.

The best test there is gives a lower bound of what a mechanism really shows. It must be below what is
promised, above half of it where the mechanism is tight, and above all of it where the noise is too small.

Source: Nasr et al., "Tight Auditing of Differentially Private Machine Learning" (2023, arXiv 2302.07956),
section 4.3, for the bound.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from fluffle.model import Vector
from fluffle.privacy.gaussian import epsilon_of
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Grid
from fluffle.privacy.noise import NoiseSecret, NoiseSequence
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.skellam import encode_within
from fluffle.record import Rank
from fluffle.secure.fixed_point import FixedPoint

GAMES, STEPS, SIZE, CLIP = 1000, 5, 4, 0.5
TARGET = PrivacyTarget(epsilon=4.0, delta=1e-5, clip=CLIP, updates=2, separation=2)
SECRET = NoiseSecret(bytes(range(32)))
# Far longer than the clip, to which it is shortened.
CANARY: Vector = np.array([3.0, 0.0, 0.0, 0.0], np.float32)
OTHERS: Vector = np.array([0.1, -0.2, 0.3, 0.1], np.float32)

# Plays one game, with or without the canary, and returns how much it looks as if the canary were there.
Game = Callable[[int, bool], float]


def lower_bound(game: Game) -> float:
    """An epsilon at TARGET.delta that the mechanism exceeds, with a confidence of 95 %."""
    scores = {here: np.array([game(number, here) for number in range(GAMES)]) for here in (False, True)}
    # Half way between what is expected with and without the canary.
    missed, wrong = int(np.sum(scores[True] < 0.5)), int(np.sum(scores[False] >= 0.5))
    # Clopper and Pearson, each side with half of the 5 %.
    highest = [stats.beta.ppf(0.975, errors + 1, GAMES - errors) for errors in (missed, wrong)]
    mu = -sum(NormalDist().inv_cdf(rate) for rate in highest)
    return epsilon_of(mu, TARGET.delta) if mu > 0 else 0.0


def gaussian_game(noise: GaussianNoise, std: float) -> Game:
    """The game against sums with noise of this standard deviation, which should be that of `noise`."""
    # Of the sums in steps nothing else is shown: the first element, in which the canary is.
    grid = Grid.for_noise(std, CLIP, SIZE)
    there = np.zeros(STEPS)
    there[: noise.updates * noise.separation : noise.separation] = CLIP

    def game(number: int, canary_is_there: bool) -> float:
        sequence = NoiseSequence(noise.coefficients, std / grid.step, SIZE, kept=9)
        shown = np.zeros(STEPS)
        for step in range(STEPS):
            total = np.zeros(SIZE, np.int64)
            grid.add_clipped(total, [OTHERS], float(np.linalg.norm(OTHERS)))
            others = total[0]
            if canary_is_there and there[step]:
                grid.add_clipped(total, [CANARY], float(np.linalg.norm(CANARY)))
            drawn = f"{number} {canary_is_there}".encode()
            sequence.add_next(SECRET.key("digits", drawn, Rank(1, step)), total)
            shown[step] = (total[0] - others) * grid.step
        # What remains of correlated noise is independent: now the best test is that of Neyman and Pearson.
        shown, expected = (lfilter([1.0], noise.coefficients, each) for each in (shown, there))
        return float(shown @ expected / (expected @ expected))

    return game


def noise_of(target: PrivacyTarget, bands: int) -> GaussianNoise:
    return GaussianNoise.keeping(
        epsilon=target.epsilon,
        delta=target.delta,
        clip=target.clip,
        updates=target.updates,
        separation=target.separation,
        bands=bands,
    )


@pytest.mark.parametrize("bands", [1, 3])
def test_a_canary_shows_less_than_is_promised_and_more_than_half_of_it(bands: int) -> None:
    noise = noise_of(TARGET, bands)

    found = lower_bound(gaussian_game(noise, noise.std))

    assert TARGET.epsilon / 2 < found <= TARGET.epsilon


@pytest.mark.parametrize("bands", [1, 3])
def test_a_canary_shows_that_noise_is_three_times_too_small(bands: int) -> None:
    noise = noise_of(TARGET, bands)

    found = lower_bound(gaussian_game(noise, noise.std / 3))

    assert found > 1.5 * TARGET.epsilon


def test_a_canary_shows_a_worker_that_takes_part_more_often_than_is_accounted_for() -> None:
    accounted = noise_of(PrivacyTarget(epsilon=1.5, clip=CLIP, updates=1), bands=1)
    real = GaussianNoise(clip=CLIP, updates=5, separation=1, bands=1, std=accounted.std)

    assert lower_bound(gaussian_game(real, real.std)) > 1.5


def skellam_game(honest: int, workers: int, target: PrivacyTarget) -> Game:
    """The game against one sum to which the workers add their shares."""
    point = FixedPoint(CLIP, 12)
    noise = target.skellam_noise(levels=point.levels, size=SIZE, honest=honest)

    def game(number: int, canary_is_there: bool) -> float:
        random = np.random.default_rng([number, canary_is_there])
        total = np.zeros(SIZE, np.uint32)
        vectors = [np.zeros(SIZE, np.float32)] * workers
        if canary_is_there:
            vectors[0] = CANARY
        for vector in vectors:
            numbers = encode_within(point, vector, noise.l2, random)
            noise.add_share(numbers, random)
            total += numbers
        signed: NDArray[np.int32] = total.view(np.int32)
        return float(signed[0]) / point.levels

    return game


def test_a_canary_in_a_sum_with_shares_shows_less_than_is_promised_and_more_than_half_of_it() -> None:
    target = PrivacyTarget(epsilon=4.0, clip=CLIP, updates=1, mechanism="distributed")

    found = lower_bound(skellam_game(3, 3, target))

    assert target.epsilon / 2 < found <= target.epsilon


def test_a_canary_shows_that_too_few_workers_added_a_share() -> None:
    target = PrivacyTarget(epsilon=4.0, clip=CLIP, updates=1, mechanism="distributed")

    assert lower_bound(skellam_game(9, 1, target)) > 1.5 * target.epsilon


def test_the_bound_itself_is_right_for_a_mechanism_whose_epsilon_is_known() -> None:
    random = np.random.default_rng(11)

    # One draw of a normal number whose mean differs by 1.
    found = lower_bound(lambda _, canary_is_there: float(random.standard_normal()) + canary_is_there)

    assert math.isclose(epsilon_of(1.0, 1e-5), 4.377, abs_tol=0.001)
    assert 2.2 < found < 4.377
