"""A buffer of sealed updates: the sum of their ciphertexts, and of what is not encrypted. Pure."""

from dataclasses import dataclass

import numpy as np

from fluffle.codecs.sealed import SealedVector
from fluffle.compression import CompressedVector
from fluffle.model import Vector
from fluffle.sealed.part import SealedPart
from fluffle.sealed.plan import SealedPlan
from fluffle.sealed.residues import Residues, add_packed, zeros
from fluffle_aggregator.sections import Coverage, Section, Totals, Weight

EMPTY = Coverage()


@dataclass(frozen=True, slots=True, eq=False)
class SealedSum:
    """The sum of integer weight times update, which is divided by the plan's divisor, however many there are.

    The model follows from the sums of all buffers by one formula, so each is divided alike. `weight` is the
    sum of the weights. `residues` are the ciphertexts of the sum, and `others` the sum of the elements that
    are not encrypted; both are None before the first update.
    """

    part: SealedPart
    plan: SealedPlan
    weight: int = 0
    residues: Residues | None = None
    others: Vector | None = None
    coverage: Coverage = EMPTY

    @property
    def totals(self) -> Totals:
        """What the updates count together."""
        return self.coverage.totals

    def adding(self, vector: CompressedVector, weight: Weight) -> "SealedSum":
        """Return a sum of one more update, whose ciphertexts were checked when it was read."""
        if not isinstance(vector, SealedVector):
            raise TypeError(f"only sealed updates can be added to a sealed sum, no {type(vector).__name__}")
        whole = self.integer_of(weight)
        residues = zeros(self.part.size) if self.residues is None else self.residues
        others = np.zeros(self.part.open_size, np.float32) if self.others is None else self.others
        add_packed(residues, vector.sealed, self.part.size, whole)
        vector.open.add_to(others, whole)
        one = Totals(weight.factor, weight.divisor, weight.mixing, 1, weight.staleness)
        coverage = self.coverage.adding(0, one)
        return SealedSum(self.part, self.plan, self.weight + whole, residues, others, coverage)

    def integer_of(self, weight: Weight) -> int:
        """Return the integer weight of an update, of which a fresh one has the plan's greatest."""
        return max(1, round(weight.factor * self.plan.greatest))

    def sections(self) -> list[Section]:
        """Return the elements that are not encrypted: of the others nobody here moves the model."""
        return [Section(start, stop, self.totals) for start, stop in self.part.open_ranges]

    def close(self) -> Vector:
        """Return the delta: 0 where elements are encrypted."""
        others = np.zeros(self.part.open_size, np.float32) if self.others is None else self.others
        return self.part.with_open(np.divide(others, np.float32(self.plan.divisor)))
