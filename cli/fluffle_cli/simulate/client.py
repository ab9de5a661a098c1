"""One simulated worker, and when it may begin its next round, as `fluffle worker` decides it."""

from dataclasses import dataclass, field

from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.update import UpdateId
from fluffle_cli.simulate.turn import has_to_wait, has_turns, refusals
from fluffle_worker.base_version import (
    FIRST_PATIENCE_S,
    LONGEST_PATIENCE_S,
    ROUNDS_OF_PATIENCE,
    most_in_flight,
)
from fluffle_worker.pace.speed import UNKNOWN, Speed
from fluffle_worker.pace.steps import with_chosen_steps


@dataclass(slots=True, eq=False)
class Client:
    """A device that holds so many `examples`.

    `base` is the version that its round started from; with `is_new`, no round of this process did.
    `begun` counts its rounds, `is_training` says whether the last of them goes on, and `sent` counts its
    updates. `in_flight` are the updates that the version that it read last does not contain. `waits` counts
    how often it had to wait for a newer version. `speed` is what it has measured of its rounds. `unusable`
    counts the rounds in a row whose update must not be sent, such as one with NaN. `refused_before` is how
    many of its updates had been refused when it began the round of the last one. `released` counts those that
    left with noise of its own.
    """

    index: int
    name: str
    examples: int
    local: Weights
    base: ModelVersion
    is_new: bool = True
    begun: int = 0
    is_training: bool = False
    sent: int = 0
    round_s: float = 0.0
    in_flight: list[UpdateId] = field(default_factory=list)
    waits: int = 0
    patience_s: float = FIRST_PATIENCE_S
    speed: Speed = UNKNOWN
    unusable: int = 0
    refused_before: int = 0
    released: int = 0

    @property
    def round_plan(self) -> Plan:
        """The plan with what the worker chooses itself."""
        return with_chosen_steps(self.plan, self.speed)

    @property
    def plan(self) -> Plan:
        """The plan of the version that its round starts from."""
        return self.base.plan

    @property
    def base_version(self) -> int:
        """The number of that version."""
        return self.base.version

    def read(self, newest: ModelVersion) -> None:
        """Take a version as the base of the next round."""
        self.in_flight = [one for one in self.in_flight if not newest.applied.is_past(one)]
        if newest.version > self.base.version:
            self.patience_s = FIRST_PATIENCE_S
        self.base, self.is_new = newest, False

    def note_sent(self, update: UpdateId) -> None:
        """Remember the update of the round that ends."""
        if has_turns(self.plan):
            self.in_flight, self.refused_before = [], refusals(self.name, self.base)
        self.in_flight.append(update)
        self.patience_s = max(self.patience_s, ROUNDS_OF_PATIENCE * self.round_s)

    def trains(self, number: int) -> bool:
        """Return whether its round of this number goes on."""
        return self.is_training and self.begun == number

    def crash(self) -> None:
        """Forget what a process keeps in memory; what was sent stays sent."""
        self.is_training = False
        self.is_new, self.in_flight, self.patience_s = True, [], FIRST_PATIENCE_S
        self.speed = UNKNOWN

    def lose_patience(self) -> None:
        """Double how long it waits the next time, up to ten minutes."""
        self.patience_s = min(LONGEST_PATIENCE_S, 2 * self.patience_s)

    def must_wait(self, newest: ModelVersion) -> bool:
        """Return whether it waits for a version newer than the newest one."""
        base = self.base
        if has_turns(newest.plan):
            return has_to_wait(self.name, newest, self.in_flight, self.refused_before)
        if self.is_new or newest.version > base.version:
            return False
        return base.plan.one_update_per_version or len(self.in_flight) >= most_in_flight(base, self.name)
