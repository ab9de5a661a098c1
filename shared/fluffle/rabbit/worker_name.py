"""One process at a time works under a worker's name: the first one goes on, and each learns of the other.

Two queues stand for the name. Only the user of that name may declare and consume them (fluffle.rights), and
nobody may publish to them, so that they never hold a message.

The exclusive consumer of the **lock** has the name. When its connection is gone, RabbitMQ accepts the next
consumer.

The **bell** carries the holder's label in its argument x-dead-letter-routing-key: RabbitMQ quotes it to a
process that declares the queue with another one. The holder consumes the bell, too: a newcomer "rings" by
deleting it, and RabbitMQ then cancels the holder's consumer.

A newcomer that finds the lock taken rings, and declares the bell with a note: its own label. A working holder
reads the note, reports the newcomer, and declares its own bell again. A holder that does not answer is frozen
or dead, and loses the lock when RabbitMQ misses its heartbeats. docs/decisions/0017 has the reasons.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress

import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.errors import AccessRefused, ConnectionLost, NameTaken
from fluffle.logs import get_logger
from fluffle.rabbit.connection import RabbitConnection
from fluffle.rabbit.locks import VANISHED, declare_temporary, try_to_lock
from fluffle.topology import Topology

log = get_logger(__name__)

# By then a newcomer has left its note.
READ_NOTE_AFTER_S = 0.5
# By then a working holder has declared its bell again.
ANSWERS_WITHIN_S = 5.0
LOOK_EVERY_S = 1.0
# Because other processes may declare or delete the same queue at the same moment.
ATTEMPTS = 3
# While the cluster's node with one of the queues is down.
RETRY_AFTER_S = 60.0
NOTE = "waiting: "
NOBODY, UNREADABLE = "?", ""
# RabbitMQ cuts its errors to 255 bytes: after long names, nothing is left of the label.
QUOTED_LABEL = re.compile(r"but current is '(?P<label>[^']*)")
OTHER_LABEL = "inequivalent"


class WorkerName:
    """A worker's name, for one connection."""

    def __init__(
        self,
        connection: RabbitConnection,
        topology: Topology,
        worker: str,
        *,
        label: str,
        on_rival: Callable[[str], None],
    ) -> None:
        """See `fluffle.broker.Broker.take_name`."""
        self._connection = connection
        self._worker = worker
        self._lock = topology.worker_lock(worker)
        self._bell = topology.worker_bell(worker)
        self._exchange = topology.member_events_in.name
        self._label = label
        self._on_rival = on_rival
        self._has_bell = self._was_rung = False

    def take(self) -> None:
        """Take the name, or ring and find out who has it. Raises NameTaken or ConnectionLost."""
        if self._takes_lock():
            return
        holder = self._connection.on_own_channel(self._declare_bell, self._bell)
        self._connection.on_own_channel(self._ring, self._bell)
        give_up_at = time.monotonic() + ANSWERS_WITHIN_S
        while time.monotonic() < give_up_at and not self._connection.stop.wait(LOOK_EVERY_S):
            if self._takes_lock():
                return
            found = self._connection.on_own_channel(self._leave_note, self._bell)
            if found is not None and not found.startswith(NOTE):
                raise self._taken_by(self._connection.on_own_channel(self._declare_bell, self._bell) or found)
        if holder in {None, NOBODY, UNREADABLE} or holder.startswith(NOTE):
            holder = "another process"
        if holder == self._label:
            holder = "the last connection of this process"
        raise ConnectionLost(
            f"{holder} holds the worker name {self._worker!r} and does not answer: waiting until RabbitMQ "
            "notices that it is gone"
        )

    def _taken_by(self, label: str) -> NameTaken:
        return NameTaken(
            f"another process works under the name {self._worker!r}: {label or 'which one is unknown'}. That "
            "one goes on. Stop one of the two, or give this one another name: --name for a worker, and its "
            "own key for a helper"
        )

    def _takes_lock(self) -> bool:
        try:
            return self._connection.call(self._begin, f"the worker name {self._worker!r}")
        except AccessRefused as error:
            raise AccessRefused(
                f"{error}. If an older Fluffle made this user, remove and add it again (fluffle user)"
            ) from error

    def _begin(self) -> bool:
        """Take the lock and declare the bell; tell whether that was possible. On the connection's thread."""
        has_lock = self._consume_lock()
        if has_lock:
            self._show_bell()
        elif has_lock is None:
            log.warning(
                "the cluster's node with the lock of this worker's name is down: going on, although another "
                "process under the same name would not be noticed",
                queue=self._lock,
            )
            self._connection.call_later(RETRY_AFTER_S, self._begin_later)
        return has_lock is not False

    def _begin_later(self) -> None:
        if not self._begin():
            self._connection.failure = self._taken_by("it came while the cluster could not keep the name")

    def _consume_lock(self) -> bool | None:
        """Take the lock; False when another connection has it, None when it is out of reach."""
        for _ in range(ATTEMPTS):
            channel = self._connection.new_channel()
            try:
                return try_to_lock(channel, self._lock, on_cancel=self._on_lock_lost)
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code != 404:
                    raise
                # Its process has died, or its node is down.
                self._remove(self._lock)
        return None

    def _remove(self, queue: str) -> None:
        with suppress(pika.exceptions.ChannelClosedByBroker):
            self._connection.on_new_channel(lambda channel: channel.queue_delete(queue))

    def _on_lock_lost(self, _method: object) -> None:
        # Its node is down, or somebody has deleted it.
        self._connection.call_later(READ_NOTE_AFTER_S, self._begin_later)

    def _ring(self, channel: BlockingChannel) -> None:
        channel.queue_delete(self._bell)
        self._leave_note(channel)

    def _leave_note(self, channel: BlockingChannel) -> str | None:
        return self._declare_bell(channel, NOTE + self._label)

    def _declare_bell(self, channel: BlockingChannel, label: str = NOBODY) -> str | None:
        """Declare the bell with a label; return the label of the existing bell if that differs.

        NOBODY only asks for it: the shorter this label, the more room RabbitMQ's error has for the other one.
        """
        # RabbitMQ requires an exchange with the key. No message will ever go there.
        says = {"x-dead-letter-exchange": self._exchange, "x-dead-letter-routing-key": label}
        try:
            declare_temporary(channel, self._bell, says)
        except pika.exceptions.ChannelClosedByBroker as error:
            if OTHER_LABEL not in error.reply_text:
                raise
            quoted = QUOTED_LABEL.search(error.reply_text)
            return quoted["label"] if quoted else UNREADABLE
        return None

    def _show_bell(self) -> None:
        """Declare the holder's bell, and report newcomers whose notes it finds. On the thread."""
        again_after_s = READ_NOTE_AFTER_S
        try:
            if self._has_bell or self._declares_own_bell():
                return
        except pika.exceptions.ChannelClosedByBroker as error:
            # A newcomer may have rung meanwhile. For other errors the lock alone must do.
            if VANISHED not in error.reply_text:
                log.info("other processes cannot ask for this worker's name", because=error.reply_text)
                again_after_s = RETRY_AFTER_S
        self._connection.call_later(again_after_s, self._show_bell)

    def _declares_own_bell(self) -> bool:
        # A newcomer that looks for an answer at this moment may leave its note again.
        rivals: set[str] = set()
        for _ in range(ATTEMPTS):
            found = self._connection.on_new_channel(self._declare_bell)
            if found == UNREADABLE and self._was_rung:
                rivals.add("unknown")
            elif found is not None and found.startswith(NOTE):
                rivals.add(found.removeprefix(NOTE))
            self._remove(self._bell)
            channel = self._connection.new_channel()
            if self._declare_bell(channel, self._label) is None:
                channel.add_on_cancel_callback(self._on_ring)
                channel.basic_consume(self._bell, lambda *_: None)
                self._has_bell = True
                break
        for rival in rivals - {self._label}:
            self._on_rival(rival)
        return self._has_bell

    def _on_ring(self, _method: object) -> None:
        self._has_bell, self._was_rung = False, True
        self._connection.call_later(READ_NOTE_AFTER_S, self._show_bell)
