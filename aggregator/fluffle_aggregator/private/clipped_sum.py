"""A buffer of clipped updates, in whole steps, to which noise is added before anybody sees it. Pure."""

from dataclasses import dataclass, replace

import numpy as np

from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.privacy.grid import Grid, Steps
from fluffle_aggregator.norms import quick_norm_of
from fluffle_aggregator.sections import Coverage, Section, Totals, Weight

EMPTY = Coverage()


@dataclass(frozen=True, slots=True, eq=False)
class ClippedSum:
    """The sum of the clipped and discounted updates, which is divided by `divisor`, however many there are.

    Were it divided by the number of updates, or by their weights, the result would tell of these as well.
    `fitting` is the number of updates that were not longer than the clip.
    """

    grid: Grid
    divisor: int
    steps: Steps
    coverage: Coverage = EMPTY
    fitting: int = 0

    @classmethod
    def empty(cls, grid: Grid, divisor: int) -> "ClippedSum":
        """Return a buffer that holds no update."""
        return cls(grid, divisor, np.zeros(grid.size, np.int64))

    @property
    def totals(self) -> Totals:
        """What the updates count together."""
        return self.coverage.totals

    def adding(self, vector: CompressedVector, weight: Weight) -> "ClippedSum":
        """Return a sum of one more update."""
        norm = quick_norm_of(vector)
        # A discount of a large staleness may be too small for a float.
        if weight.discount > 0:
            self.grid.add_clipped(self.steps, vector.blocks(), norm, weight.discount)
        one = Totals(weight.factor, weight.divisor, weight.mixing, 1, weight.staleness)
        return replace(
            self,
            coverage=self.coverage.adding(vector.start, one),
            fitting=self.fitting + (norm <= self.grid.clip),
        )

    def sections(self) -> list[Section]:
        """Return the whole model as one section: also where no update has moved an element, noise does."""
        return [Section(0, self.grid.size, self.totals)]

    def close(self) -> Vector:
        """Return the delta. The noise must have been added before."""
        return self.grid.decode(self.steps, self.divisor)
