"""The canary game against the whole path of noise in shares: worker, masks, helpers, and the opened sum.

The aggregator itself plays: it sees all opened sums, and knows all updates but whether those of the canary
are what they are or zero. See test_privacy_audit.py for the bound.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from builders import SIZE, a_vector, an_update
from scipy import stats
from securing import COMMITTEE, EPOCH
from sharing import keys_of

from fluffle.privacy.gaussian import epsilon_of
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.shares import SharedSums, shares_of
from fluffle.record import Rank
from fluffle.secure.helping import openings
from fluffle.secure.plan import SecurePlan
from fluffle_aggregator.secure.masked_buffer import MaskedBuffer
from fluffle_aggregator.secure.opening import AwaitedSum, OpenedSum, sound_sum
from fluffle_worker.secure_keys import SecureKeys

GAMES, CLIP = 1000, 0.5
TARGET = PrivacyTarget(epsilon=4.0, clip=CLIP, updates=2, mechanism="distributed")
SUMS = SharedSums(size=SIZE, honest=3, buffer_size=3)
PROMISED = SUMS.new_plan(TARGET)
SECURE = SUMS.secure_plan(PROMISED, 1)
LONG, ZERO, OTHERS = (40.0, 0.0, 0.0, 0.0), (0.0,) * SIZE, (0.2,) * SIZE


class Table:
    """Three workers with their own keys, helpers, and an aggregator that looks at what they open."""

    def __init__(self, folder: Path) -> None:
        self.keys: dict[str, SecureKeys] = {}
        for name in ("w1", "w2", "w3"):
            (folder / name).mkdir()
            self.keys[name] = keys_of(name, folder / name)
        self._sequences = count(1)

    def opened(self, values: dict[str, tuple[float, ...]], promised: PrivacyPlan) -> float:
        """Return the first element of an opened sum, as the aggregator sees it."""
        sequence, buffer = next(self._sequences), MaskedBuffer(SECURE, 3, 3)
        for name, each in values.items():
            update = replace(an_update(name, sequence).saying_nothing, released=1)
            random = np.random.default_rng([sequence, len(buffer)])
            under = self.keys[name].masking_with_noise(
                update, a_vector(*each), shares_of(promised), SECURE, random
            )
            buffer.add(under(update.id), 1, now=0.0, published_at=0.0)
        asked = ("helper-1", "helper-1", "helper-2")
        record = buffer.closed(federation="digits", number=1, previous="", rank=Rank(1, 1), asked=asked)
        awaited = AwaitedSum(record, COMMITTEE)
        for helper, groups in (("helper-1", (0, 1)), ("helper-2", (2,))):
            for opening in openings(record.close, EPOCH.keys[helper], EPOCH.registry, of_groups=groups):
                assert awaited.take_in(opening, helper) == ""
        found = sound_sum(awaited, SIZE, promised)
        assert isinstance(found, OpenedSum)
        return float(found.delta[0])


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def lower_bound(table: Table, promised: PrivacyPlan) -> float:
    """Return an epsilon that the mechanism exceeds, with a confidence of 95 %."""

    def score(*, is_there: bool) -> float:
        """Play a run of two sums; return how much it looks as if the canary were there."""
        canary = LONG if is_there else ZERO
        shown = [table.opened({"w1": canary, "w2": OTHERS, "w3": OTHERS}, promised) for _ in range(2)]
        return (sum(shown) - 2 * 2 * 0.2) / (2 * CLIP)

    found = {
        is_there: np.array([score(is_there=is_there) for _ in range(GAMES)]) for is_there in (False, True)
    }
    missed, wrong = int(np.sum(found[True] < 0.5)), int(np.sum(found[False] >= 0.5))
    highest = [stats.beta.ppf(0.975, errors + 1, GAMES - errors) for errors in (missed, wrong)]
    mu = -sum(NormalDist().inv_cdf(rate) for rate in highest)
    return epsilon_of(mu, TARGET.delta) if mu > 0 else 0.0


def with_share(promised: PrivacyPlan, share: float) -> PrivacyPlan:
    return replace(promised, shares=replace(shares_of(promised), share=share))


def test_opened_sums_show_no_more_of_a_canary_than_is_promised(table: Table) -> None:
    assert TARGET.epsilon / 2 < lower_bound(table, PROMISED) <= TARGET.epsilon


@pytest.mark.long
def test_the_game_finds_noise_that_is_three_times_too_small(table: Table) -> None:
    small = with_share(PROMISED, shares_of(PROMISED).share / 9)

    assert lower_bound(table, small) > TARGET.epsilon


def test_each_update_has_other_noise_and_an_update_has_the_same_under_another_id(table: Table) -> None:
    keys, update = table.keys["w1"], an_update("w1", 1)
    values, shares, random = a_vector(*ZERO), shares_of(PROMISED), np.random.default_rng

    def once(secure: SecurePlan = SECURE) -> list[bytes]:
        under = keys.masking_with_noise(update, values, shares, secure, random(0))
        return [bytes(under(update.id).vector.payload) for _ in range(2)]

    first, again = once(), once()

    assert first[0] == first[1]
    assert first[0] != again[0]
