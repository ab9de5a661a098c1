"""What a helper tells the other helpers about close records, and hears of them (`--helpers-compare`)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fluffle.broker import Broker, Listener
from fluffle.errors import WireError
from fluffle.logs import get_logger
from fluffle.secure.helping import Refused
from fluffle.topology import Topology
from fluffle_helper.comparing import Comparison, SeenClose, decode_seen, encode_seen
from fluffle_helper.deciding import Decision
from fluffle_helper.own_files import OwnFiles

log = get_logger(__name__)

# While a decision waits for the others, new close records are looked for so often.
LOOK_EVERY_S = 0.05
# New close records are looked for after so long even if other helpers never stop talking.
LISTEN_FOR_S = 0.5
# By then a helper that is at work has said what it has seen.
SAY_AFTER_S = 10.0


class Others:
    """Holds a decision back until enough helpers have seen the same record."""

    def __init__(self, broker: Broker, listener: Listener, exchange: str, own: OwnFiles) -> None:
        self._broker, self._listener, self._exchange, self._own = broker, listener, exchange, own
        registry = own.registry
        self._heard = Comparison(registry.federation, registry.epoch, registry.committee)
        self._held: Decision | None = None
        self._say_at = 0.0

    @property
    def waits(self) -> bool:
        """Whether a decision is held back."""
        return self._held is not None

    def compared(self, new: Decision | None) -> Decision | None:
        """Take in a new decision, if there is one, and return the decision that is to be carried out now.

        The ledger of the decision must be on the disk. A new decision takes the place of one that is held.
        """
        if new:
            self._tell(new)
            self._held, self._say_at = None, time.monotonic() + SAY_AFTER_S
            if new.answer is None or new.answer.refused:
                return new
            self._held = new
        if self._held is None:
            return None
        self._listen()
        held, ledger = self._held, self._held.ledger
        if others := self._heard.others(ledger):
            seen = f"{', '.join(others)} has seen another record of number {ledger.number}"
            refused = Refused("different-records", seen)
            self._held = None
            return replace(held, answer=held.answer and replace(held.answer, groups=(), refused=refused))
        if self._heard.agree(ledger):
            self._held = None
            return held
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SAY_AFTER_S
            missing = ", ".join(self._heard.missing(ledger))
            log.warning("waiting until other helpers have seen a close record", missing=missing)
        return None

    def _tell(self, decision: Decision) -> None:
        ledger = decision.ledger
        if ledger.number:
            seen = SeenClose(
                federation=self._own.registry.federation,
                epoch=ledger.epoch,
                helper=self._own.key.name,
                number=ledger.number,
                digest=ledger.digest,
            )
            self._broker.publish(self._exchange, "", encode_seen(seen), {"kind": "seen-close"})

    def _listen(self) -> None:
        """Hear at least one message, which this waits for, and more for a moment if they have come."""
        wait_s, until = LOOK_EVERY_S, time.monotonic() + LISTEN_FOR_S
        while time.monotonic() < until and (delivery := self._listener.next_delivery(wait_s)):
            wait_s = 0.0
            try:
                self._heard.hear(decode_seen(delivery.body), delivery.user)
            except WireError as error:
                log.warning("passed over what another helper says", because=str(error))


@contextmanager
def others_of(broker: Broker, topology: Topology, own: OwnFiles) -> Iterator[Others]:
    """Listen to the other helpers while the block lasts."""
    exchange = topology.digests_in.name
    with broker.listen(exchange, name=own.key.name) as listener:
        yield Others(broker, listener, exchange, own)
