"""The grid on which all sites count their values: leaves of the width 2^e, aligned to multiples of it. Pure.

Leaf k of exponent e holds the values from k * 2^e up to (k + 1) * 2^e. Two leaves of an exponent make one of
the next, so that histograms of different exponents merge exactly: the finer one is made coarser. 0 is always
an edge.
"""

import math
from typing import NamedTuple

# With so many leaves the smallest exponent that covers a range has leaves of at most 1/1024 of it: at half
# the width the range would take more leaves, of which it touches at most one more than fit into it.
LEAVES = 2**11 + 1
# The smallest positive float64 is 2^-1074, and the largest number is below 2^1024.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -1074 - 61, 1024
# The number of a leaf has at most so many bits, so that it fits into an int64.
LEAF_BITS = 61


class Window(NamedTuple):
    """The leaves of an exponent from the first to the last one, both of which are in it."""

    exponent: int
    first: int
    last: int

    @property
    def leaves(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    def coarsened(self, exponent: int) -> "Window":
        """Return the window of a larger exponent that covers this one."""
        by = exponent - self.exponent
        return Window(exponent, self.first >> by, self.last >> by)


def window_of(lowest: float, highest: float) -> Window:
    """Return the window of the smallest exponent that covers a range of finite values by at most LEAVES."""
    largest = max(abs(lowest), abs(highest))
    # Below this, the numbers of leaves would have more than LEAF_BITS bits.
    low = max(LOWEST_EXPONENT, math.frexp(largest)[1] - LEAF_BITS) if largest else LOWEST_EXPONENT
    high = low + LEAF_BITS + 1
    while low < high:
        middle = (low + high) // 2
        if _window(lowest, highest, middle).leaves <= LEAVES:
            high = middle
        else:
            low = middle + 1
    return _window(lowest, highest, low)


def window_over(one: Window, other: Window) -> Window:
    """Return the window of the smallest exponent, no finer than both, that covers them by LEAVES at most."""
    exponent = max(one.exponent, other.exponent)
    while True:
        a, b = one.coarsened(exponent), other.coarsened(exponent)
        over = Window(exponent, min(a.first, b.first), max(a.last, b.last))
        if over.leaves <= LEAVES:
            return over
        exponent += 1


def _window(lowest: float, highest: float, exponent: int) -> Window:
    return Window(exponent, *(math.floor(math.ldexp(each, -exponent)) for each in (lowest, highest)))
