"""Who of the helpers knows which masks: replicated sharing among groups. Pure.

Source: Cramer, Damgard and Ishai, "Share Conversion, Pseudorandom Secret-Sharing and Applications to Secure
Computation" (TCC 2005), section 2.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Final

MOST_HELPERS: Final = 7
MOST_GROUPS: Final = comb(MOST_HELPERS, MOST_HELPERS // 2)


@dataclass(frozen=True, slots=True)
class Committee:
    """The helpers, of whom so many may collude with the aggregator without learning a single update.

    Raises ValueError for two helpers of one name, for fewer than 2 or more than 7, and when nobody could
    collude or nobody would be left.
    """

    helpers: tuple[str, ...]
    colluding: int

    def __post_init__(self) -> None:
        count = len(self.helpers)
        if len(set(self.helpers)) < count:
            raise ValueError(f"each helper needs a name of its own, not {', '.join(self.helpers)}")
        if not 2 <= count <= MOST_HELPERS:
            raise ValueError(f"must be 2 to {MOST_HELPERS} helpers, not {count}")
        if not 1 <= self.colluding < count:
            raise ValueError(f"of {count} helpers 1 to {count - 1} may collude, not {self.colluding}")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The groups, each of all helpers but as many as may collude: those lack the key of one group."""
        return tuple(combinations(self.helpers, len(self.helpers) - self.colluding))

    @property
    def fewest_to_open(self) -> int:
        """How many helpers suffice to open, whoever they are: then each group has one of them."""
        return self.colluding + 1

    def can_open(self, at_work: Collection[str]) -> bool:
        """Return whether these helpers know the masks of all groups together."""
        return all(any(helper in at_work for helper in group) for group in self.groups)
