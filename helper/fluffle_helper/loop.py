"""The helper's loop: read the close records, write the ledger, answer the newest record."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from fluffle.broker import Broker
from fluffle.errors import ConfigError, MessageTooLarge, Unroutable, WireError
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import Opened, Withheld
from fluffle.logs import get_logger
from fluffle.pieces import Body
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.secure.closing import CloseRecord, Finished, decode_for_helper, encode_not_opened, opening_pieces
from fluffle.secure.helping import Ledger, Refused, not_opened, openings
from fluffle.secure.registry import Registry
from fluffle.topology import Topology
from fluffle_helper.deciding import Answer, Decision, decide
from fluffle_helper.others import others_of
from fluffle_helper.own_files import HelperFiles, OwnFiles

log = get_logger(__name__)

POLL_S = 0.5
# If nothing arrives for this long, all records that the stream had at the start are read.
CATCH_UP_S = 0.5
# Most records are small. One may have 1 MiB: no more than 8 MiB wait in the memory.
PREFETCH = 8
# How often a full disk is tried again, and how often a log line says that the files are still wrong.
WRITE_AGAIN_S = 5.0
SAY_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class HelperResult:
    """What a helper did: how many sums it opened, and how many it refused.

    `ended_by` is why the federation has finished, empty when the helper was asked to stop before.
    """

    opened: int = 0
    refused: int = 0
    ended_by: str = ""


@dataclass(kw_only=True, eq=False)
class Helper:
    """Answers close records. Only the newest record is answered: an answer is as large as the model."""

    name: str
    topology: Topology
    files: HelperFiles
    fewest_workers: int
    compares: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    event_sink: EventSink = NULL_SINK

    def __post_init__(self) -> None:
        """Begin with nothing answered."""
        self._result = HelperResult()
        self._trouble, self._said_at = "", -math.inf
        self._epoch = self._missed_epoch = 0

    def work(self, connect: Callable[[], Broker], *, patience_s: float = math.inf) -> HelperResult:
        """Answer close records until the federation has finished, or until asked to stop.

        A lost connection is replaced.
        """
        work = until_federation_is_gone(self._work_on)
        run_with_reconnect(connect, work, self.stop, self.event_sink, patience_s=patience_s)
        done = {"opened": self._result.opened, "refused": self._result.refused}
        if self._result.ended_by:
            log.info("the federation has finished", because=self._result.ended_by, **done)
        else:
            log.info("asked to stop", **done)
        return self._result

    def _work_on(self, broker: Broker) -> None:
        while not self.stop.is_set() and not self._result.ended_by:
            own = self._read_files()
            if own is None:
                self.stop.wait(POLL_S)
            else:
                self._serve(broker, own)

    def _read_files(self) -> OwnFiles | None:
        """Read the files; while they are wrong, nothing is answered, and no record is passed over."""
        try:
            own = self.files.read()
        except ConfigError as error:
            is_due = time.monotonic() - self._said_at >= SAY_EVERY_S
            if str(error) != self._trouble or is_due:
                self._trouble, self._said_at = str(error), time.monotonic()
                log.warning("this helper opens nothing until its files are right", because=str(error))
            return None
        self._trouble = ""
        if own.key.epoch != self._epoch:
            self._epoch = own.key.epoch
            log.info("using the keys of an epoch", epoch=own.key.epoch, records=own.ledger.number)
        return own

    def _serve(self, broker: Broker, own: OwnFiles) -> None:
        """Answer records until the files change, or the federation has finished.

        All records are read: each changes the ledger.
        """
        ledger, wait_s = own.ledger, CATCH_UP_S
        due: Decision | None = None
        finished: Finished | None = None
        with ExitStack() as stack:
            # First, so that nothing is missed that the others say about a record.
            others = stack.enter_context(others_of(broker, self.topology, own)) if self.compares else None
            reader = stack.enter_context(
                broker.read_stream(self.topology.closes.name, offset="first", prefetch=PREFETCH)
            )
            log.info("reading the close records", epoch=own.key.epoch, seen=ledger.number)
            while not self.stop.is_set():
                is_busy = due or (others and others.waits)
                body = reader.next_body(wait_s if is_busy else max(wait_s, POLL_S))
                if self.files.have_changed():
                    return
                if body is None:
                    # From now on a record is answered at once.
                    wait_s = 0.0
                    if due and not self._save(due.ledger, own):
                        return
                    ready = others.compared(due) if others else due
                    due = None
                    if ready:
                        self._answer(broker, own, ready)
                    if finished:
                        self._result = replace(self._result, ended_by=finished.because)
                        return
                    continue
                try:
                    found = decode_for_helper(body)
                except WireError as error:
                    log.warning("passed over a message that is no close record", because=str(error))
                    continue
                finished = found if isinstance(found, Finished) else None
                if isinstance(found, CloseRecord):
                    due = self._decide(found, ledger, own.registry)
                    ledger = due.ledger

    def _decide(self, close: CloseRecord, ledger: Ledger, registry: Registry) -> Decision:
        decision = decide(close, ledger, registry, helper=self.name, fewest_workers=self.fewest_workers)
        if close.epoch > max(ledger.epoch, self._missed_epoch):
            self._missed_epoch = close.epoch
            log.warning(
                "a sum of a newer epoch waits: get the new key, ledger and registry from the operator",
                epoch=ledger.epoch,
                needed=close.epoch,
            )
        log.debug("read a close record", number=close.number, epoch=close.epoch, own_epoch=ledger.epoch)
        return decision

    def _answer(self, broker: Broker, own: OwnFiles, decision: Decision) -> None:
        answer = decision.answer
        if answer is None:
            return
        if answer.refused:
            self._refuse(broker, answer.close, answer.refused, decision.ledger)
        else:
            self._open(broker, own, answer, decision.ledger)

    def _save(self, ledger: Ledger, own: OwnFiles) -> bool:
        while not self.stop.is_set():
            # The operator may have put a ledger of another epoch there.
            if self.files.have_changed():
                return False
            try:
                self.files.save(ledger, own.key)
            except ConfigError as error:
                log.warning("nothing is opened until the ledger can be written", because=str(error))
                self.stop.wait(WRITE_AGAIN_S)
            else:
                return True
        return False

    def _open(self, broker: Broker, own: OwnFiles, answer: Answer, ledger: Ledger) -> None:
        close, began = answer.close, time.monotonic()
        try:
            for opening in openings(close, own.key, own.registry, of_groups=answer.groups):
                if self.stop.is_set():
                    return
                self._publish(broker, opening_pieces(opening), close, "opening")
        except ValueError:
            # Of the library of ciphers: nothing can be agreed on with a key of low order.
            unusable = Refused("unusable-key", "a worker's public key in the registry cannot be used")
            self._refuse(broker, close, unusable, ledger)
            return
        seconds = time.monotonic() - began
        self._result = replace(self._result, opened=self._result.opened + 1)
        self.event_sink(Opened(close.version, close.number, seconds))
        log.info(
            "opened a sum",
            version=close.version,
            number=close.number,
            updates=len(close.updates),
            groups=len(answer.groups),
            seconds=round(seconds, 3),
        )

    def _refuse(self, broker: Broker, close: CloseRecord, refused: Refused, ledger: Ledger) -> None:
        self._result = replace(self._result, refused=self._result.refused + 1)
        self.event_sink(Withheld(close.version, close.number, refused.rule, refused.detail))
        log.warning(
            "refused to open a sum",
            version=close.version,
            number=close.number,
            rule=refused.rule,
            because=refused.detail,
        )
        body = encode_not_opened(not_opened(close, self.name, refused, ledger))
        self._publish(broker, body, close, "not-opened")

    def _publish(self, broker: Broker, body: Body, close: CloseRecord, kind: str) -> None:
        headers = {"kind": kind, "id": f"{self.name}/{close.epoch}/{close.number}"}
        try:
            broker.publish(self.topology.openings_in.name, "", body, headers)
        except Unroutable:
            log.debug("no leader listens now, and the next one asks again", number=close.number)
        except MessageTooLarge as error:
            log.warning("an answer is too large for the broker", number=close.number, because=str(error))
