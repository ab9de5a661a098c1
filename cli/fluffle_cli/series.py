"""Curves of bounded length: when one is full, neighbouring points are merged. Pure."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

# About as many as a screen has room for.
MOST_POINTS: Final = 512

P = TypeVar("P")


class Series(Generic[P]):
    """At most `most` points in the order in which they came, each merged from equally many."""

    def __init__(self, merge: Callable[[P, P], P], *, most: int = MOST_POINTS) -> None:
        """Merge an earlier and a later point with `merge` once there are more than `most`, an even number."""
        self._merge = merge
        self._most = most
        self._full: list[P] = []
        self._open: P | None = None
        self._in_open = 0
        self._each = 1

    def add(self, point: P) -> None:
        """Take in the next point."""
        self._open = point if self._open is None else self._merge(self._open, point)
        self._in_open += 1
        if self._in_open < self._each:
            return
        self._full.append(self._open)
        self._open, self._in_open = None, 0
        if len(self._full) == self._most:
            pairs = zip(self._full[::2], self._full[1::2], strict=True)
            self._full = [self._merge(earlier, later) for earlier, later in pairs]
            self._each *= 2

    def points(self) -> list[P]:
        """Return the points; the last one may be merged from fewer than the others."""
        return self._full if self._open is None else [*self._full, self._open]


def the_later(_earlier: P, later: P) -> P:
    """Merge two points by keeping the later one."""
    return later
