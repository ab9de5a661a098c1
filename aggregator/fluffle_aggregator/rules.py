"""How the updates of a buffer become one delta: their mean, or a rule that outliers cannot pull away. Pure.

Take `mean` among sites that are trusted. `trimmed-mean` and `median` bound what a few broken or hostile sites
can do to each element of the model, and need at least three updates to a buffer. They count each update alike
whatever number of examples it claims, since the sender itself says that number; a late update is still
discounted. They hold every vector of the buffer until the step, compressed as it came. Where workers send a
part of the model alone, an element that fewer than three updates of a full buffer have does not move.

Source of both: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates" (2018, arXiv 1803.01498), definitions 1 and 2.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fluffle_aggregator.accumulators import Accumulator, RunningSum, Stack
from fluffle_aggregator.choices import Choice, parse_choice

Rows = NDArray[np.float64]
MEAN = "mean"
# A product such as 0.1 * 30 may lie a little above the whole number that is meant.
ROUNDING = 1e-9


def trimmed_mean(rows: Rows, *, share: float = 0.2) -> Rows:
    """Drop the `share` largest and the `share` smallest values of each element, and average the rest.

    `rows` is float64 [updates, elements] and is overwritten; the result is float64 [elements]. The number to
    drop is rounded up, and at least one value, or two of an even number of updates, are always kept.
    """
    count = len(rows)
    dropped = min(math.ceil(share * count - ROUNDING), (count - 1) // 2)
    rows.sort(axis=0)
    return np.asarray(rows[dropped : count - dropped].mean(axis=0))


def median(rows: Rows) -> Rows:
    """Return the median of each element; the mean of the middle two for an even number of updates."""
    return np.asarray(np.median(rows, axis=0, overwrite_input=True))


def _mean(_rows: Rows) -> Rows:
    raise AssertionError("the mean is a running sum, which holds no rows")


RULES: Mapping[str, Callable[..., Rows]] = {MEAN: _mean, "trimmed-mean": trimmed_mean, "median": median}


@dataclass(frozen=True, slots=True)
class Rule(Choice):
    """One of the rules with its parameters; as text it is the setting that makes it."""

    @property
    def holds_vectors(self) -> bool:
        """Whether every vector of a buffer is held until the step."""
        return self.name != MEAN

    @property
    def reduce(self) -> Callable[[Rows], Rows] | None:
        """What turns the values of each update into one; None for a mean, which is a running sum."""
        return partial(RULES[self.name], **dict(self.parameters)) if self.holds_vectors else None

    def zero(self) -> Accumulator:
        """Return an accumulator that holds nothing yet."""
        return Stack(self.reduce) if self.reduce else RunningSum()


def parse_rule(text: str) -> Rule:
    """Read "mean", "median", "trimmed-mean" or "trimmed-mean:0.1"; ValueError says what is known."""
    rule = Rule(*parse_choice(text, RULES))
    for parameter, share in rule.parameters:
        if not 0 < share < 0.5:
            raise ValueError(f"must drop a {parameter} above 0 and below 0.5 at each end, not {share:g}")
    return rule


MEAN_RULE = parse_rule(MEAN)
