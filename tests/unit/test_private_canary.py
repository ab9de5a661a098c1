"""The canary game against the aggregator itself: gates, buffers, noise and versions, as a stranger sees them.

Whoever sees all versions, and knows all updates but whether those of the canary are what they are or zero,
guesses. How often that is right gives a lower bound of the epsilon: see test_privacy_audit.py.
"""

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
TOPOLOGY = topology_of(FEDERATION)
LONG, ZERO = (40.0, 0.0, 0.0, 0.0), (0.0,) * SIZE


def a_private_model(plan: PrivacyPlan, number: int) -> GlobalModel:
    record = a_private_version(plan, a_version())
    assert record.privacy is not None
    grid = grid_of(plan, SIZE)
    drawn = number.to_bytes(DRAWN_BYTES, "big")
    noise = SecretNoise(SECRET, record.federation, plan, record.privacy, grid, drawn=drawn)
    return GlobalModel(
        record,
        strategy=private(a_strategy(buffer_size=BUFFER_SIZE, staleness="constant")),
        plan=Plan(privacy=plan),
        goal=Goal(),
        term=1,
        private=PrivateSums(plan, record.privacy, AddedNoise(noise, grid, BUFFER_SIZE)),
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


def lower_bound(plan: PrivacyPlan) -> float:
    """Return an epsilon that the aggregator exceeds, with a confidence of 95 %."""
    found = {
        is_there: np.array([played(plan, number, is_there=is_there) for number in range(GAMES)])
        for is_there in (False, True)
    }
    missed, wrong = int(np.sum(found[True] < 0.5)), int(np.sum(found[False] >= 0.5))
    highest = [stats.beta.ppf(0.975, errors + 1, GAMES - errors) for errors in (missed, wrong)]
    mu = -sum(NormalDist().inv_cdf(rate) for rate in highest)
    return epsilon_of(mu, TARGET.delta) if mu > 0 else 0.0


@pytest.mark.parametrize("is_correlated", [False, True])
def test_the_aggregator_shows_no_more_of_a_canary_than_it_promises(is_correlated: bool) -> None:
    plan = PrivacyPlan.keeping(replace(TARGET, correlated=is_correlated))

    assert TARGET.epsilon / 2 < lower_bound(plan) <= TARGET.epsilon


def test_the_game_finds_noise_that_is_three_times_too_small() -> None:
    plan = PrivacyPlan.keeping(TARGET)

    assert lower_bound(replace(plan, std=plan.std / 3)) > TARGET.epsilon
