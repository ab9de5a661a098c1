"""How much Gaussian noise the aggregator or a worker adds, and what a worker has spent. Pure."""

from dataclasses import dataclass
from typing import Final, Self

from fluffle.privacy.correlated import coefficients, sensitivity
from fluffle.privacy.gaussian import epsilon_of, mu_of
from fluffle.topology import MIB

# The normal numbers of earlier sums are kept in at most so much memory, and made again beyond that.
MEMORY_BYTES: Final = 512 * MIB
BYTES_PER_NUMBER: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Gaussian noise for sums of updates, or for single updates, which then are sums of one.

    `std` is the standard deviation of the independent normal numbers z_t of each element; with more than one
    of the `bands` the noise is correlated. A worker has at most so many `updates`, each of a norm of at most
    `clip` and at least `separation` sums after the one before.

    Computed numbers may differ in their last bit from machine to machine. So the first leader computes the
    noise, and whoever comes later takes it from the plan.
    """

    clip: float
    updates: int
    separation: int
    bands: int
    std: float

    @classmethod
    def keeping(
        cls, *, epsilon: float, delta: float, clip: float, updates: int, separation: int, bands: int
    ) -> Self:
        """Return the least noise with which each worker has this epsilon and delta.

        Raises ValueError for numbers that cannot be.
        """
        std = clip * sensitivity(updates, separation, bands) / mu_of(epsilon, delta)
        return cls(clip=clip, updates=updates, separation=separation, bands=bands, std=std)

    @property
    def multiplier(self) -> float:
        """The standard deviation divided by the clip."""
        return self.std / self.clip

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What z_t, z_(t-1), ... are multiplied by."""
        return coefficients(self.bands)

    def kept_sums(self, size: int) -> int:
        """Return how many earlier sums of a model of so many parameters have their normal numbers kept."""
        return min(self.bands - 1, MEMORY_BYTES // (BYTES_PER_NUMBER * size)) if size else 0

    def memory_bytes(self, size: int) -> int:
        """Return how much memory those take while the next ones are drawn."""
        kept = self.kept_sums(size)
        return (kept + 1) * BYTES_PER_NUMBER * size if kept else 0

    @property
    def mu(self) -> float:
        """The mu of Gaussian differential privacy of a worker that has sent all its updates."""
        return self.mu_after(self.updates)

    def mu_after(self, updates: int) -> float:
        """Return the mu of a worker that has sent so many updates; after more than allowed it is larger.

        A version that may have been shown twice, with different noise, counts as one more update of each
        worker that had sent any until then.
        """
        return sensitivity(updates, self.separation, self.bands) / self.multiplier if updates else 0.0

    def epsilon_after(self, updates: int, delta: float) -> float:
        """Return the epsilon that a worker has spent after so many updates, see `mu_after`."""
        return epsilon_of(self.mu_after(updates), delta) if updates else 0.0
