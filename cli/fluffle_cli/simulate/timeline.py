"""The virtual clock: one heap of events, and the life of simulated workers, with training or without it.

A worker begins a round from the newest version when its device is on, trains for its seconds, sends its
update, and goes on or waits for a newer version, as `fluffle worker` decides it.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from fluffle.errors import FluffleError
from fluffle.logs import get_logger
from fluffle.plan import Plan
from fluffle_cli.simulate.availability import Always
from fluffle_cli.simulate.population import Population
from fluffle_worker.pace.speed import Speed
from fluffle_worker.pace.steps import is_too_long

# More than two times can differ by rounding, so that a timer that fires a little early is not set for ever.
ROUNDING: Final = 1e-9


class Worker(Protocol):
    """What the clock knows of a worker."""

    index: int
    begun: int
    is_training: bool
    waits: int
    round_s: float
    patience_s: float
    speed: Speed

    @property
    def round_plan(self) -> Plan:
        """The plan with what the worker chooses itself."""

    @property
    def plan(self) -> Plan:
        """The plan of the version that its round starts from."""

    @property
    def base_version(self) -> int:
        """The number of that version."""

    def trains(self, number: int) -> bool:
        """Return whether its round of this number goes on."""

    def crash(self) -> None:
        """Forget what a process keeps in memory; what was sent stays sent."""

    def lose_patience(self) -> None:
        """Double how long it waits the next time."""


class TimedLeader(Protocol):
    """What the clock knows of the leader; times are virtual seconds."""

    @property
    def finished(self) -> str:
        """Why the federation has ended; empty until then."""

    def begin(self) -> None:
        """Take the lead."""

    def tick(self, at_s: float) -> None:
        """Commit, close or finish if it is time to."""

    def next_tick(self, at_s: float) -> float | None:
        """Return when a tick is due though no message comes; None when the leader waits for messages only."""


log = get_logger(__name__)
W = TypeVar("W", bound=Worker)
# What is called, and with what.
Event = tuple[Callable[..., None], tuple[object, ...]]


class Timeline(ABC, Generic[W]):
    """A federation on a virtual clock; `seconds` is what it shows, and `events` counts what has happened.

    `crashes` counts the rounds that were lost, and `aborted` those that clients ended early because their
    update would have been refused.
    """

    def __init__(self, population: Population) -> None:
        """Begin at 0 s."""
        self.seconds = 0.0
        self.events = self.crashes = self.aborted = 0
        self._population = population
        self._is_always_on = isinstance(population.availability, Always)
        # The times at which something happens, as a heap, and what happens then. The heap has each time once,
        # and nothing but numbers: with many clients most of the computing time goes into it.
        self._times: list[float] = []
        self._planned: dict[float, list[Event]] = {}
        # What is left to do now.
        self._at_once: deque[Event] = deque()
        # By number, in the order in which they began to wait.
        self._waiting: dict[int, W] = {}
        # With a limit of the staleness, the rounds that began and their numbers: the oldest base first.
        self._rounds: deque[tuple[W, int]] = deque()
        self._next_tick_s = math.inf
        self._has_warned_of_speed = False

    @property
    @abstractmethod
    def leader(self) -> TimedLeader:
        """The leader."""

    @abstractmethod
    def _has_read(self, worker: W) -> bool:
        """Let a worker read the newest version; False when that one takes no more updates."""

    @abstractmethod
    def _must_wait(self, worker: W) -> bool:
        """Return whether a worker waits for a version newer than the newest one."""

    @abstractmethod
    def _examples(self, worker: W, /) -> int:
        """Return how many examples the next round trains."""

    @abstractmethod
    def _begin_training(self, worker: W, ends_s: float) -> None:
        """Let a round begin that ends then, and end it then unless it was aborted."""

    @abstractmethod
    def _abort_training(self, worker: W, /) -> None:
        """Forget the round that a worker has begun."""

    def _play(self, workers: Iterable[W]) -> None:
        """Play the federation to its end."""
        times, at_once, leader = self._times, self._at_once, self.leader
        leader.begin()
        for worker in workers:
            self._at(self._population.joins_s.get(worker.index, 0.0), self._begin, worker)
        while not leader.finished:
            if not at_once:
                if not times:
                    raise FluffleError(
                        "the simulation stands still: no client may train, and no update is held"
                    )
                self.seconds = heapq.heappop(times)
                at_once.extend(self._planned.pop(self.seconds))
            action, arguments = at_once.popleft()
            self.events += 1
            action(*arguments)

    def _at(self, at_s: float, action: Callable[..., None], *arguments: object) -> None:
        """Call an action at a time; of several at the same time, first the one that was given first."""
        if at_s <= self.seconds:
            self._at_once.append((action, arguments))
            return
        planned = self._planned.setdefault(at_s, [])
        if not planned:
            heapq.heappush(self._times, at_s)
        planned.append((action, arguments))

    def _ends_s(self, worker: W, seconds: float) -> float:
        """Return when a worker's device will have been on for so many seconds."""
        if self._is_always_on:
            return self.seconds + seconds
        return self._population.availability.after(worker.index, self.seconds, seconds)

    def _tick(self) -> None:
        """Let the leader look at the clock, and set a timer for its next look if it needs one."""
        self.leader.tick(self.seconds)
        due_s = self.leader.next_tick(self.seconds)
        if self._next_tick_s <= self.seconds:
            self._next_tick_s = math.inf
        if due_s is not None and due_s < self._next_tick_s:
            self._next_tick_s = max(due_s, self.seconds + ROUNDING * max(1.0, self.seconds))
            self._at(self._next_tick_s, self._tick)

    def _begin(self, worker: W) -> None:
        """Let a worker begin a round from the newest version, as soon as its device is on."""
        if not self._is_always_on and (on_s := self._ends_s(worker, 0.0)) > self.seconds:
            self._at(on_s, self._begin, worker)
            return
        # Workers leave when no more updates are taken.
        if self._has_read(worker):
            self._train(worker)

    def _train(self, worker: W) -> None:
        """Let a round begin, and be lost or end when the device has been on for long enough."""
        population, index = self._population, worker.index
        worker.begun += 1
        worker.is_training = True
        if worker.plan.max_staleness is not None:
            self._rounds.append((worker, worker.begun))
        worker.round_s = seconds = population.round_s(index, self._examples(worker))
        lost_after = population.lost_after(index, worker.begun)
        if lost_after is None:
            self._begin_training(worker, self._ends_s(worker, seconds))
        else:
            self._at(self._ends_s(worker, lost_after * seconds), self._crash, worker, worker.begun)

    def _note_speed(self, worker: W, plan: Plan) -> None:
        """Let a worker measure its round of this plan, which ends now."""
        if plan.round_seconds is None or plan.local_steps is None:
            return
        step_s = self._population.example_s[worker.index] * plan.batch_size
        worker.speed = worker.speed.after(step_s, worker.round_s - step_s * plan.local_steps)
        if not self._has_warned_of_speed and is_too_long(plan, worker.speed):
            self._has_warned_of_speed = True
            log.warning(
                "a round of min_steps minibatches takes longer than round_seconds on some devices",
                first=worker.index,
                round_seconds=plan.round_seconds,
                min_steps=plan.min_steps,
                seconds_per_step=float(f"{step_s:.3g}"),
            )

    def _crash(self, worker: W, number: int) -> None:
        """Lose a round unless it was aborted, and begin anew from the newest version."""
        if worker.trains(number):
            self.crashes += 1
            worker.crash()
            self._begin(worker)

    def _note_version(self, version: int, max_staleness: int | None) -> None:
        """Let those begin that wait for a newer version, and those whose update would be refused by now.

        `fluffle worker` notices a little later that its round is too stale.
        """
        waiting, self._waiting = self._waiting, {}
        while self._rounds and max_staleness is not None:
            worker, number = self._rounds[0]
            if worker.trains(number) and version - worker.base_version <= max_staleness:
                break
            self._rounds.popleft()
            if worker.trains(number):
                self.aborted += 1
                worker.is_training = False
                self._abort_training(worker)
                self._begin(worker)
        for worker in waiting.values():
            self._go_on(worker)

    def _go_on(self, worker: W) -> None:
        """Let a worker begin a round, or wait for a newer version."""
        if not self._must_wait(worker):
            self._begin(worker)
            return
        worker.waits += 1
        self._waiting[worker.index] = worker
        if worker.plan.may_repeat:
            self._at(self.seconds + worker.patience_s, self._end_vain_wait, worker, worker.waits)

    def _end_vain_wait(self, worker: W, wait: int) -> None:
        """Let a worker that waits for a newer version in vain train again from the same one."""
        if worker.index in self._waiting and worker.waits == wait:
            del self._waiting[worker.index]
            worker.lose_patience()
            self._train(worker)
