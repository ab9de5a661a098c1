"""Normalised deltas: a site that makes more local steps than others does not pull the model further. Pure.

Without it, sites that make different numbers of steps make the model settle where the sum of their losses,
each times its number of steps, is least.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from math import fsum
from typing import Final

# A worker that says that it makes more than so many times the median of steps counts as if it made these.
MOST_TIMES_MEDIAN: Final = 16.0


class UsualSteps:
    """The numbers of local steps of all workers' last updates, and what is usual among them: their mean.

    Each delta is divided by its own number of steps and multiplied by the usual one: where all are equal, the
    factor is exactly 1. A number of steps may be a fraction: steps with a lower learning rate count less.

    Source: FedNova in Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in
    Heterogeneous Federated Optimization" (2020, arXiv 2007.07481), with the vector a_i of plain SGD, whose
    norm is the number of steps. Momentum and a proximal term have another norm there; here they count by
    their steps too, which is then an approximation. The paper's tau_eff is the mean over a whole cohort. Here
    it is that over all workers, since a buffer may hold the updates of fast workers alone, or of one: its own
    mean would let these move the model further. And no worker can raise it at will: see MOST_TIMES_MEDIAN.
    """

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        """Begin with the known workers' numbers; 0 is that of a worker of which nothing is known."""
        self._ascending = sorted(each for each in numbers if each > 0)

    def replace(self, before: float, after: float) -> None:
        """Take in a worker's newest number in place of its last one, which is 0 if there was none."""
        if before > 0:
            del self._ascending[bisect_left(self._ascending, before)]
        insort(self._ascending, after)

    def scale(self, steps: float) -> float:
        """Return what a delta of so many steps is multiplied by; 1 while nothing is known."""
        known = self._ascending
        if not known:
            return 1.0
        if known[0] == known[-1]:
            return known[0] / steps
        most = MOST_TIMES_MEDIAN * known[len(known) // 2]
        within = bisect_right(known, most)
        return (fsum(known[:within]) + most * (len(known) - within)) / len(known) / steps
