"""The deployed leader where a list in memory stands for RabbitMQ, and the clock is an argument."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from fluffle.broker import Delivery
from fluffle.events import Applied, Rejected
from fluffle.framing import record_digest
from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version, encode_copy, encode_version
from fluffle.safetensors_file import ModelFile
from fluffle.topology import topology_of
from fluffle_aggregator.commit_schedule import POLL_S
from fluffle_aggregator.effects import Commit, Effect, Log, Now, Tell
from fluffle_aggregator.gates.fitting import DUPLICATE, FINISHED
from fluffle_aggregator.gates.rates import TOO_MANY, TOO_MUCH
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.initial_model import first_version
from fluffle_aggregator.leader import REFUSALS_TOLD_AFTER_S, Leader
from fluffle_aggregator.private.sums import PrivateSums
from fluffle_aggregator.schedules import parse_schedule
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.state import refusal_of
from fluffle_cli.watching.view import Happening

# The Unix time at which every simulation begins, so that two runs are equal to the byte.
BEGINS_AT: Final = 1_767_225_600.0
# Refused messages that are kept with their sentences; all are counted.
MOST_HAPPENINGS: Final = 10_000
# Reasons that say nothing of the updates that come after a while.
FOR_NOW: Final = {TOO_MANY, TOO_MUCH, FINISHED, DUPLICATE}


class LeaderInMemory:
    """Takes in messages, and commits; `on_commit` gets each version as workers read it.

    `newest` is the newest version. `refused` counts refused messages by reason, and `warnings` the leader's
    other warnings by their text; `happened` has the first refused messages. `refused_in_a_row` counts each
    worker's updates that were refused since the last one was taken, and `last_refusal` says why.
    """

    def __init__(
        self, settings: SimulateSettings, file: ModelFile, on_commit: Callable[[ModelVersion], None]
    ) -> None:
        """Lead from version 0, the model in `file`.

        Raises MessageTooLarge or ConfigError for a model that an aggregator would refuse.
        """
        self.topology = topology_of(settings.federation)
        self.refused: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.happened: list[Happening] = []
        self.refused_in_a_row: Counter[str] = Counter()
        self.last_refusal = ""
        self._settings, self._on_commit = settings, on_commit
        strategy = settings.make_strategy()
        settings.require_room(strategy, file.layout)
        private = _first_sums(settings, file.layout, strategy.buffer_size)
        plan = settings.make_plan(strategy, privacy=private.plan if private else None)
        first = first_version(
            file,
            federation=settings.federation,
            plan=plan,
            strategy=str(strategy),
            privacy=private.state if private else None,
        )
        self.newest = replace(first, committed_at=BEGINS_AT)
        model = GlobalModel(
            self.newest,
            strategy=strategy,
            plan=plan,
            goal=settings.make_goal(),
            term=1,
            schedule=parse_schedule(settings.learning_rate_schedule),
            cached_bytes=settings.room_for_cache(strategy, file.layout),
            average_decay=settings.average_versions,
            private=private,
        )
        self._schedule = settings.make_commit_schedule(strategy)
        parent = record_digest(encode_version(self.newest))
        self._leader = Leader(model, self.topology, settings, self._schedule, parent=parent, now=_now(0.0))
        self._tags = 0
        # Since when something waits for the time to pass.
        self._held_from = self._refused_from = self._committed_at = 0.0

    @property
    def finished(self) -> str:
        """Why the federation has ended; empty until then."""
        return self._leader.finished

    def begin(self) -> None:
        """Take the lead."""
        self._perform(self._leader.begin(_now(0.0)), 0.0)

    def deliver(self, body: bytes, user: str, exchange: str, at_s: float) -> None:
        """Take in a message that this user published to this exchange."""
        held, told = bool(self._leader.held), bool(self._leader.model.contributors.untold_refusals)
        self._tags += 1
        headers = {"at": f"{BEGINS_AT + at_s:.3f}"}
        delivery = Delivery(self._tags, body, user=user, exchange=exchange, headers=headers)
        self._perform(self._leader.take_in(delivery, _now(at_s)), at_s)
        self._held_from = self._held_from if held else at_s
        self._refused_from = self._refused_from if told else at_s

    def tick(self, at_s: float) -> None:
        """Commit, close or finish if it is time to."""
        self._perform(self._leader.tick(_now(at_s)), at_s)

    def next_tick(self, at_s: float) -> float | None:
        """Return when a tick is due though no message comes; None when the leader waits for messages only."""
        leader, model, schedule = self._leader, self._leader.model, self._schedule
        if leader.finished:
            return None
        due = [at_s + POLL_S] if model.over else []
        timeout_s = schedule.buffer_timeout_s
        if leader.held:
            due.append(self._held_from + timeout_s)
        elif model.contributors.untold_refusals:
            is_synchronous = model.strategy.one_update_per_version
            due.append(self._refused_from + (timeout_s if is_synchronous else REFUSALS_TOLD_AFTER_S))
        if model.private and not leader.held and (model.private.is_stuck or model.private.why_over):
            due.append(self._committed_at + timeout_s)
        # Nothing is committed while the buffer holds a part of the next version.
        if model.steps and not model.in_buffer and schedule.after_s is not None:
            due.append(self._committed_at + schedule.after_s)
        if model.goal.max_seconds is not None and model.draft.started_s is not None:
            due.append(model.draft.started_s + model.goal.max_seconds)
        return min(due, default=None)

    def _perform(self, effects: Iterable[Effect], at_s: float) -> None:
        """Perform the commits among these effects, and note refusals and warnings: nothing here is acked."""
        waiting = deque(effects)
        while waiting:
            match waiting.popleft():
                case Commit(record):
                    waiting.extendleft(reversed(self._commit(record, at_s)))
                case Tell(Rejected() as event):
                    self.refused[event.reason] += 1
                    if event.update and event.reason not in FOR_NOW:
                        self.refused_in_a_row[event.worker] += 1
                        self.last_refusal = f"{event.reason}: {event.detail}"
                    if len(self.happened) < MOST_HAPPENINGS:
                        self.happened.append(refusal_of(event, BEGINS_AT + at_s))
                case Tell(Applied()):
                    self.refused_in_a_row.clear()
                case Log("WARNING", line) if line != "refused":
                    self.warnings[line] += 1

    def _commit(self, record: ModelVersion, at_s: float) -> list[Effect]:
        body = encode_version(record)
        digest, codec = record_digest(body), self._settings.downlink_codec
        if codec == "float32":
            # What a worker reads has the same values; the leader goes on to write to its own arrays.
            own = {name: getattr(record, name).copy() for name in ("vector", "average", "statistics")}
            self.newest = replace(record, **own)
        else:
            self.newest = decode_version(bytes(encode_copy(record, codec, digest)))
        effects = self._leader.committed(record, digest=digest, took_s=0.0, now=_now(at_s))
        self._committed_at = at_s
        self._on_commit(self.newest)
        return effects


def _first_sums(settings: SimulateSettings, layout: Layout, buffer_size: int) -> PrivateSums | None:
    """Return the sums of a leader with differential privacy; None without it."""
    plan = settings.new_privacy_plan(buffer_size)
    if plan is None:
        return None
    # Only here: the library of ciphers takes long to load.
    from fluffle_cli.simulate.noise import first_sums

    return first_sums(
        plan, layout, federation=settings.federation, buffer_size=buffer_size, seed=settings.seed
    )


def _now(at_s: float) -> Now:
    return Now(at_s, BEGINS_AT + at_s)
