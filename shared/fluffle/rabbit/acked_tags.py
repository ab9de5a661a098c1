"""Many acks in one, where that tells RabbitMQ the same as one for each."""

from __future__ import annotations

from collections.abc import Iterable


class AckedTags:
    """Which deliveries of a channel are acked: all up to one, and some beyond it.

    The tags of a channel count up by one from 1. "All up to n" is therefore as good as one ack each, if none
    below n is left that somebody holds.
    """

    def __init__(self) -> None:
        self._all_up_to = 0
        self._beyond: set[int] = set()

    def adding(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the acks to send for more tags: each a tag, and whether it stands for all before it too."""
        more, before = set(tags), self._all_up_to
        self._beyond |= more
        while self._all_up_to + 1 in self._beyond:
            self._all_up_to += 1
            self._beyond.remove(self._all_up_to)
        # RabbitMQ closes the channel for a tag that it has let go of: the last of these it still holds.
        run = sorted(tag for tag in more if before < tag <= self._all_up_to)
        alone = [(tag, False) for tag in sorted(more.difference(run))]
        return [(run[-1], len(run) > 1), *alone] if run else alone
