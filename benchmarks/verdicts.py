"""What is to be reached, and whether a measurement reaches it. Arithmetic only."""

import math
from dataclasses import dataclass
from typing import Literal

# Machines differ and other work disturbs: only what falls short by more than this fails.
TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class Verdict:
    """One demand and what was measured for it; `lower_bound` when the truth is at least the measurement."""

    what: str
    sense: Literal["at least", "at most"]
    required: float
    measured: float
    unit: str = ""
    lower_bound: bool = False
    tolerance: float = TOLERANCE

    @property
    def shortfall(self) -> float:
        """The part of what is required by which the measurement falls short; 0 when it does not.

        Infinite when there is no measurement (NaN).
        """
        if math.isnan(self.measured):
            return math.inf
        short = self.measured / self.required - 1
        return max(0.0, short if self.sense == "at most" else -short)

    @property
    def fails(self) -> bool:
        """Whether it falls short by more than is tolerated."""
        return self.shortfall > self.tolerance

    @property
    def sentence(self) -> str:
        """What was required, what was measured, and the verdict."""
        return (
            f"{self.what}: {self.measured:.3g}{self.unit}, {self.sense} {self.required:g}{self.unit}: {self}"
        )

    def __str__(self) -> str:
        if self.fails:
            return f"FALLS SHORT by {self.shortfall:.0%}"
        return f"short by {self.shortfall:.0%}, tolerated" if self.shortfall else "reached"


def exit_code(verdicts: list[Verdict]) -> int:
    """Return 1 when one falls short by more than is tolerated, or when nothing was measured; else 0."""
    return int(not verdicts or any(verdict.fails for verdict in verdicts))
