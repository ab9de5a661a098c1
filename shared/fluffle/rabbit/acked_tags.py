"""Which deliveries of a channel are done with, so that one ack replaces many. Pure."""

from collections.abc import Iterable


class AckedTags:
    """Which deliveries of a channel are acked: all up to one tag, and some above it.

    The tags of a channel are 1, 2, 3, ... One ack for "all up to n" replaces one for each, when every tag
    below n is acked or is one of these.
    """

    def __init__(self) -> None:
        self._all_up_to = 0
        self._above: set[int] = set()

    def adding(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the acks to send for more tags: each a tag, and whether it also acks all tags below it."""
        more, before = set(tags), self._all_up_to
        self._above |= more
        while self._all_up_to + 1 in self._above:
            self._all_up_to += 1
            self._above.remove(self._all_up_to)
        # RabbitMQ closes the channel for a tag that was acked before: the last of these is a new one.
        run = sorted(tag for tag in more if before < tag <= self._all_up_to)
        alone = [(tag, False) for tag in sorted(more.difference(run))]
        return [(run[-1], len(run) > 1), *alone] if run else alone
