"""How many bits the numbers of a sum have, with room for all updates and for all shares of noise. Pure.

Rounding makes an update longer, and so its noise larger, the fewer bits there are. Where that no longer
shows, more bits are of no use, and the smallest modulus that has room for them makes the smallest messages.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fluffle.errors import ConfigError
from fluffle.model import Layout
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.skellam import SkellamNoise, rounded_norm
from fluffle.secure.fixed_point import FEWEST_BITS, FixedPoint
from fluffle.secure.modulus import BITS, Modulus
from fluffle.secure.plan import SecurePlan

MOST_BITS: Final = 16
# So much more noise than without rounding does not show.
ENOUGH: Final = 1.01
SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSums:
    """Sums of `buffer_size` updates of so many elements, of which at least so many `honest` ones add a share.

    With `modulus_bits` the sums are modulo 2**modulus_bits, otherwise the smallest modulus is chosen.
    """

    size: int
    honest: int
    buffer_size: int
    modulus_bits: int | None = None

    @property
    def _moduli(self) -> tuple[int, ...]:
        return BITS if self.modulus_bits is None else (self.modulus_bits,)

    def new_plan(self, target: PrivacyTarget) -> PrivacyPlan:
        """Return the plan with the least noise for a target, in as many bits as are of use and fit.

        Raises ConfigError when nothing fits, with what would.
        """
        fitting: list[SkellamNoise] = []
        for modulus_bits in self._moduli:
            found = next(self._fitting(target, modulus_bits), None)
            fitting += [found] if found else []
            if found and (found.l2 <= ENOUGH * found.clip or found.clip == _levels(MOST_BITS)):
                break
        if not fitting:
            raise ConfigError(self._why_none_fits(target))
        noise = fitting[-1]
        return PrivacyPlan(
            mechanism="distributed",
            epsilon=target.epsilon,
            delta=target.delta,
            clip=target.clip,
            updates=target.updates,
            separation=target.separation,
            bands=1,
            std=noise.variance**0.5 * target.clip / noise.clip,
            shares=noise,
        )

    def secure_plan(self, promised: PrivacyPlan, epoch: int) -> SecurePlan:
        """Return how workers mask what a plan promises. Raises ConfigError when sums have no room for it."""
        noise = shares_of(promised)
        fitting = [each for each in self._moduli if self._has_room(noise, each)]
        if not fitting:
            raise ConfigError(
                f"sums of {self.buffer_size} updates (buffer_size) with their noise can leave 2**"
                f"{self._moduli[-1]}: with what this federation has promised, at most "
                f"{self._most_updates(noise, self._moduli[-1])} updates fit"
            )
        return SecurePlan(
            epoch=epoch,
            clip=promised.clip,
            by_norm=True,
            bits=noise.bits,
            modulus_bits=fitting[0],
            greatest=1,
            honest=noise.honest,
        ).numbered()

    def _fitting(self, target: PrivacyTarget, modulus_bits: int) -> Iterator[SkellamNoise]:
        """Yield the noise in so many bits as fit, with the most bits first."""
        for bits in range(MOST_BITS, FEWEST_BITS - 1, -1):
            # Without any noise there would be less.
            if self.buffer_size * _levels(bits) >= 1 << modulus_bits - 1:
                continue
            try:
                noise = target.skellam_noise(levels=_levels(bits), size=self.size, honest=self.honest)
            except ConfigError:
                # With fewer bits there may be.
                continue
            if self._has_room(noise, modulus_bits):
                yield noise

    def _has_room(self, noise: SkellamNoise, modulus_bits: int) -> bool:
        return self._furthest(noise, self.buffer_size) < 1 << Modulus(modulus_bits).bits - 1

    def _furthest(self, noise: SkellamNoise, updates: int) -> int:
        return updates * round(noise.clip) + noise.farthest(updates, self.size)

    def _most_updates(self, noise: SkellamNoise, modulus_bits: int) -> int:
        most = 0
        for step in (1 << power for power in range(12, -1, -1)):
            if self._furthest(noise, most + step) < 1 << modulus_bits - 1:
                most += step
        return most

    def _why_none_fits(self, target: PrivacyTarget) -> str:
        modulus_bits = self._moduli[-1]
        # Raises ConfigError where nobody could draw so much noise.
        noise = target.skellam_noise(levels=_levels(FEWEST_BITS), size=self.size, honest=self.honest)
        raise_it = "" if modulus_bits == BITS[-1] else ", or raise secure_modulus"
        return (
            f"sums of {self.buffer_size} updates (buffer_size) of {FEWEST_BITS} bits, with noise of a "
            f"standard deviation of {noise.variance**0.5:.0f} steps, can leave 2**{modulus_bits}: at most "
            f"{self._most_updates(noise, modulus_bits)} updates fit; take a larger epsilon{raise_it}"
        )


def shares_of(promised: PrivacyPlan) -> SkellamNoise:
    """Return the shares of a plan. Raises ConfigError for a plan without."""
    if promised.shares is None:
        raise ConfigError(f"a plan of the mechanism {promised.mechanism} has no shares of noise")
    return promised.shares


def why_not_kept(promised: PrivacyPlan, secure: SecurePlan | None, layout: Layout) -> str:
    """Return why shares by these plans would not keep to what is promised; empty if they do.

    A worker asks this for itself: the aggregator that has made the plans is not to be trusted.
    """
    noise = promised.shares
    if noise is None or secure is None:
        return "it has no shares of noise under masks"
    if layout.statistics_size:
        return "there is no noise for averages of the site's data, and the model has some"
    levels, size = secure.fixed_point.levels, layout.size
    l2 = rounded_norm(levels, size)
    # Another machine may compute other last bits.
    least_l1 = l2 * min(math.sqrt(size), l2) * (1 - SLACK)
    if noise.clip != levels or noise.l2 < l2 * (1 - SLACK) or noise.l1 < least_l1:
        return f"its noise is for shorter updates than those of {secure.bits} bits and {size} parameters"
    own = SecurePlan(
        epoch=secure.epoch,
        clip=promised.clip,
        by_norm=True,
        bits=secure.bits,
        modulus_bits=secure.modulus_bits,
        greatest=1,
        honest=noise.honest,
    ).of_keys(secure.group_keys)
    if secure != own:
        return "its updates are not clipped, weighed and masked as its noise needs"
    spent = promised.epsilon_after(promised.updates)
    if spent > promised.epsilon * (1 + SLACK):
        return f"after {promised.updates} updates epsilon is {spent:g}"
    return ""


def _levels(bits: int) -> int:
    return FixedPoint(1.0, bits).levels
