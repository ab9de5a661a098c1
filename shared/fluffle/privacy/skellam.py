"""Noise in shares: each worker adds a part of it to its whole numbers, and nobody sees a sum with less. Pure.

Skellam numbers are differences of two Poisson numbers. A sum of them is Skellam again, with the sum of their
variances, so it does not matter how many workers add a share, as long as enough are honest. What is known of
their privacy is a bound on the Renyi divergence, which adds up over a worker's updates.

Sources: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning"
(2021, arXiv 2110.04995), Theorem 3.5 and Corollary 3.6; Kairouz, Liu and Steinke, "The Distributed Discrete
Gaussian Mechanism for Federated Learning with Secure Aggregation" (2021, arXiv 2102.06387), for rounding;
Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020, arXiv 2004.00010),
Proposition 12, for epsilon and delta.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Final, Self

import numpy as np

from fluffle.fields import Positive, must
from fluffle.model import Vector
from fluffle.secure.fixed_point import FixedPoint
from fluffle.secure.modulus import Residues
from fluffle.vector_math import BLOCK_SIZE

# The bound holds for whole orders; these are close enough to each other to lose nothing that one can see.
ORDERS: Final[tuple[int, ...]] = (
    *range(2, 128),
    *((16 + part) << power for power in range(3, 16) for part in range(16)),
)
# In at most this part of all cases a rounded vector is too long, and is rounded again. It is the paper's
# choice, and makes the root in the bound 1.
TOO_LONG: Final = math.exp(-0.5)
# To draw a Poisson number, numpy compares logarithms of factorials. Up to here float64 rounds them by 2**-12
# at most.
MOST_VARIANCE: Final = 2.0**37
_Number = Annotated[float, must(lambda number: number > 0, "{} is not more than 0")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamNoise:
    """The noise in each sum of whole numbers, and in the share of one worker.

    An update was clipped to an L2 norm of `clip` in whole numbers, and rounded. Then it has an L2 norm of at
    most `l2`, and an L1 norm of at most `l1`. Each worker adds a share of variance `share`. At least `honest`
    workers of each sum do so and tell nobody; their shares together are what counts.
    """

    clip: _Number
    l2: _Number
    l1: _Number
    honest: Positive
    share: _Number

    @classmethod
    def keeping(
        cls, *, epsilon: float, delta: float, updates: int, clip: float, size: int, honest: int
    ) -> Self:
        """Return the least noise with which each worker has this epsilon and delta, up to 0.1 % more.

        A worker has at most so many updates, of `size` whole numbers that were rounded at random from a
        vector of L2 norm `clip`, see `encode_within`. Raises ValueError for numbers that cannot be, and where
        numpy could not draw a share exactly enough.
        """
        if not (epsilon > 0 and 0 < delta < 1 and updates >= 1):
            raise ValueError(
                f"needs epsilon above 0, delta in (0, 1) and 1 update, not {epsilon}, {delta} and {updates}"
            )
        if honest < 1:
            raise ValueError(f"at least 1 worker of each sum must be honest, not {honest}")
        l2 = rounded_norm(clip, size)
        # Of whole numbers none is larger than its square.
        l1 = l2 * min(math.sqrt(size), l2)
        too_small, enough = 0.0, l2 * l2
        while _epsilon(enough, l2, l1, updates, delta) > epsilon:
            too_small, enough = enough, 2 * enough
            if too_small > honest * MOST_VARIANCE:
                raise ValueError(
                    f"noise of a standard deviation of more than {math.sqrt(MOST_VARIANCE):.0f} steps cannot "
                    "be drawn exactly: use fewer bits, or a larger epsilon"
                )
        while enough - too_small > enough / 1000:
            middle = (too_small + enough) / 2
            if _epsilon(middle, l2, l1, updates, delta) > epsilon:
                too_small = middle
            else:
                enough = middle
        return cls(clip=float(clip), l2=l2, l1=l1, honest=honest, share=enough / honest)

    @property
    def bits(self) -> int:
        """Of how many bits the whole numbers of an update are, without noise."""
        return round(self.clip).bit_length() + 1

    @property
    def variance(self) -> float:
        """The variance of the noise that is in each sum at least."""
        return self.share * self.honest

    def epsilon_after(self, updates: int, delta: float) -> float:
        """Return the epsilon that a worker has spent after so many updates."""
        return _epsilon(self.variance, self.l2, self.l1, updates, delta) if updates else 0.0

    def add_share(self, numbers: Residues, random: np.random.Generator) -> None:
        """Add one worker's share to its whole numbers, in place, modulo 2**32.

        `random` is to be seeded by the operating system, for this purpose alone: whoever could tell its state
        could take the share off.
        """
        half = self.share / 2
        for start in range(0, numbers.size, BLOCK_SIZE):
            block = numbers[start : start + BLOCK_SIZE]
            drawn = random.poisson(half, block.size) - random.poisson(half, block.size)
            block += drawn.astype(np.uint32)

    def farthest(self, workers: int, size: int) -> int:
        """Return how far from 0 the shares of so many workers bring any of `size` elements.

        There is a chance of 2**-40 that one comes further. Source: Boucheron, Lugosi and Massart,
        "Concentration Inequalities" (2013), section 2.4, since cosh(s) - 1 <= s**2 / 2 / (1 - s / 3).
        """
        log_chance = math.log(2 * size) + 40 * math.log(2)
        return math.ceil(math.sqrt(2 * workers * self.share * log_chance) + log_chance / 3)

    def longest(self, workers: int, size: int) -> float:
        """Return how long the shares of so many workers are together at most, as an L2 norm.

        There is a chance of 2**-39 that they are longer. No square is larger than that of `farthest`, and its
        mean is 3 v**2 + v for the variance v. Source: Boucheron, Lugosi and Massart, section 2.8 (Bernstein).
        """
        variance, log_chance = workers * self.share, 40 * math.log(2)
        of_squares = 2 * size * (3 * variance**2 + variance) * log_chance
        most = 2 / 3 * self.farthest(workers, size) ** 2 * log_chance
        return math.sqrt(size * variance + math.sqrt(of_squares) + most)


def rounded_norm(clip: float, size: int) -> float:
    """Return how long `size` whole numbers may be that were rounded at random, from a norm of `clip`."""
    root = math.sqrt(size)
    likely = clip * clip + size / 4 + math.sqrt(2 * math.log(1 / TOO_LONG)) * (clip + root / 2)
    return min(clip + root, math.sqrt(likely))


def encode_within(point: FixedPoint, vector: Vector, l2: float, random: np.random.Generator) -> Residues:
    """Return a vector in whole numbers, rounded again until their L2 norm is at most `l2`.

    With the l2 of `SkellamNoise` at most three attempts are needed on average.
    """
    while True:
        encoded = point.encode(vector, random)
        if _squared_norm(encoded) <= l2 * l2:
            return encoded


def renyi_divergence(order: int, l2: float, l1: float, variance: float) -> float:
    """Return a bound on the Renyi divergence of a whole order between sums with and without one update."""
    square = l2 * l2
    gaussian = order * square / (2 * variance)
    return gaussian + min(
        ((2 * order - 1) * square + 6 * l1) / (4 * variance * variance), 3 * l1 / (2 * variance)
    )


def _epsilon(variance: float, l2: float, l1: float, updates: int, delta: float) -> float:
    """Return the epsilon that follows from the divergences of all orders."""
    found = min(
        updates * renyi_divergence(order, l2, l1, variance)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    return max(0.0, found)


def _squared_norm(encoded: Residues) -> int:
    """Return the sum of the squares, exactly: a number has 20 bits, and a block 2**16 numbers."""
    numbers = encoded.view(np.int32)
    starts = range(0, numbers.size, BLOCK_SIZE)
    blocks = (numbers[start : start + BLOCK_SIZE].astype(np.int64) for start in starts)
    return sum(int(np.sum(np.square(block))) for block in blocks)
