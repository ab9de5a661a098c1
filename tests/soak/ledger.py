"""What the soak's own eyes saw: every version of the stream, and what became of each confirmed update."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from federation import Federation, applied_ids

from fluffle.errors import BrokerError
from fluffle.framing import record_digest
from fluffle.record import Rank
from fluffle.record_wire import decode_version
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound

POLL_S = 0.5
AGAIN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One version as a reader found it."""

    rank: Rank
    parent: str
    folded: tuple[UpdateId, ...]


@dataclass
class Witness:
    """Reads the stream from its beginning to its end, over and over with each new connection."""

    federation: Federation
    seen: dict[str, Seen] = field(default_factory=dict)
    newest: Rank | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Read until `stop`; for a thread of its own."""
        while not self.stop.is_set():
            try:
                self._read()
            except BrokerError:
                self.stop.wait(AGAIN_AFTER_S)

    def _read(self) -> None:
        with (
            self.federation.connect() as broker,
            broker.read_stream(self.federation.topology.models.name, offset="first") as reader,
        ):
            while not self.stop.is_set():
                if body := reader.next_body(POLL_S):
                    self._note(body)

    def _note(self, body: bytes) -> None:
        digest = record_digest(body)
        if digest in self.seen:
            return
        version = decode_version(body)
        self.seen[digest] = Seen(version.rank, version.parent, tuple(one.id for one in version.folded))
        self.newest = max(self.newest or version.rank, version.rank)


@dataclass(frozen=True, slots=True)
class Balance:
    """The end of the ledger."""

    confirmed: int
    applied: int
    rejected: int
    queued: int
    lost: frozenset[UpdateId]
    twice: frozenset[UpdateId]
    updates_counted: int
    updates_named: int
    versions: int
    unseen_versions: int
    versions_aside: int
    takeovers: int
    reasons: Mapping[str, int]

    @property
    def faults(self) -> list[str]:
        """What of the promises does not hold."""
        found = []
        if not self.confirmed:
            found.append("no update was confirmed at all")
        if self.lost:
            found.append(f"confirmed, but neither applied nor queued nor rejected: {_some(self.lost)}")
        if self.twice:
            found.append(f"in two versions: {_some(self.twice)}")
        if self.updates_counted != self.updates_named:
            found.append(
                f"{self.updates_counted} updates were folded, but only {self.updates_named} have ids"
            )
        if self.queued:
            found.append(f"{self.queued} updates are queued still, though an aggregator was at work")
        return found


def balance(federation: Federation, witness: Witness) -> Balance:
    """Compare what the workers were told with what the last version, the queues and the witness say."""
    final = federation.newest()
    applied = applied_ids(final)
    confirmed = federation.confirmed()
    queued = federation.waiting_in(federation.topology.updates.name)
    refusals = federation.deliveries_in(federation.topology.rejected.name)
    rejected = {
        message.id
        for message in (decode_inbound(refusal.body) for refusal in refusals)
        if isinstance(message, WeightUpdate)
    }
    history = _history(witness, final.rank)
    folded = Counter(update for version in history for update in version.folded)
    ranks = {version.rank.version for version in history}
    return Balance(
        confirmed=len(confirmed),
        applied=len(confirmed & applied),
        rejected=len(confirmed & rejected - applied),
        queued=len(confirmed & queued - applied),
        lost=frozenset(confirmed - applied - rejected - queued),
        twice=frozenset(update for update, count in folded.items() if count > 1),
        updates_counted=final.updates,
        updates_named=len(applied),
        versions=final.version,
        unseen_versions=final.version + 1 - len(ranks),
        versions_aside=len(witness.seen) - len(history),
        takeovers=len(final.terms) - 1,
        reasons=Counter(str(refusal.headers.get("reason", "?")) for refusal in refusals),
    )


def _history(witness: Witness, newest: Rank) -> list[Seen]:
    """Follow the parents back from the newest version, as far as the witness has seen them."""
    history = []
    found = next((one for one in witness.seen.values() if one.rank == newest), None)
    while found:
        history.append(found)
        found = witness.seen.get(found.parent)
    return history


def _some(ids: frozenset[UpdateId]) -> str:
    shown = ", ".join(str(one) for one in sorted(ids)[:5])
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown
