"""Trains the rounds of one site: seeds, progress, the site's own state, and waiting after unusable rounds."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from fluffle.checked_task import CheckedTask
from fluffle.event_sink import EventSink
from fluffle.events import Progressed, Started, Trained
from fluffle.logs import get_logger
from fluffle.record import ModelVersion
from fluffle.stopping import StopRequested
from fluffle.task import Progress
from fluffle.update import UpdateId
from fluffle_worker.round import TrainedUpdate, minibatch_seed, train_round
from fluffle_worker.site_state import SiteState

log = get_logger(__name__)

REPORT_PROGRESS_EVERY_S = 1.0
# The longest wait after a round whose update must not be sent.
LONGEST_WAIT_S = 60.0

ShowRound = Callable[[str], AbstractContextManager[Progress]]


def show_nothing(_title: str) -> nullcontext[Progress]:
    """Show no progress of a round."""
    return nullcontext(lambda _done, _total: None)


@dataclass(eq=False)
class Trainer:
    """Trains one round after the other; `rounds` counts them."""

    task: CheckedTask
    site: SiteState
    seed: int
    delay_s: float
    show_round: ShowRound
    stop: threading.Event
    event_sink: EventSink
    rounds: int = 0
    unusable_in_a_row: int = 0

    def train(self, version: ModelVersion, update_id: UpdateId) -> TrainedUpdate | None:
        """Train one round from a version; None, after a pause, when its update must not be sent."""
        log.debug("round started", update=str(update_id), version=version.version)
        self.event_sink(Started(version.version))
        self.site.start_round(version.plan)
        with self.show_round(f"version {version.version}, round {update_id.sequence}") as show:
            trained = train_round(
                self.task,
                version,
                self.site.local,
                update_id=update_id,
                seed=minibatch_seed(self.seed, update_id.sequence),
                progress=self._progress(show),
                idle=self._idle,
            )
        self.rounds += 1
        update = trained.update
        self.event_sink(Trained(str(update_id), update.train_s, update.loss))
        log.info(
            "round trained",
            update=str(update_id),
            version=version.version,
            seconds=round(update.train_s, 2),
            metrics={name: round(value, 4) for name, value in trained.metrics.items()},
        )
        if trained.unusable:
            self.site.forget_round()
            self._pause_after(trained)
            return None
        self.unusable_in_a_row = 0
        self.site.end_round(version.plan, trained.local)
        return trained

    def _progress(self, show: Progress) -> Progress:
        """Return what a task calls after each minibatch; it ends the round when asked to stop."""
        told_at = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told_at
            if self.stop.is_set():
                raise StopRequested
            show(done, total)
            if time.monotonic() - told_at >= REPORT_PROGRESS_EVERY_S:
                told_at = time.monotonic()
                self.event_sink(Progressed(done, total))

        return progress

    def _idle(self) -> None:
        if self.delay_s:
            log.debug("idling", seconds=self.delay_s)
            self._wait(self.delay_s)

    def _pause_after(self, unusable: TrainedUpdate) -> None:
        """Warn and wait, longer with each round in a row whose update must not be sent."""
        wait_s = min(LONGEST_WAIT_S, 2.0**self.unusable_in_a_row)
        self.unusable_in_a_row += 1
        log.warning(
            "the update of this round is not sent",
            because=unusable.unusable,
            update=str(unusable.update.id),
            metrics=dict(unusable.metrics),
            rounds_in_a_row=self.unusable_in_a_row,
            wait_s=wait_s,
        )
        self._wait(wait_s)

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise StopRequested
