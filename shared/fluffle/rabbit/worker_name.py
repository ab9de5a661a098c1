"""One process at a time works under a worker's name: the first one goes on, and both learn of each other.

Two queues stand for the name. Only the user of that name may declare and consume them (fluffle.rights), and
nobody may send to them, so that they never hold a message. Whoever is the exclusive consumer of the **lock**
has the name; when that connection is gone, RabbitMQ lets the next one consume. The **bell** says who has the
name, in its dead-letter routing key, which RabbitMQ quotes to whoever declares it with another one. Deleting
it rings: RabbitMQ cancels the holder's consumer.

A process that finds the lock taken rings and leaves a note, which is a bell that says who waits. A holder
that works reads the note, tells of it, and puts its own bell back. One that does not is frozen or gone, and
loses the lock when RabbitMQ misses its heartbeats. docs/decisions/0017 has the reasons.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import AccessRefused, ConnectionLost, NameTaken
from fluffle.logs import get_logger
from fluffle.rabbit.connection import RabbitConnection
from fluffle.rabbit.faults import NOT_FOUND
from fluffle.rabbit.sole_consumer import VANISHED, becomes_sole_consumer, declare_for_now
from fluffle.topology import Topology

log = get_logger(__name__)

# A newcomer has left its note by then.
READ_NOTE_AFTER_S = 0.5
# A holder that works has put its bell back by then.
ANSWERS_WITHIN_S = 5.0
LOOK_EVERY_S = 1.0
# Others may declare or delete the same queue at the same moment.
ATTEMPTS = 3
# While the node of a cluster is down that has one of the queues.
AGAIN_AFTER_S = 60.0
NOTE = "waiting: "
NOBODY, UNREADABLE = "?", ""
# RabbitMQ cuts its words after 255 bytes: of a plate behind long names nothing is left.
QUOTED_PLATE = re.compile(r"but current is '(?P<plate>[^']*)")
OTHER_PLATE = "inequivalent"


class WorkerName:
    """A worker's name, for one connection."""

    def __init__(
        self,
        connection: RabbitConnection,
        topology: Topology,
        worker: str,
        *,
        plate: str,
        on_rival: Callable[[str], None],
    ) -> None:
        """Prepare to take a name; see `fluffle.broker.Broker.take_name`."""
        self._connection = connection
        self._worker = worker
        self._lock = topology.worker_lock(worker)
        self._bell = topology.worker_bell(worker)
        self._exchange = topology.member_events_in.name
        self._plate = plate
        self._on_rival = on_rival
        self._has_bell = self._was_rung = False

    def take(self) -> None:
        """Take the name, or ring and learn who has it. Raises NameTaken or ConnectionLost."""
        if self._takes_lock():
            return
        holder = self._connection.on_own_channel(self._read_bell, self._bell)
        self._connection.on_own_channel(self._ring, self._bell)
        give_up_at = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < give_up_at and not self._connection.stop.wait(LOOK_EVERY_S):
            if self._takes_lock():
                return
            found = self._connection.on_own_channel(self._leave_note, self._bell)
            if found is not None and not found.startswith(NOTE):
                raise self._taken_by(self._connection.on_own_channel(self._read_bell, self._bell) or found)
        if holder in {None, NOBODY, UNREADABLE} or holder.startswith(NOTE):
            holder = "another process"
        if holder == self._plate:
            holder = "the last connection of this process"
        raise ConnectionLost(
            f"{holder} holds the worker name {self._worker!r} and does not answer: waiting until RabbitMQ "
            "notices that it is gone"
        )

    def _taken_by(self, plate: str) -> NameTaken:
        return NameTaken(
            f"another process works under the worker name {self._worker!r}: "
            f"{plate or 'which one is unknown'}. That one goes on. Stop one of the two, or give this one a "
            "--name of its own"
        )

    def _takes_lock(self) -> bool:
        try:
            return self._connection.call(self._begin, f"the worker name {self._worker!r}")
        except AccessRefused as error:
            raise AccessRefused(
                f"{error}. If an older Fluffle made this user, remove and add it again (fluffle user)"
            ) from error

    def _begin(self) -> bool:
        """Take the lock and hang the bell, and tell whether that was possible. On the connection's thread."""
        has_lock = self._consume_lock()
        if has_lock:
            self._hang_bell()
        elif has_lock is None:
            log.warning(
                "the node of the cluster that keeps this worker's name is down: going on, though another "
                "process under the same name would go unnoticed",
                queue=self._lock,
            )
            self._connection.call_later(AGAIN_AFTER_S, self._begin_later)
        return has_lock is not False

    def _begin_later(self) -> None:
        if not self._begin():
            self._connection.failure = self._taken_by("it came while the cluster could not keep the name")

    def _consume_lock(self) -> bool | None:
        """Take the lock; False when another connection has it, None when it is out of reach."""
        for _ in range(ATTEMPTS):
            channel = self._connection.new_channel()
            try:
                return becomes_sole_consumer(channel, self._lock, on_cancel=self._on_lock_lost)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                # Its process has died: then it is made anew. Or its node is down.
                self._remove(self._lock)
        return None

    def _remove(self, queue: str) -> None:
        with suppress(pika.exceptions.ChannelClosedByBroker):
            self._connection.on_new_channel(lambda channel: channel.queue_delete(queue))

    def _on_lock_lost(self, _method: object) -> None:
        # Its node is down, or somebody has deleted it.
        self._connection.call_later(READ_NOTE_AFTER_S, self._begin_later)

    def _read_bell(self, channel: BlockingChannel) -> str | None:
        # With a short key, so that there is room for the other one in RabbitMQ's words.
        return self._declare_bell(channel, NOBODY)

    def _ring(self, channel: BlockingChannel) -> None:
        channel.queue_delete(self._bell)
        self._leave_note(channel)

    def _leave_note(self, channel: BlockingChannel) -> str | None:
        return self._declare_bell(channel, NOTE + self._plate)

    def _declare_bell(self, channel: BlockingChannel, plate: str) -> str | None:
        """Declare the bell with a plate; return the plate of the one that is there, if it has another one."""
        # RabbitMQ wants an exchange for the key. There is nothing that could go there.
        says = {"x-dead-letter-exchange": self._exchange, "x-dead-letter-routing-key": plate}
        try:
            declare_for_now(channel, self._bell, says)
        except pika.exceptions.ChannelClosedByBroker as error:
            if OTHER_PLATE not in error.reply_text:
                raise
            quoted = QUOTED_PLATE.search(error.reply_text)
            return quoted["plate"] if quoted else UNREADABLE
        return None

    def _hang_bell(self) -> None:
        """Put up the bell of the holder; a note that is there is told of. On the connection's thread."""
        again_after_s = READ_NOTE_AFTER_S
        try:
            if self._has_bell or self._hangs_bell():
                return
        except pika.exceptions.ChannelClosedByBroker as error:
            # Somebody may have rung meanwhile. Else nobody can ring: the lock is what counts.
            if VANISHED not in error.reply_text:
                log.info("other processes cannot ring for this worker's name", because=error.reply_text)
                again_after_s = AGAIN_AFTER_S
        self._connection.call_later(again_after_s, self._hang_bell)

    def _hangs_bell(self) -> bool:
        # A newcomer that looks for an answer at this moment may leave its note anew.
        rivals: set[str] = set()
        for _ in range(ATTEMPTS):
            found = self._connection.on_new_channel(self._read_bell)
            if found == UNREADABLE and self._was_rung:
                rivals.add("unknown")
            elif found is not None and found.startswith(NOTE):
                rivals.add(found.removeprefix(NOTE))
            self._remove(self._bell)
            channel = self._connection.new_channel()
            if self._declare_bell(channel, self._plate) is None:
                channel.add_on_cancel_callback(self._on_ring)
                channel.basic_consume(self._bell, lambda *_: None)
                self._has_bell = True
                break
        for rival in rivals - {self._plate}:
            self._on_rival(rival)
        return self._has_bell

    def _on_ring(self, _method: object) -> None:
        self._has_bell, self._was_rung = False, True
        self._connection.call_later(READ_NOTE_AFTER_S, self._hang_bell)
