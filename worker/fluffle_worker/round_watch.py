"""Sees while a round is trained that its update would be refused: its base is too old, or all is over.

It reads the newest record without weights now and then, on a thread of its own. So training never waits for
the network, and a federation of many versions a second costs a worker no more than a slow one.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, FluffleError
from fluffle.logs import get_logger
from fluffle.model_stream import record_at_hand
from fluffle.record import ModelVersion
from fluffle.topology import Topology

log = get_logger(__name__)

# From one look to the next: an eighth of the time that the round has taken so far, within these bounds. So at
# most an eighth of a round's time is lost after it has become useless.
SHORTEST_PAUSE_S, SHARE_OF_ROUND, LONGEST_PAUSE_S = 0.25, 1 / 8, 10.0
# All workers together look at most so often: each look opens a channel.
LOOKS_PER_S = 400


class RoundAborted(BaseException):
    """Interrupts a round of training whose update would be refused; the worker begins another one.

    Not an Exception, so that a task that catches every Exception does not catch this one.
    """


@dataclass(eq=False)
class RoundWatch:
    """What is known of the newest version while a round is trained from `base`.

    `newest` is the newest record without weights that was seen, None before a first look.
    """

    base: ModelVersion
    newest: ModelVersion | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def staleness(self) -> int:
        """How many versions late the update would be, as far as is known; 0 after a federation's reset."""
        if self.newest is None or self.newest.term < self.base.term:
            return 0
        return max(0, self.newest.version - self.base.version)

    @property
    def is_over(self) -> bool:
        """Whether the federation takes no more updates, as far as is known."""
        newest = self.newest
        return newest is not None and newest.rank > self.base.rank and newest.is_over

    def require_in_time(self) -> None:
        """Raise RoundAborted when the aggregator would refuse the update: too late, or after the end."""
        limit = self.newest.plan.max_staleness if self.newest else None
        if self.is_over or (limit is not None and self.staleness > limit):
            raise RoundAborted


@dataclass(eq=False)
class RoundWatcher:
    """Watches the rounds of a worker, one after the other."""

    topology: Topology
    _said: str = ""

    @contextmanager
    def watching(
        self, broker: Broker | None, base: ModelVersion, *, until_the_end: bool = False
    ) -> Iterator[RoundWatch]:
        """Watch a round that is trained from `base` in this block.

        Without a broker, or where updates may be as late as they like, nobody looks, unless this worker is
        to see the end at once.
        """
        watch = RoundWatch(base)
        if broker and (until_the_end or base.plan.max_staleness is not None):
            # The fields of this thread's log lines are those of the other as well.
            run = partial(copy_context().run, self._look_again_and_again, broker, watch)
            threading.Thread(target=run, name="round-watch", daemon=True).start()
        try:
            yield watch
        finally:
            # Not joined: a look that RabbitMQ does not answer would hold up the update.
            watch.ended.set()

    def _look_again_and_again(self, broker: Broker, watch: RoundWatch) -> None:
        """Read the newest record now and then, until the round has ended."""
        shortest_s = max(SHORTEST_PAUSE_S, len(watch.base.contributors) / LOOKS_PER_S)
        began = time.monotonic()
        pause_s = shortest_s
        while not watch.ended.wait(pause_s):
            try:
                watch.newest = record_at_hand(broker, self.topology) or watch.newest
            except ConnectionLost:
                return  # the worker learns of it when it sends the update
            except FluffleError as error:
                # Once, and not in every round.
                if str(error) != self._said:
                    self._said = str(error)
                    log.warning("rounds that become too stale are trained to their end", because=self._said)
                return
            round_s = time.monotonic() - began
            pause_s = max(shortest_s, min(LONGEST_PAUSE_S, SHARE_OF_ROUND * round_s))
