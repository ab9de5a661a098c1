"""Finds updates that never arrived although a later one of their run did. Pure.

A worker numbers its updates and sends each one when the one before is confirmed, and RabbitMQ delivers them
in that order. So a missing number was refused, dropped by the worker (which says so in its own log), or taken
from the queue by a policy or a purge, which nobody else would notice.
"""

from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate

# Beyond this many, the oldest refused updates are reported as missing if a later one of their run comes.
MOST_REMEMBERED = 10_000


class MissingUpdates:
    """Finds missing numbers, except those of updates that this leader has refused."""

    def __init__(self) -> None:
        self._refused: dict[UpdateId, None] = {}

    def note_refused(self, update: UpdateId) -> None:
        """Remember that an update came, and was refused."""
        self._refused[update] = None
        if len(self._refused) > MOST_REMEMBERED:
            del self._refused[next(iter(self._refused))]

    def before(self, update: WeightUpdate, applied: AppliedUpdates) -> list[range]:
        """Return the missing numbers between the highest applied one of its run and this one, as ranges.

        The numbers of a worker's new run begin with 1, or go on from those of its run before.
        """
        worker, run, sequence = update.id.worker, update.id.run, update.id.sequence
        own = applied.runs.get((worker, run))
        if own:
            last = own.highest
        else:
            others = (log.highest for (name, _), log in applied.runs.items() if name == worker)
            last = max((each for each in others if each < sequence), default=0)
        found = range(last + 1, sequence)
        if not found:
            return []
        came = {one.sequence for one in self._refused if one.worker == worker and (one.run == run or not own)}
        came |= set(update.absorbs)
        gaps = []
        start = found.start
        for sequence in [*sorted(came.intersection(found)), found.stop]:
            if start < sequence:
                gaps.append(range(start, sequence))
            start = sequence + 1
        return gaps


def in_words(ranges: list[range]) -> str:
    """Return ranges as text, such as "1-4, 7"."""
    return ", ".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else str(each[0]) for each in ranges)
