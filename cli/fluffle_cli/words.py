"""Numbers, times, shares and names as people read them. Pure."""

import math
from collections.abc import Sequence
from typing import Final

MOST_NAMED: Final = 3
BLOCKS: Final = "▁▂▃▄▅▆▇█"
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
SPARKLINE_LENGTH: Final = 40
BAR_LENGTH: Final = 10


def number(value: float) -> str:
    """Return a metric with four digits; NaN and infinity stay what they are."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"{value:.4f}" if not value or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a share as a percentage; what is above 0 is never shown as 0."""
    return f"{100 * share:.0f} %" if share >= 0.0095 or not share else f"{100 * share:.2g} %"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def count(number_of: int, one: str, more: str = "") -> str:
    """Return a count with its noun: "1 evaluation", "20 evaluations"."""
    return f"{number_of:,} {one if number_of == 1 else more or one + 's'}"


def in_a_row(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Name the first few, and say how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def sparkline(values: Sequence[float]) -> str:
    """Draw the last values as a row of blocks, the lowest as the lowest block, and a "?" if not finite."""
    shown = values[-SPARKLINE_LENGTH:]
    finite = [value for value in shown if math.isfinite(value)]
    # Halved, since the range from one huge number to another would be infinite.
    low, high = min(finite, default=0.0) / 2, max(finite, default=0.0) / 2
    return "".join(
        BLOCKS[round((value / 2 - low) / (high - low) * 7) if high > low else 0]
        if math.isfinite(value)
        else "?"
        for value in shown
    )


def bar(share: float) -> str:
    """Draw a share of 0 to 1 as a bar with its percentage."""
    full, eighths = divmod(round(share * BAR_LENGTH * 8), 8)
    blocks = EIGHTHS[8] * full + (EIGHTHS[eighths] if eighths else "")
    return f"{blocks:{BAR_LENGTH}} {share:4.0%}"
