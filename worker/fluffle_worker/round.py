"""Rounds of local training, each from a version of the model to a weight update. No broker."""

import gc
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from fluffle.checked_task import CheckedTask, TrainedRound
from fluffle.codecs.floats import Float32Vector
from fluffle.errors import OutOfMemory
from fluffle.event_sink import EventSink
from fluffle.events import Aborted, Progressed, Started, Trained
from fluffle.logs import get_logger
from fluffle.model import FlatWeights, Layout, Vector, Weights, some_of
from fluffle.plan import Plan
from fluffle.record import ModelVersion, not_finite
from fluffle.stopping import StopRequested
from fluffle.task import Progress, Site, Task
from fluffle.update import UpdateId, WeightUpdate
from fluffle_worker.pace.pace import Pace
from fluffle_worker.pace.share import ROUNDS_PER_PART, TrainedPart
from fluffle_worker.pace.speed import StepTimes
from fluffle_worker.round_watch import RoundAborted, RoundWatch
from fluffle_worker.site_state import SiteState

log = get_logger(__name__)

REPORT_PROGRESS_EVERY_S = 1.0
# While it idles, how often a worker asks whether its update would be refused.
ASK_EVERY_S = 0.1
# From so many aborted rounds in a row on, the log warns, at powers of two.
WARN_FROM_ABORTED = 4
# The longest wait after a round whose update must not be sent.
LONGEST_WAIT_S = 60.0

ShowRound = Callable[[str], AbstractContextManager[Progress]]


def ignore_progress(done: int, total: int) -> None:
    """Show nothing."""


def show_nothing(_title: str) -> nullcontext[Progress]:
    """Show no progress of a round."""
    return nullcontext(ignore_progress)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedUpdate:
    """The result of a round: an update in float32, a view of its elements, and the new local weights.

    `metrics` are those of the training data. `unusable` says why the update must not be sent; empty when it
    may be.
    """

    update: WeightUpdate
    vector: Vector
    local: Weights
    metrics: Mapping[str, float]
    unusable: str


