"""A look now and then whether the exchanges and queues of a federation are still there."""

import time
from collections.abc import Callable

from fluffle.broker import Broker
from fluffle.errors import TopologyMissing
from fluffle.topology import Topology

# Of what is deleted, RabbitMQ tells only a queue's own consumers. Without a look now and then, a leader whose
# stream was deleted would wait for ever for workers that cannot read its versions, and one whose head was
# deleted would commit to the stream alone.
LOOK_EVERY_S = 10.0
# A leader that rebuilds an unreadable stream takes it away for a moment.
LOOK_AGAIN_AFTER_S = 2.0


class TopologyWatch:
    """Sees, for the life of one connection, whether all exchanges and queues are still there."""

    def __init__(
        self, broker: Broker, topology: Topology, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin after they were declared."""
        self._broker = broker
        self._topology = topology
        self._clock = clock
        self._due_at = clock() + LOOK_EVERY_S
        self._missed: str = ""

    def look_when_due(self) -> None:
        """Look if it is time to. Raises TopologyMissing when the same thing is gone twice in a row."""
        if self._clock() < self._due_at:
            return
        try:
            self._broker.check(self._topology)
        except TopologyMissing as error:
            if str(error) == self._missed:
                raise TopologyMissing(
                    f"somebody deleted a part of the federation, or a policy with expires did: {error}. An "
                    "aggregator that starts makes it anew; of the head queue, `fluffle model restore` does"
                ) from error
            self._missed = str(error)
            self._due_at = self._clock() + LOOK_AGAIN_AFTER_S
            return
        self._missed = ""
        self._due_at = self._clock() + LOOK_EVERY_S
