"""The canary game against the aggregator itself: gates, buffers, noise and versions, as a stranger sees them.

Whoever sees all versions, and knows all updates but whether those of the canary are what they are or zero,
guesses. How often that is right gives a lower bound of the epsilon: see test_privacy_audit.py.
"""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from builders import FEDERATION, SIZE, a_strategy, a_version, an_update
from privately import SECRET, a_private_version
from scipy import stats
from scipy.signal import lfilter

from fluffle.broker import Delivery
from fluffle.plan import Plan
from fluffle.privacy.adaptive_clip import RATE
from fluffle.privacy.gaussian import epsilon_of
from fluffle.privacy.plan import DRAWN_BYTES, PrivacyPlan
from fluffle.privacy.promise import PrivacyTarget
from fluffle.topology import topology_of
from fluffle.wire import encode_update
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.intake import TakenIn, take_in
from fluffle_aggregator.private.secret_noise import SecretNoise
from fluffle_aggregator.private.sums import AddedNoise, PrivateSums, grid_of
from fluffle_aggregator.private.weighing import private

GAMES, STEPS, BUFFER_SIZE, CLIP = 1000, 5, 2, 0.5
TARGET = PrivacyTarget(epsilon=4.0, delta=1e-5, clip=CLIP, updates=2, separation=2, correlated=True)
ADAPTIVE = PrivacyPlan.keeping(replace(TARGET, separation=1, correlated=False, adaptive=True), buffer_size=60)
TOPOLOGY = topology_of(FEDERATION)
LONG, ZERO = (40.0, 0.0, 0.0, 0.0), (0.0,) * SIZE


def a_private_model(plan: PrivacyPlan, number: int, buffer_size: int = BUFFER_SIZE) -> GlobalModel:
    record = a_private_version(plan, a_version())
    assert record.privacy is not None
    grid = grid_of(plan, SIZE, plan.clip)
    drawn = number.to_bytes(DRAWN_BYTES, "big")
    noise = SecretNoise(SECRET, record.federation, plan, record.privacy, grid, drawn=drawn)
    return GlobalModel(
        record,
        strategy=private(a_strategy(buffer_size=buffer_size, staleness="constant")),
        plan=Plan(privacy=plan),
        goal=Goal(),
        term=1,
        private=PrivateSums(plan, record.privacy, AddedNoise(noise, grid, buffer_size)),
    )


def played(plan: PrivacyPlan, number: int, *, is_there: bool) -> float:
    """Play a run; return how much it looks as if the canary were there, from 0 to 1 without noise."""
    model, shown = a_private_model(plan, 2 * number + is_there), []
    gates, way_in = gates_of(Limits(), model.strategy, TOPOLOGY), TOPOLOGY.updates_in.name
    turns = range(0, plan.updates * plan.separation, plan.separation)
    for step in range(STEPS):
        before = model.vector.copy()
        senders = [("canary", LONG if is_there else ZERO)] if step in turns else [(f"v{step}", (0.1,) * SIZE)]
        senders.append((f"w{step + 1}", (0.2,) * SIZE))
        for name, values in senders:
            body = encode_update(an_update(name, 1 + step, values=values))
            delivery = Delivery(1, body, user=name, exchange=way_in)
            assert isinstance(take_in(delivery, model, gates, now=0.0), TakenIn)
        known = sum(values[0] for name, values in senders if name != "canary")
        shown.append(BUFFER_SIZE * float(model.vector[0] - before[0]) - known)
    there = np.zeros(STEPS)
    there[list(turns)] = CLIP
    # Of correlated noise, whoever knows its coefficients makes independent noise again.
    whitened, signal = (lfilter([1.0], plan.noise.coefficients, each) for each in (shown, there))
    return float(whitened @ signal / (signal @ signal))


def played_with_an_adaptive_clip(plan: PrivacyPlan, number: int, *, is_there: bool) -> float:
    """Play a run in which the clip tells, too, how many updates fit it."""
    # So large that the noisy share is never cut off at 0 or 1, and nothing of it is lost.
    buffer_size = 60
    model, score, whole = a_private_model(plan, 2 * number + is_there, buffer_size), 0.0, 0.0
    assert model.private is not None
    assert plan.count_std is not None
    gates, way_in = gates_of(Limits(), model.strategy, TOPOLOGY), TOPOLOGY.updates_in.name
    for step in range(plan.updates):
        before, clip = model.vector.copy(), model.private.state.clip_of(plan)
        for name, values in (("canary", LONG if is_there else ZERO), (f"w{step}", ZERO)):
            body = encode_update(an_update(name, 1 + step, values=values))
            delivery = Delivery(1, body, user=name, exchange=way_in)
            assert isinstance(take_in(delivery, model, gates, now=0.0), TakenIn)
        model.step()
        std, moved = plan.std_at(clip), math.log(model.private.state.clip_of(plan) / clip)
        in_sum = buffer_size * float(model.vector[0] - before[0])
        # The other update fits. The canary does not; without it, its zero counts as one half and not as one.
        in_count = buffer_size * -moved / RATE - 0.5 - (0 if is_there else 0.5)
        score += in_sum * clip / std**2 - in_count * 0.5 / plan.count_std**2
        whole += (clip / std) ** 2 + (0.5 / plan.count_std) ** 2
    return score / whole


def lower_bound(plan: PrivacyPlan) -> float:
    """Return an epsilon that the aggregator exceeds, with a confidence of 95 %."""
    play = played if plan.count_std is None else played_with_an_adaptive_clip
    found = {
        is_there: np.array([play(plan, number, is_there=is_there) for number in range(GAMES)])
        for is_there in (False, True)
    }
    missed, wrong = int(np.sum(found[True] < 0.5)), int(np.sum(found[False] >= 0.5))
    highest = [stats.beta.ppf(0.975, errors + 1, GAMES - errors) for errors in (missed, wrong)]
    mu = -sum(NormalDist().inv_cdf(rate) for rate in highest)
    return epsilon_of(mu, TARGET.delta) if mu > 0 else 0.0


@pytest.mark.parametrize("is_correlated", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_aggregator_shows_no_more_of_a_canary_than_it_promises(is_correlated: bool) -> None:
    plan = PrivacyPlan.keeping(replace(TARGET, correlated=is_correlated))

    assert TARGET.epsilon / 2 < lower_bound(plan) <= TARGET.epsilon


def test_a_canary_shows_no_more_in_sums_and_in_the_clip_together_than_is_promised() -> None:
    assert TARGET.epsilon / 2 < lower_bound(ADAPTIVE) <= TARGET.epsilon


@pytest.mark.parametrize("part", ["std", "count_std"])
def test_the_game_finds_that_noise_of_the_sum_or_of_the_count_is_too_small(part: str) -> None:
    count_std = ADAPTIVE.count_std
    assert count_std is not None
    plan = replace(ADAPTIVE, std=ADAPTIVE.std / 3)
    if part == "count_std":
        multiplier, weak = ADAPTIVE.std_at(CLIP) / CLIP, count_std / 8
        # The noise of the sums stays.
        plan = replace(ADAPTIVE, count_std=weak, std=CLIP / math.hypot(1 / multiplier, 1 / (2 * weak)))

    assert lower_bound(plan) > TARGET.epsilon


def test_the_game_finds_noise_that_is_three_times_too_small() -> None:
    plan = PrivacyPlan.keeping(TARGET)

    assert lower_bound(replace(plan, std=plan.std / 3)) > TARGET.epsilon
