"""Numbers and names as people read them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

MOST_NAMED: Final = 3


def number(value: float) -> str:
    """Return a metric with four digits; NaN and infinity stay what they are."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{value:.4f}" if not value or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a share as a percentage; what is above 0 is never said to be 0."""
    return f"{100 * share:.0f} %" if share >= 0.0095 or not share else f"{100 * share:.2g} %"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def count(number_of: int, one: str, more: str = "") -> str:
    """Return a count with its noun: "1 evaluation", "20 evaluations"."""
    return f"{number_of:,} {one if number_of == 1 else more or one + 's'}"


def in_a_row(names: Sequence[str]) -> str:
    """Name the first few, and say how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