def minibatch_seed(*numbers: int) -> int:
    """Return the seed of one round's minibatches, such as from the worker's seed and the round's number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def train_round(
    task: CheckedTask,
    version: ModelVersion,
    local: Weights,
    *,
    update_id: UpdateId,
    seed: int,
    progress: Progress,
    idle: Callable[[], None] = lambda: None,
) -> TrainedUpdate:
    """Train from a version as its plan says.

    `local` are the site's local weights, `seed` orders the minibatches, and `idle` is called after training.
    """
    started, steps = time.monotonic(), 1

    def count(done: int, total: int) -> None:
        nonlocal steps
        steps = max(steps, done)
        progress(done, total)

    trained = task.train({**version.weights, **local}, version.plan, seed=seed, progress=count)
    idle()
    return update_of(trained, version, update_id=update_id, steps=steps, started=started)


def update_of(
    trained: TrainedRound, version: ModelVersion, *, update_id: UpdateId, steps: int, started: float
) -> TrainedUpdate:
    """Return what a worker sends after a round of so many local steps from a version.

    The round `started` then, on the monotonic clock.
    """
    part = version.layout.tail(trained.first_tensor)
    flat = part.flatten({spec.name: trained.weights[spec.name] for spec in part.tensors})
    tensors = part.tensors_not_finite(flat.vector, flat.statistics)
    tensors += [
        name
        for name, array in trained.local.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    unusable = "" if trained.examples > 0 else "training saw no examples"
    if tensors:
        bad = not_finite(trained.metrics)
        also = f", and {some_of(bad)} is not finite" if bad else ""
        unusable = (
            f"training gave NaN or infinite values in {some_of(tensors)}{also}: the learning rate may be too "
            "high, or the data may hold missing values"
        )
    if version.plan.sends == "delta":
        # The base is the version that this round started from, never a newer one.
        np.subtract(flat.vector, version.vector[-part.size :], out=flat.vector)
    update = WeightUpdate(
        federation=version.federation,
        id=update_id,
        base_term=version.term,
        base_version=version.version,
        layout_digest=version.layout.digest,
        first_tensor=trained.first_tensor,
        sends=version.plan.sends,
        codec=version.plan.codec,
        vector=Float32Vector.of(flat.vector),
        statistics=flat.statistics,
        integers=flat.integers,
        examples=trained.examples,
        steps=steps,
        loss=trained.metrics.get("loss"),
        train_s=time.monotonic() - started,
    )
    return TrainedUpdate(update, flat.vector, trained.local, trained.metrics, unusable)


def weights_after(layout: Layout, before: FlatWeights, trained: TrainedUpdate) -> Weights:
    """Return all tensors after a round that began with these, the local ones too; `before` stays as it is.

    Of a round that trained the last layers alone, the tensors in front of them are as they were.
    """
    update = trained.update
    vector, statistics = before.vector.copy(), before.statistics.copy()
    tail = vector[vector.size - trained.vector.size :]
    if update.sends == "delta":
        np.add(tail, trained.vector, out=tail)
    else:
        tail[:] = trained.vector
    statistics[statistics.size - update.statistics.size :] = update.statistics
    integers = before.integers[: len(before.integers) - len(update.integers)] + update.integers
    return {**layout.restore(FlatWeights(vector, statistics, integers)), **trained.local}


def train_centrally(
    task: Task, *, epochs: int, plan: Plan, seed: int, max_seconds: float = math.inf
) -> Mapping[str, float]:
    """Train a federation's baseline, one model on the data of all sites; return its held-out metrics.

    Batch size and learning rate are the plan's. The optimizer keeps its state over all epochs, as usual in
    central training. No epoch begins after `max_seconds`. Afterwards the task is prepared for one site that
    has all the data. Raises TaskError when the data is missing.
    """
    checked = CheckedTask(task)
    model = checked.model(seed)
    checked.prepare(Site(index=0, count=1, split="iid"))
    checked.restore_optimizer({})
    one_epoch = replace(plan, local_epochs=1, local_steps=None, proximal_mu=0.0, keep_optimizer=True)
    weights: Weights = {**model.weights, **model.local}
    began = time.monotonic()
    for epoch in range(epochs):
        if time.monotonic() - began > max_seconds:
            break
        trained = checked.train(weights, one_epoch, seed=seed + epoch, progress=ignore_progress)
        weights = {**trained.weights, **trained.local}
    return checked.evaluate(weights)


def wait_after_unusable(rounds_before: int) -> float:
    """Return the seconds to wait after a round whose update must not be sent, after so many in a row."""
    # 2.0**1024 is an error.
    return min(LONGEST_WAIT_S, 2.0 ** min(rounds_before, 10))


@dataclass(eq=False)
class Trainer:
    """Trains the rounds of one site; `rounds` counts those that it ended, and `aborted` the others."""

    task: CheckedTask
    site: SiteState
    seed: int
    delay_s: float
    step_delay_s: float
    pace: Pace
    part: TrainedPart
    show_round: ShowRound
    stop: threading.Event
    event_sink: EventSink
    rounds: int = 0
    aborted: int = 0
    aborted_in_a_row: int = 0
    unusable_in_a_row: int = 0

    def next_part(self) -> Layout:
        """Return the layout of what the next round trains and sends, which its last ones may change."""
        if self.part.is_settled:
            return self.part.layout
        too_slow = self.pace.is_too_slow()
        if self.aborted_in_a_row >= ROUNDS_PER_PART:
            too_slow = "its updates would be refused as too stale"
        if self.part.choose(too_slow=too_slow, memory=self.pace.memory()):
            self._begin_part()
        return self.part.layout

    def _begin_part(self) -> None:
        self.site.forget_round()
        self.pace.forget_speed()

    def train(self, version: ModelVersion, update_id: UpdateId, watch: RoundWatch) -> TrainedUpdate | None:
        """Train one round from a version; if it runs out of memory, again with less to train.

        None when the round was aborted because its update would be refused; and, after a pause, when its
        update must not be sent. Raises OutOfMemory when smaller minibatches do not help.
        """
        while True:
            try:
                return self._train(version, update_id, watch)
            except OutOfMemory as error:
                self.site.forget_round()
                if self.part.step_back(str(error)):
                    self._begin_part()
                else:
                    self.pace.halve(error)
            # What the error held in cycles of references would still take memory.
            gc.collect()

    def _train(self, version: ModelVersion, update_id: UpdateId, watch: RoundWatch) -> TrainedUpdate | None:
        log.debug("round started", update=str(update_id), version=version.version)
        self.event_sink(Started(version.version))
        # One search after the other: larger minibatches are tried with the part that is trained in the end.
        plan = version.plan if self.part.is_settled else replace(version.plan, max_batch_size=None)
        version = replace(version, plan=self.pace.plan_of_round(plan))
        began = time.monotonic()
        times = self.pace.times(began)
        self.site.start_round(version.plan)
        try:
            with self.show_round(f"version {version.version}, round {update_id.sequence}") as show:
                trained = train_round(
                    self.task,
                    version,
                    self.site.local,
                    update_id=update_id,
                    seed=minibatch_seed(self.seed, update_id.sequence),
                    progress=self._progress(show, watch, times),
                    idle=lambda: self._idle(self.delay_s, watch),
                )
                watch.require_in_time()
        except RoundAborted:
            self.pace.note(times)
            self.part.note_round()
            self.site.forget_round()
            self._note_aborted(watch, time.monotonic() - began)
            return None
        self.pace.note(times, time.monotonic())
        self.part.note_round()
        self.rounds += 1
        self.aborted_in_a_row = 0
        update = self.pace.stamped(trained.update)
        trained = replace(trained, update=update)
        # With secure aggregation or differential privacy the loss stays here: it would go to the live page.
        loss = None if version.plan.is_private else update.loss
        self.event_sink(Trained(str(update_id), 0.0 if version.plan.privacy else update.train_s, loss))
        log.info(
            "round trained",
            update=str(update_id),
            version=version.version,
            seconds=round(update.train_s, 2),
            steps=update.steps,
            # 0 is unknown: the data comes in minibatches of its own sizes.
            **({"batch_size": update.batch_size} if update.batch_size else {}),
            metrics={name: round(value, 4) for name, value in trained.metrics.items()},
        )
        if trained.unusable:
            self.site.forget_round()
            self._pause_after(trained)
            return None
        self.unusable_in_a_row = 0
        self.site.end_round(version.plan, trained.local)
        return trained

    def _progress(self, show: Progress, watch: RoundWatch, times: StepTimes) -> Progress:
        """Return what a task calls after each minibatch; it ends a round that is to stop, or too stale."""
        told_at = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told_at
            if self.stop.is_set():
                raise StopRequested
            watch.require_in_time()
            if self.step_delay_s:
                self._idle(self.step_delay_s * max(0, done - times.steps), watch)
            times.note(done, time.monotonic())
            show(done, total)
            if time.monotonic() - told_at >= REPORT_PROGRESS_EVERY_S:
                told_at = time.monotonic()
                # Where nothing is told of a site, others learn which part is done, and not of how many.
                is_private = watch.base.plan.is_private
                told = (100 * done // max(1, total), 100) if is_private else (done, total)
                self.event_sink(Progressed(*told))

        return progress

    def _idle(self, seconds: float, watch: RoundWatch) -> None:
        """Wait for so long, unless the round's update would be refused meanwhile."""
        ends_at = time.monotonic() + seconds
        while (left_s := ends_at - time.monotonic()) > 0:
            watch.require_in_time()
            self._wait(min(left_s, ASK_EVERY_S))

    def _note_aborted(self, watch: RoundWatch, seconds: float) -> None:
        """Count and report a round whose update would be refused; warn where that happens again and again."""
        self.aborted += 1
        self.aborted_in_a_row += 1
        in_a_row, base = self.aborted_in_a_row, watch.base.version
        told_s = 0.0 if watch.base.plan.privacy else seconds
        self.event_sink(Aborted(base, watch.staleness, told_s))
        if watch.is_over:
            log.info("round aborted: the federation takes no more updates", version=base)
            return
        is_often = in_a_row >= WARN_FROM_ABORTED and in_a_row.bit_count() == 1
        hint = "this worker is too slow for the aggregator's max_staleness: raise it, or train fewer steps"
        say = log.warning if is_often else log.info
        say(
            "round aborted: its update would be refused as too stale",
            version=base,
            staleness=watch.staleness,
            seconds=round(seconds, 2),
            in_a_row=in_a_row,
            **({"because": hint} if is_often else {}),
        )

    def _pause_after(self, unusable: TrainedUpdate) -> None:
        """Warn and wait, longer with each round in a row whose update must not be sent."""
        wait_s = wait_after_unusable(self.unusable_in_a_row)
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
        if seconds and self.stop.wait(seconds):
            raise StopRequested
