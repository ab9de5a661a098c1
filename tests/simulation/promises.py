"""What Fluffle promises, held against the fake server after each step of a simulation."""

import functools
import itertools
from collections.abc import Mapping, Sequence

from fake_broker import FakeServer
from messages import taken_apart
from simulation.aggregators import Aggregator
from simulation.chain import Chain, Link
from simulation.faulty_broker import Late
from simulation.senders import Ledger

from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import decode_without_weights
from fluffle.topology import Topology
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_aggregator.strategies.strategy import Strategy

# What a message of each kind may be refused for.
UNTIMELY = {
    *("too-stale", "unknown-base", "future-version", "second-in-round", "wrong-content", "finished"),
    "survey-open",
}
REASONS: Mapping[str, set[str]] = {
    "update": {"duplicate", *UNTIMELY},
    "garbage": {"unreadable"},
    "poison": {"crashes"},
    "impostor": {"foreign-sender"},
    "of the future": UNTIMELY - {"too-stale", "unknown-base"},
    "of another line": UNTIMELY - {"too-stale"},
    "unsound": {"not-finite", "too-large", "bad-examples", *UNTIMELY},
    "evaluation": {"foreign-sender", "future-version"},
    "site's evaluation": {"unknown-base", "future-version"},
    "answer": {"duplicate", "survey-over", "no-survey", "finished"},
}


@functools.lru_cache(1_000)
def kind_of(body: bytes) -> str:
    """Return what kind of message this is; a copy of a version is a kind of its own."""
    header, _ = taken_apart(body)
    return "copy" if header.get("copy_of") else str(header["kind"])


@functools.lru_cache(1_000)
def record_of(body: bytes) -> ModelVersion:
    """Return what a message of the stream of records says."""
    return decode_without_weights(body)


