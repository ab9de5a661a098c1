"""Which version the next round starts from: the newest one, unless the worker has to wait for a newer one."""

import math
import threading
from dataclasses import dataclass, field

from fluffle.broker import Broker
from fluffle.logs import get_logger
from fluffle.model_stream import newest_version
from fluffle.record import ModelVersion, Rank
from fluffle.topology import Topology
from fluffle.update import UpdateId
from fluffle_worker.round import TrainedUpdate

log = get_logger(__name__)

# How long a worker that is ahead waits for a newer version: at least, in multiples of its round, and at most.
FIRST_PATIENCE_S, ROUNDS_OF_PATIENCE, LONGEST_PATIENCE_S = 5.0, 3.0, 600.0
# How many times its own part of one version's updates a worker may have under way.
TIMES_OWN_PART = 2.0


@dataclass(eq=False)
class BaseVersion:
    """Reads versions of the model, and knows which updates of this run they do not contain yet.

    `last` is the version that the last round started from, None before the first round. `patience_s` is how
    long a worker that is ahead waits for a newer version.
    """

    worker: str
    topology: Topology
    stop: threading.Event
    first_patience_s: float
    last: ModelVersion | None = None
    in_flight: list[UpdateId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience_s = self.first_patience_s

    def newest(self, broker: Broker, *, has_unsent: bool) -> ModelVersion | None:
        """Return the newest version; None when asked to stop.

        In synchronous rounds, wait for a version that has not been trained from, unless an update is unsent.
        A worker that is ahead waits too, but not for ever: when the other workers have left, a version may
        need more of its updates. Versions of a term lower than the last one's are passed over, since they
        come from an aggregator that has lost the lead.
        """
        last = self.last
        is_synchronous = bool(last and last.plan.one_update_per_version and not has_unsent)
        is_ahead = not is_synchronous and self.is_ahead()
        waits = is_synchronous or is_ahead
        newest = newest_version(
            broker,
            self.topology,
            stop=self.stop,
            newer_than=Rank(last.term, last.version if waits else -1) if last else None,
            timeout_s=self.patience_s if is_ahead else math.inf,
        )
        if newest is None:
            if self.stop.is_set():
                return None
            log.info(
                "no newer version arrived: training again from the same one",
                waited_s=round(self.patience_s),
            )
            self.patience_s = min(LONGEST_PATIENCE_S, 2 * self.patience_s)
            return last
        self.in_flight = [one for one in self.in_flight if not newest.applied.is_past(one)]
        if last and newest.rank > last.rank:
            self.patience_s = self.first_patience_s
        return newest

    def is_ahead(self) -> bool:
        """Tell whether one more update from the last version would only repeat those in flight."""
        return self.last is not None and len(self.in_flight) >= most_in_flight(self.last, self.worker)

    def note_round(self, base: ModelVersion, trained: TrainedUpdate | None) -> None:
        """Remember the version that a round started from, and its update unless it must not be sent."""
        self.last = base
        if trained:
            self.in_flight.append(trained.update.id)
            self.patience_s = max(self.patience_s, ROUNDS_OF_PATIENCE * trained.update.train_s)

    def start_over(self) -> None:
        """Forget the updates in flight, which no version of another federation can contain."""
        self.in_flight.clear()


def most_in_flight(newest: ModelVersion, worker: str) -> int:
    """Return how many updates a worker may have sent that the newest version does not contain.

    Without an aggregator, workers that keep training from one version repeat themselves, and the sum of their
    updates goes much too far. docs/decisions/0016 has the measurements.

    It is twice the worker's usual part of a version, and one more, so that a version always fills: 2 K / n +
    1 with K updates in a version and n equal workers, and K + 1 for a single worker.
    """
    per_version = newest.plan.updates_per_version
    given = {name: one.updates for name, one in newest.contributors.items() if one.updates}
    if len(given) < 2:
        return per_version + 1
    share = max(given.get(worker, 0) / sum(given.values()), 1 / len(given))
    return min(per_version, math.ceil(TIMES_OWN_PART * share * per_version)) + 1
