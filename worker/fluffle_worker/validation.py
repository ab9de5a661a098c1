"""Evaluations of received versions on the data that this site holds out, and their way to the aggregator."""

import time
from dataclasses import dataclass, replace

from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.errors import QueueFull
from fluffle.event_sink import EventSink
from fluffle.events import Validated
from fluffle.logs import get_logger
from fluffle.model import Weights
from fluffle.record import ModelVersion, Rank, not_finite
from fluffle.sites import SiteEvaluation
from fluffle.topology import Topology
from fluffle.wire import encode_site_evaluation
from fluffle_worker.round import TrainedUpdate, weights_after
from fluffle_worker.site_state import SiteState

log = get_logger(__name__)

# Where the plan does not say how often, evaluations take at most one part in so many of a worker's time.
SHARE_OF_TIME = 10


@dataclass(eq=False)
class SiteValidation:
    """Evaluates versions at one site when it is time to, and reports them.

    A report that no broker has taken waits in memory, and only the newest one: it is measured again after a
    restart, under the same id. With secure aggregation nothing is reported: what one site measures would
    tell more of its data than its masked updates, so that each of those carries what is `newest`. Nor is it
    with differential privacy, whose noise does not cover it.
    """

    worker: str
    task: CheckedTask
    site: SiteState
    topology: Topology
    event_sink: EventSink

    def __post_init__(self) -> None:
        """Begin with the first version that is received."""
        self.is_needed = True
        self._waiting: SiteEvaluation | None = None
        self.newest: SiteEvaluation | None = None
        # The weights after the round that began with the newest one.
        self._after: Weights | None = None
        self._rounds = 0
        self._next_at = 0.0
        self._has_warned = self._has_said_private = False

    def start_over(self) -> None:
        """Forget what was measured of another federation."""
        self._waiting = self.newest = self._after = None
        self._next_at = 0.0

    def evaluate_when_due(self, version: ModelVersion) -> None:
        """Evaluate a version that a round is about to start from, if the plan, or the time, says so."""
        every, now = version.plan.evaluate_every, time.monotonic()
        is_due = now >= self._next_at if every is None else self._rounds % every == 0
        self._rounds += 1
        if is_due:
            self.evaluate(version)

    def evaluate(self, version: ModelVersion) -> None:
        """Evaluate a version, unless this site holds out nothing, or knows the version already."""
        known = self.newest
        if not self.is_needed or (known and version.rank <= Rank(known.term, known.version)):
            return
        began = time.monotonic()
        found = self.task.validate({**version.weights_to_evaluate, **self.site.local})
        evaluate_s = time.monotonic() - began
        self.is_needed = found is not None
        if found is None:
            self._warn_of_nothing(version)
            return
        # The first one takes longer, since the framework compiles it.
        self._pause(evaluate_s if known else 0.0)
        examples, metrics = found
        self.newest = SiteEvaluation(
            version.federation, self.worker, version.term, version.version, examples, metrics, evaluate_s
        )
        values = {each.name: each.value for each in metrics if each.count}
        if version.plan.is_private:
            self._say_private(version)
        else:
            self._waiting = self.newest
            self.event_sink(Validated(version.version, evaluate_s, examples, values))
        shown = {name: round(value, 4) for name, value in values.items()}
        log.info("evaluated here", version=version.version, examples=examples, metrics=shown)
        if bad := not_finite(values):
            log.warning("metrics are not finite at this site", version=version.version, metrics=bad)

    def note_round(self, version: ModelVersion, trained: TrainedUpdate) -> None:
        """Keep the weights after a round, if what it began from was evaluated here.

        Where versions are averaged, that was the average, and the round began from the version itself.
        """
        newest = self.newest
        if (
            version.average_decay == 0.0
            and newest
            and not newest.tuned
            and Rank(newest.term, newest.version) == version.rank
        ):
            self._after = weights_after(version.layout, version.flat, trained)

    def evaluate_round(self, version: ModelVersion) -> None:
        """Evaluate what the last round has made of its version: the model that suits this site alone.

        `version` is the newest one, whose plan says whether that is reported.
        """
        if self._after is None or self.newest is None:
            return
        began = time.monotonic()
        found = self.task.validate(self._after)
        self._after = None
        self._pause(time.monotonic() - began)
        if found:
            self.newest = replace(self.newest, tuned=found[1])
            if not version.plan.is_private:
                self._waiting = self.newest

    def _pause(self, took_s: float) -> None:
        """Let the next evaluation wait until this one has taken a tenth of the time at most."""
        self._next_at = max(time.monotonic(), self._next_at) + (SHARE_OF_TIME - 1) * took_s

    def send(self, broker: Broker, version: ModelVersion) -> None:
        """Report what no broker has taken yet, unless nothing is told of a single site."""
        if version.plan.is_private:
            self._waiting = None
        if self._waiting is None:
            return
        found = self._waiting
        headers = {
            "kind": "site-evaluation",
            "id": found.id,
            "worker": self.worker,
            "at": f"{time.time():.3f}",
        }
        try:
            broker.publish(self.topology.updates_in.name, "", encode_site_evaluation(found), headers)
        except QueueFull as error:
            # It is sent with the next update, unless a newer one takes its place.
            log.warning("an evaluation was not accepted", version=found.version, because=str(error))
            return
        self._waiting = None

    def _say_private(self, version: ModelVersion) -> None:
        if self._has_said_private:
            return
        self._has_said_private = True
        log.info(
            "what is measured at this site travels masked, in its updates: the aggregator learns what it "
            "comes to over all sites of a sum"
            if version.plan.secure
            else "what is measured at this site stays here: differential privacy covers updates alone"
        )

    def _warn_of_nothing(self, version: ModelVersion) -> None:
        if version.plan.sites_decide and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the goal is measured at the sites, and this one holds out no data",
                hint="start the worker with --local-validation 0.2, or give its task validation_data",
            )
