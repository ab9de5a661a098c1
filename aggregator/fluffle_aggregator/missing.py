"""Which updates of a run never came, though a later one did. Pure.

A worker numbers its updates, and sends them in that order, each when the one before is confirmed. RabbitMQ
delivers them in that order. So a number that is passed over was refused, left out by the worker (which says
so in its own log), or taken from the queue by a policy or a purge, of which nobody else could tell.
"""

from __future__ import annotations

from fluffle.update import AppliedUpdates, RunLog, UpdateId, WeightUpdate

# Beyond so many, the oldest refused ones count as missing if a later update of their run comes.
MOST_REMEMBERED = 10_000


class MissingUpdates:
    """Finds numbers that are passed over, but for those of updates that this leader has refused."""

    def __init__(self) -> None:
        self._refused: dict[UpdateId, None] = {}

    def note_refused(self, update: UpdateId) -> None:
        """Remember that an update came, and was refused."""
        self._refused[update] = None
        if len(self._refused) > MOST_REMEMBERED:
            del self._refused[next(iter(self._refused))]

    def before(self, update: WeightUpdate, applied: AppliedUpdates) -> list[range]:
        """Return the numbers between the highest one of its run that is applied and this one's, in ranges."""
        known = applied.runs.get((update.id.worker, update.id.run), RunLog())
        found = range(known.highest + 1, update.id.sequence)
        if not found:
            return []
        came = {
            one.sequence for one in self._refused if one.sequence in found and _are_of_one_run(one, update.id)
        }
        gaps: list[range] = []
        start = found.start
        for sequence in sorted(came | {absorbed for absorbed in update.absorbs if absorbed in found}):
            if start < sequence:
                gaps.append(range(start, sequence))
            start = sequence + 1
        return [*gaps, range(start, found.stop)] if start < found.stop else gaps


def in_words(ranges: list[range]) -> str:
    """Return numbers as people write them: 1-4, 7."""
    return ", ".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else str(each[0]) for each in ranges)


def _are_of_one_run(one: UpdateId, other: UpdateId) -> bool:
    return (one.worker, one.run) == (other.worker, other.run)
