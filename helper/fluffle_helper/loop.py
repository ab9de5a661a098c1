"""A helper's loop: read close records, remember them, and answer the last one."""

import threading
import time
from dataclasses import dataclass

from fluffle.broker import Broker, StreamReader
from fluffle.errors import ConfigError, Unroutable, WireError
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import Declined, Unmasked
from fluffle.logs import get_logger
from fluffle.pieces import Body
from fluffle.secure.closing import CloseRecord, decode_close, encode_not_opened, opening_pieces
from fluffle.secure.helping import Ledger, not_opened, openings
from fluffle.topology import Topology
from fluffle_helper.deciding import Decision, decide
from fluffle_helper.keys import Keys

log = get_logger(__name__)

# How long to wait for a record before looking at the files again, and at first for more old records.
POLL_S, FIRST_PATIENCE_S = 0.5, 1.0
LOOK_AT_FILES_EVERY_S = 2.0
PREFETCH = 256
FULL_DISK_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class HelperResult:
    """What a helper did: the sums of which it opened a group, and the close records that it refused."""

    opened: int
    refused: int


class Helper:
    """One run of a helper."""

    def __init__(
        self,
        keys: Keys,
        topology: Topology,
        stop: threading.Event,
        *,
        fewest_workers: int,
        event_sink: EventSink = NULL_SINK,
    ) -> None:
        self._keys = keys
        self._topology = topology
        self._stop = stop
        self._fewest_workers = fewest_workers
        self._event_sink = event_sink
        self._looked_at = time.monotonic()
        self._opened = self._refused = 0

    @property
    def result(self) -> HelperResult:
        """What it has done so far."""
        return HelperResult(self._opened, self._refused)

    def work(self, broker: Broker) -> None:
        """Answer close records until asked to stop.

        All records are read from the first one on: the ledger passes over those that it has. Only the last
        one is answered, since an answer is as large as the model, and nobody waits for earlier ones.
        """
        with broker.read_stream(self._topology.closes.name, offset="first", prefetch=PREFETCH) as reader:
            patience_s = FIRST_PATIENCE_S
            while not self._stop.is_set():
                body = reader.next_body(POLL_S)
                self._look_at_files_when_due()
                if body is not None and (last := self._read(body, reader, patience_s)):
                    self._answer(broker, last)
                # From now on records come one by one.
                patience_s = 0.0

    def _look_at_files_when_due(self) -> None:
        if time.monotonic() - self._looked_at >= LOOK_AT_FILES_EVERY_S:
            self._looked_at = time.monotonic()
            self._keys.look()

    def _read(self, body: bytes | None, reader: StreamReader, patience_s: float) -> Decision | None:
        """Take in this record and all that are at hand; return what to do with the last one."""
        last: Decision | None = None
        ledger = self._keys.ledger
        while body is not None:
            if close := _decoded(body):
                if close.epoch > ledger.epoch and self._remember(ledger):
                    ledger = self._with_newer_keys(close.epoch)
                last = decide(
                    close,
                    self._keys.key.name,
                    ledger,
                    self._keys.registry,
                    fewest_workers=self._fewest_workers,
                )
                ledger = last.ledger if last else ledger
            body = None if self._stop.is_set() else reader.next_body(patience_s)
        return last if self._remember(ledger) else None

    def _with_newer_keys(self, epoch: int) -> Ledger:
        """Return the ledger after a look at the files, which the operator has perhaps replaced already."""
        self._keys.look()
        if self._keys.key.epoch < epoch:
            log.warning(
                "a sum of a newer epoch waits: get the new key, ledger and registry from the operator",
                epoch=self._keys.key.epoch,
                needed=epoch,
            )
        return self._keys.ledger

    def _remember(self, ledger: Ledger) -> bool:
        """Write the ledger; while the disk is full wait, and answer nothing. False when asked to stop."""
        attempts = 0
        while True:
            try:
                self._keys.remember(ledger)
            except ConfigError as error:
                attempts += 1
                if attempts.bit_count() == 1:
                    log.warning("the ledger cannot be written: nothing is answered", because=str(error))
                if self._stop.wait(FULL_DISK_WAIT_S):
                    return False
            else:
                return True

    def _answer(self, broker: Broker, last: Decision) -> None:
        close, key = last.close, self._keys.key
        if last.refused:
            self._refused += 1
            rule, detail = last.refused.rule, last.refused.detail
            log.warning("a sum is not opened", version=close.version, rule=rule, because=detail)
            self._event_sink(Declined(close.version, rule, detail))
            self._publish(broker, encode_not_opened(not_opened(close, key.name, last.refused, last.ledger)))
            return
        began, groups = time.monotonic(), 0
        for opening in openings(close, key, self._keys.registry, of_groups=last.of_groups):
            self._publish(broker, opening_pieces(opening))
            groups += 1
        seconds = time.monotonic() - began
        if groups:
            self._opened += 1
            self._event_sink(Unmasked(close.version, seconds, groups))
        counts = {"updates": len(close.updates), "groups": groups}
        log.info("sum opened", version=close.version, **counts, seconds=round(seconds, 3))

    def _publish(self, broker: Broker, body: Body) -> None:
        try:
            broker.publish(self._topology.openings_in.name, "", body, {"kind": "opening"})
        except Unroutable:
            # The next leader asks again.
            log.debug("no leader listens for openings")


def _decoded(body: bytes) -> CloseRecord | None:
    try:
        return decode_close(body)
    except WireError as error:
        log.warning("a close record cannot be read: it is passed over", because=str(error))
        return None