class Promises:
    """The promises, and what one must remember to hold them against what is there."""

    def __init__(
        self,
        server: FakeServer,
        topology: Topology,
        aggregators: Sequence[Aggregator],
        strategies: Mapping[str, Strategy],
        ledger: Ledger,
    ) -> None:
        self._server = server
        self._topology = topology
        self._aggregators = aggregators
        self._ledger = ledger
        self._chain = Chain(strategies, ledger.updates, ledger.reports, ledger.answers)
        self._confirmed: Link | None = None
        self._late_in_head: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._refused_messages = 0
        self._refused_for_good: set[UpdateId] = set()
        self._foreign_bases: set[Rank] = set()

    def note_late_arrival(self, late: Late) -> None:
        """Remember that the head has had to take in one message more than leaders reckon with."""
        if late.exchange == self._topology.head_in.name:
            self._late_in_head.add(late.body)
        # docs/decisions/0009: the model is safe, but the optimizer may begin anew.
        self._chain.moments_may_be_gone = True

    def check(self, confirmed: bytes | None = None, records: Sequence[bytes] = ()) -> None:
        """Raise AssertionError for the first promise that is broken.

        `confirmed` is a version that the broker has just confirmed: its leader acks what is in it. `records`
        are those that have come to the head meanwhile, in their order.
        """
        self._newest(records)
        in_head = self._server.bodies(self._topology.head.name)
        newest = self._newest(in_head)
        in_stream = self._newest(self._server.bodies(self._topology.models.name))
        for body in self._server.bodies(self._topology.records.name):
            record = record_of(body)
            assert record.copy_of in self._chain.by_digest, (
                f"a record of {record.rank}, which no head was given"
            )
        if confirmed is not None:
            self._confirmed = self._chain.links[confirmed]
        if self._confirmed:
            assert newest, "the head is empty"
            assert newest.descends_from(self._confirmed), (
                f"the head's {newest.record.rank} does not go on from {self._confirmed.record.rank}, "
                "which was confirmed"
            )
        # A record that came late to the head alone has its copy when somebody goes on from it (0011).
        in_time = self._newest([body for body in in_head if body not in self._late_in_head])
        if in_time and any(aggregator.leads for aggregator in self._aggregators):
            assert in_stream, "the stream is empty, but there is a leader"
            assert in_stream.record.rank >= in_time.record.rank, (
                f"readers find {in_stream.record.rank}, but the newest is {in_time.record.rank}"
            )
        self._look_at_what_is_refused()
        self._look_for_what_is_lost(newest)

    def check_end(self) -> None:
        """Raise AssertionError for what is not as it should be when all is quiet."""
        newest = self._newest(self._server.bodies(self._topology.head.name))
        for body in self._ledger.confirmed & self._ledger.ids.keys():
            update = self._ledger.ids[body]
            is_applied = newest is not None and update in newest.ids
            assert is_applied or update in self._refused_for_good, f"{update} counts nowhere"
        if newest:
            in_records = map(record_of, self._server.bodies(self._topology.records.name))
            assert max(record.rank for record in in_records) == newest.record.rank
            wronged = self._foreign_bases & newest.bases
            assert not wronged, f"refused for their base: updates from {wronged}, which are in the history"

    def _newest(self, bodies: Sequence[bytes]) -> Link | None:
        """Return the newest record of these, by the readers' rule."""
        newest: Link | None = None
        for body in bodies:
            link = self._chain.links.get(body) or self._link_of(body)
            if link and (newest is None or link.record.rank > newest.record.rank):
                newest = link
        return newest

    def _link_of(self, body: bytes) -> Link | None:
        """Return the link of a message that was not seen before; None when it is no version."""
        kind = kind_of(body)
        if kind == "copy":
            return self._chain.add_copy(body)
        return self._chain.add(body) if kind == "version" else None

    def _look_at_what_is_refused(self) -> None:
        refused = self._server.queue(self._topology.rejected.name).ready
        for delivery in itertools.islice(refused, self._refused_messages, None):
            kind, update = self._ledger.kinds.get(delivery.body), self._ledger.ids.get(delivery.body)
            reason = delivery.headers.get("reason")
            died = delivery.headers.get("x-first-death-reason")
            assert died == "delivery_limit" or (kind and reason in REASONS[kind]), (
                f"{kind} {update or delivery.body[:20]!r} is refused: {reason}"
            )
            if update and reason != "duplicate":
                self._refused_for_good.add(update)
            if update and reason in {"unknown-base", "future-version"}:
                message = decode_inbound(delivery.body)
                assert isinstance(message, WeightUpdate)
                self._foreign_bases.add(Rank(message.base_term, message.base_version))
            # That one of two is refused says nothing of where the other is.
            if update is None:
                self._refused.add(delivery.body)
        self._refused_messages = len(refused)

    def _look_for_what_is_lost(self, newest: Link | None) -> None:
        held = [one.broker.unacked.values() for one in self._aggregators if one.broker and one.broker.is_open]
        queued = set(itertools.chain(self._server.bodies(self._topology.updates.name), *held))
        known = self._ledger.ids
        kept = {known[body] for body in queued & known.keys()} | self._refused_for_good
        for body in self._ledger.confirmed - queued - self._refused:
            update = known.get(body)
            is_kept = update in kept or (newest is not None and update in newest.ids)
            kind = self._ledger.kinds[body]
            # Beyond the prefetch window's room, a report is acked before a record has it (0026).
            is_report = kind in {"evaluation", "site's evaluation"}
            is_counted = kind == "answer" and self._is_counted(body, newest)
            assert is_kept or is_report or is_counted, f"{kind} {update or body[:20]!r} is lost"

    def _is_counted(self, answer: bytes, newest: Link | None) -> bool:
        """Tell whether the newest survey has a worker's answer, or asks all workers again."""
        survey = newest.record.survey if newest else None
        if survey is None:
            return False
        return self._ledger.answers[answer].worker in survey.answered or survey.attempt > 1
