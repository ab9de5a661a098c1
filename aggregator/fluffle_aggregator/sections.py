"""Which elements of the model the updates of a buffer have, and what they count there. Pure.

Most updates have all elements. One of a worker that trains the last layers alone has those from its `start`
on. Each element is then aggregated as if only the updates that have it had been sent, and one that no update
has does not change. TimelyFL aggregates each layer in this way: Zhang, Gao, Lee, Zhang and Avestimehr,
"TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive Partial Training" (2023, arXiv
2304.06947).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Weight:
    """What one update counts in its buffer.

    `factor` multiplies the vector in a weighted sum, and `divisor` is what the update adds to the number that
    the sum is divided by. `discount`, in (0, 1], is the part of both that follows from its staleness and not
    from its examples. `mixing`, in (0, 1], is how far the update alone moves the statistics towards its own.
    `staleness` is that of the update. `scale` is what its vector is multiplied by besides, so that it is as
    long as one of the usual number of local steps; 1 where deltas are not normalised.
    """

    factor: float
    divisor: float
    discount: float
    mixing: float
    staleness: int = 0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What some updates count together: sums, and for `staleness` the greatest."""

    factor: float = 0.0
    divisor: float = 0.0
    mixing: float = 0.0
    count: int = 0
    staleness: int = 0

    def plus(self, other: "Totals") -> "Totals":
        """Return what the updates of both count."""
        return Totals(
            self.factor + other.factor,
            self.divisor + other.divisor,
            self.mixing + other.mixing,
            self.count + other.count,
            max(self.staleness, other.staleness),
        )


NOTHING = Totals()


@dataclass(frozen=True, slots=True)
class Section:
    """The elements from `start` to before `stop`, which the same updates have; `totals` are of these."""

    start: int
    stop: int
    totals: Totals

    @property
    def elements(self) -> slice:
        """The elements, as an index of a vector."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the updates of a buffer count, by the first element that they have."""

    by_start: Mapping[int, Totals] = field(default_factory=dict)

    @property
    def totals(self) -> Totals:
        """What all updates count together."""
        return _sum(self.by_start.values())

    def adding(self, start: int, one: Totals) -> "Coverage":
        """Return the coverage with one more update, whose first element is `start`."""
        return Coverage({**self.by_start, start: self.by_start.get(start, NOTHING).plus(one)})

    def sections(self, size: int, starts: Iterable[int] = ()) -> list[Section]:
        """Cut the elements that some update has, of a vector of `size`, into sections.

        One also begins at each of `starts`, the first elements of other vectors.
        """
        ascending = dict(sorted(self.by_start.items()))
        first = min(ascending, default=size)
        begin = sorted({start for start in (*ascending, *starts) if first <= start < size})
        return [
            Section(start, stop, _sum(each for at, each in ascending.items() if at <= start))
            for start, stop in pairwise([*begin, size])
        ]


def overlaps(sections: Iterable[Section], first: int, size: int) -> Iterator[tuple[int, slice]]:
    """Yield the numbers of the sections that reach into a block of `size` elements from `first` on.

    The slice says which elements of the block are in the section.
    """
    for number, section in enumerate(sections):
        start, stop = max(section.start - first, 0), min(section.stop - first, size)
        if start < stop:
            yield number, slice(start, stop)


def _sum(totals: Iterable[Totals]) -> Totals:
    result = NOTHING
    for each in totals:
        result = result.plus(each)
    return result
