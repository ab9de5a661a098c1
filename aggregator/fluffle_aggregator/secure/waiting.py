"""The deliveries of masked updates that are not acked yet: in a sum, or beside it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fluffle.broker import Delivery
from fluffle.update import WeightUpdate

# RabbitMQ closes a channel that keeps a message unacked for 30 minutes.
RELEASE_AFTER_S: Final = 1200.0
# The start of a message holds the id of its update.
START_BYTES: Final = 512
MOST_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Kept:
    """When a delivery came, and by what its message is recognised when it comes again."""

    since: float
    start: tuple[str | None, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class _Beside:
    """An update that waits beside the buffer."""

    delivery: Delivery
    update: WeightUpdate


class Waiting:
    """What a leader keeps until a version contains it.

    `held` are the tags of the updates in the buffer, or in the closed sum. Others are for `later`, since
    their workers have given their share of this buffer; others again came while a sum was awaited, and are
    set `aside`. There is room for `most_later` that are for later, and for `most_of_one` of one worker.
    """

    def __init__(self, most_later: int, most_of_one: int) -> None:
        """Begin with nothing."""
        self.held: list[int] = []
        self.most_later = most_later
        self._most_of_one = most_of_one
        self._later: list[_Beside] = []
        self._aside: list[_Beside] = []
        self._kept: dict[int, _Kept] = {}
        # The messages that this leader has given back, and survived.
        self._returned: dict[tuple[str | None, bytes], None] = {}

    def __len__(self) -> int:
        return len(self._tags)

    @property
    def _tags(self) -> list[int]:
        return sorted([*self.held, *(each.delivery.tag for each in (*self._later, *self._aside))])

    def hold(self, delivery: Delivery, now: float) -> None:
        """Keep an update that is in the buffer, or in the closed sum."""
        self._keep(delivery, now)
        self.held.append(delivery.tag)

    def set_aside(self, delivery: Delivery, update: WeightUpdate, now: float) -> None:
        """Keep an update until no sum is awaited."""
        self._keep(delivery, now)
        self._aside.append(_Beside(delivery, update))

    def keep_for_later(self, delivery: Delivery, update: WeightUpdate, now: float) -> bool:
        """Keep an update for the next buffer; return False if too many wait for that already."""
        of_one = sum(each.update.id.worker == update.id.worker for each in self._later)
        if len(self._later) >= self.most_later or of_one >= self._most_of_one:
            return False
        self._keep(delivery, now)
        self._later.append(_Beside(delivery, update))
        return True

    def _keep(self, delivery: Delivery, now: float) -> None:
        if delivery.tag not in self._kept:
            self._kept[delivery.tag] = _Kept(now, _start_of(delivery))

    def begin_next_buffer(self) -> None:
        """Let what was for later be the first of the next buffer."""
        self._aside, self._later = [*self._later, *self._aside], []

    def next_aside(self) -> Delivery | None:
        """Take out the first update that was set aside."""
        return self._aside.pop(0).delivery if self._aside else None

    def next_for_later(self, has_room: Callable[[WeightUpdate], bool]) -> Delivery | None:
        """Take out the first update for later that has room in this buffer after all."""
        for at, each in enumerate(self._later):
            if has_room(each.update):
                return self._later.pop(at).delivery
        return None

    def take_held(self) -> list[int]:
        """Return the tags of the updates in the sum, which a version contains now."""
        held, self.held = self.held, []
        self._forget_others()
        return held

    def is_overdue(self, now: float) -> bool:
        """Return whether an update must go back to RabbitMQ."""
        return bool(self._overdue(now))

    def release_overdue(self, now: float) -> tuple[int, ...]:
        """Return the tags of those that must go back to RabbitMQ, and keep them no more."""
        return self._release(self._overdue(now))

    def _overdue(self, now: float) -> list[int]:
        return [tag for tag in self._tags if now - self._kept[tag].since >= RELEASE_AFTER_S]

    def release_all(self) -> tuple[int, ...]:
        """Return the tags of all, and keep them no more."""
        return self._release(self._tags)

    def _release(self, tags: list[int]) -> tuple[int, ...]:
        gone = set(tags)
        for tag in tags:
            self._returned[self._kept[tag].start] = None
        while len(self._returned) > MOST_REMEMBERED:
            del self._returned[next(iter(self._returned))]
        self.held = [tag for tag in self.held if tag not in gone]
        self._later = [each for each in self._later if each.delivery.tag not in gone]
        self._aside = [each for each in self._aside if each.delivery.tag not in gone]
        self._forget_others()
        return tuple(tags)

    def _forget_others(self) -> None:
        self._kept = {tag: self._kept[tag] for tag in self._tags}

    def has_returned(self, delivery: Delivery) -> bool:
        """Return whether this leader had a message before, and gave it back."""
        return _start_of(delivery) in self._returned


def _start_of(delivery: Delivery) -> tuple[str | None, bytes]:
    return delivery.user, bytes(delivery.body[:START_BYTES])
