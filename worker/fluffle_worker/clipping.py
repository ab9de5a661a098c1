"""Warnings of a clip that does not suit the updates: one that changes them much, or wastes precision."""

import math
from dataclasses import dataclass

import numpy as np

from fluffle.logs import get_logger
from fluffle.model import Layout, Vector, some_of
from fluffle.secure.limbs import LARGEST
from fluffle.secure.plan import SecurePlan
from fluffle.vector_math import largest_magnitude, matching_blocks, norm
from fluffle_worker.round import TrainedUpdate

log = get_logger(__name__)

# More clipped elements than this are too many.
MOST_CLIPPED = 0.01
# Where an update is smaller than the clip by more than this, six of its bits are not used.
WASTED = 64
# An update whose largest element falls into fewer levels than this is not sent.
FEWEST_LEVELS = 32


@dataclass(eq=False)
class ClippingWarnings:
    """Counts the updates that a clip has changed much, and warns at powers of two of that number."""

    clipped: int = 0
    large_statistics: int = 0
    _has_warned_of_waste: bool = False

    def note(self, trained: TrainedUpdate, layout: Layout, plan: SecurePlan) -> float:
        """Take note of an update, and return the number that the clip is for.

        That is its norm, or the largest magnitude of its elements, if each of them is clipped by itself.
        """
        size = norm(trained.vector) if plan.by_norm else largest_magnitude(trained.vector)
        if math.isfinite(size):
            self._note_clip(trained, plan, size)
        self._note_statistics(trained, layout)
        return size

    def _note_clip(self, trained: TrainedUpdate, plan: SecurePlan, size: float) -> None:
        what = "norm" if plan.by_norm else "largest_magnitude"
        share = 0.0
        if size > plan.clip:
            share = 1.0 if plan.by_norm else share_beyond(trained.vector, plan.clip)
        if share > MOST_CLIPPED:
            self.clipped += 1
            if self.clipped.bit_count() == 1:
                log.warning(
                    "the clip changes updates of this worker much: --secure-clip at the aggregator sets it",
                    update=str(trained.update.id),
                    clip=plan.clip,
                    updates=self.clipped,
                    **{what: float(f"{size:.4g}")},
                    **({} if plan.by_norm else {"clipped_share": round(share, 4)}),
                )
        elif 0 < size < plan.clip / WASTED and not self._has_warned_of_waste:
            self._has_warned_of_waste = True
            log.warning(
                "an update is much smaller than the clip, which wastes precision: a smaller --secure-clip at "
                "the aggregator would do",
                update=str(trained.update.id),
                clip=plan.clip,
                **{what: float(f"{size:.4g}")},
            )

    def _note_statistics(self, trained: TrainedUpdate, layout: Layout) -> None:
        statistics = trained.update.statistics
        if not statistics.size or largest_magnitude(statistics) <= LARGEST:
            return
        self.large_statistics += 1
        if self.large_statistics.bit_count() == 1:
            log.warning(
                "statistics are too large for secure aggregation, and are clipped",
                tensors=some_of(statistics_beyond(layout, statistics, LARGEST)),
                most=LARGEST,
                update=str(trained.update.id),
                updates=self.large_statistics,
            )


def few_levels(vector: Vector, size: float, plan: SecurePlan) -> int:
    """Return into how many levels the largest element falls, if these are too few to hide among; else 0.

    `size` is what the clip is for, as `ClippingWarnings.note` returns it.

    With weights that differ, sums of numbers as small can be taken apart: 64, 45 and 24 times three numbers
    from -3 to 3 have one solution. No honest aggregator needs a clip as wide.
    """
    largest, scale = size, plan.fixed_point.levels / plan.clip
    if plan.by_norm:
        largest = largest_magnitude(vector)
        scale *= min(1.0, plan.clip / max(size, plan.clip))
    found = round(min(plan.fixed_point.levels, largest * scale))
    return found if 0 < found < FEWEST_LEVELS else 0


def is_finite(size: float, trained: TrainedUpdate) -> bool:
    """Tell whether an update's delta is finite by this size of it; if not, say that it is dropped."""
    if not math.isfinite(size):
        log.warning("an update is dropped: its delta is not finite", update=str(trained.update.id))
    return math.isfinite(size)


def share_beyond(vector: Vector, clip: float) -> float:
    """Return which part of the elements is larger than a clip, by their magnitude."""
    count = sum(int(np.count_nonzero(np.abs(block) > clip)) for (block,) in matching_blocks(vector))
    return count / vector.size


def statistics_beyond(layout: Layout, statistics: Vector, most: float) -> list[str]:
    """Return the names of the statistics of which an element is larger than `most`, by its magnitude."""
    names, start = [], 0
    for spec in layout.tensors:
        if spec.group == "statistic" and spec.is_float:
            if largest_magnitude(statistics[start : start + spec.size]) > most:
                names.append(spec.name)
            start += spec.size
    return names
