"""How late updates were, and what weight each was given for it. Pure."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

# The least staleness in each bucket.
BUCKETS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)


class StalenessHistogram:
    """Counts of updates by their staleness, in versions, and the mean of their weights."""

    def __init__(self) -> None:
        self._counts = [0] * len(BUCKETS)
        self._weights = [0.0] * len(BUCKETS)

    def add(self, staleness: int, weight: float) -> None:
        """Take in an update."""
        bucket = bisect_right(BUCKETS, max(0, staleness)) - 1
        self._counts[bucket] += 1
        self._weights[bucket] += weight

    def rows(self) -> list[tuple[str, int, float | None]]:
        """Return the staleness in words, the count and the mean weight, up to the last that has any."""
        last = max((place for place, count in enumerate(self._counts) if count), default=-1)
        return [
            (_words(place), count, self._weights[place] / count if count else None)
            for place, count in enumerate(self._counts[: last + 1])
        ]


def _words(place: int) -> str:
    low = BUCKETS[place]
    if place + 1 == len(BUCKETS):
        return f"{low} or more"
    high = BUCKETS[place + 1] - 1
    return str(low) if low == high else f"{low} to {high}"
