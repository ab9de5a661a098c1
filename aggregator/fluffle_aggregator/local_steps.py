"""Normalised averaging: a site that makes more local steps than others does not pull the model further. Pure.

Without it, sites that make different numbers of steps make the model settle where the sum of their losses,
each times its number of steps, is least.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalSteps:
    """The numbers of local steps of a buffer's updates.

    Each delta is divided by its number of steps, and the buffer's mean is multiplied by the mean number, both
    means with the same weights. Numbers are kept relative to that of the first update: where all are equal,
    every factor is exactly 1.

    Source: FedNova in Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in
    Heterogeneous Federated Optimization" (2020, arXiv 2007.07481), FedNova with the vector a_i of plain
    SGD, whose norm is the number of steps, and tau_eff = sum of p_i * tau_i, as in the authors' code
    (github.com/JYWa/FedNova, distoptim/FedNova.py). Momentum and a proximal term have another norm there;
    here they count by their steps too, which is then an approximation.
    """

    first: int = 0
    weight: float = 0.0
    weighted: float = 0.0

    def adding(self, weight: float, steps: int) -> "LocalSteps":
        """Return the numbers with one more update's; steps of 0 say that its delta is not normalised."""
        first = self.first or steps
        relative = steps / first if steps else 1.0
        return LocalSteps(first, self.weight + weight, self.weighted + weight * relative)

    def scale(self, steps: int) -> float:
        """Return what a delta of so many steps is multiplied by, once it has been added."""
        return self.first / steps if steps else 1.0

    @property
    def mean(self) -> float:
        """What the mean of the scaled deltas is multiplied by."""
        return self.weighted / self.weight if self.weight else 1.0
