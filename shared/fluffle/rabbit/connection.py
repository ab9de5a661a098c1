"""The thread that owns a connection to RabbitMQ.

Heartbeats go on while the caller trains or folds: the caller's thread never touches a socket. It hands over
functions, and waits for what they give.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.address import BrokerAddress, parse_address
from fluffle.errors import BrokerError, ConfigError, ConnectionLost
from fluffle.logs import get_logger
from fluffle.rabbit.faults import PIKA_ERRORS, translate_error
from fluffle.rabbit.opening import open_connection, unless_stopped
from fluffle.rabbit.properties import read_properties_cautiously
from fluffle.transfers import LARGE_BYTES, LOOK_EVERY_S, Transfer

log = get_logger(__name__)
Result = TypeVar("Result")

BLOCKED_TIMEOUT_S = 300.0
# Not counted while an alarm blocks the connection, for which there is the above.
ANSWER_TIMEOUT_S = 60.0
# What is still on its way at this speed is no sign of a broker that hangs.
SLOWEST_LINK_BYTES_PER_S = 256 * 1024
POLL_S = 1.0
SILENCE_S = 30.0
# From one refusal of what is told to the next try, twice as long each time.
TELL_AGAIN_S, TELL_AGAIN_AT_MOST_S = 1.0, 60.0
# Who is asked to stop waits so long for an answer: less than what containers are given to end.
LEAVE_AFTER_S = 4.0
# The thread is a daemon: what it still waits for ends with the process.
CLOSE_PATIENCE_S = 5.0


class RabbitConnection:
    """One connection and its main channel; it never reconnects.

    `is_full` says when no more is to be read for now, and `on_end` is called once, on the thread, when the
    connection has ended for whatever reason. Functions given to `call`, `post` and `on_own_channel` run on
    the thread; nothing else may use `channel`. A consumer has its connection's `name` as its tag, for
    RabbitMQ's UI.
    """

    def __init__(
        self,
        address: str | BrokerAddress,
        *,
        name: str,
        heartbeat_s: int,
        is_full: Callable[[], bool] = lambda: False,
        on_end: Callable[[], None] = lambda: None,
        stop: threading.Event | None = None,
    ) -> None:
        """Connect, to any of the nodes that the address names. `name` is what RabbitMQ's UI shows.

        Soon after `stop` is set, nobody waits for answers any more: a broker with an alarm gives none.

        Raises ConnectionLost when nothing answers (it may come later), LimitReached when the broker accepts
        no more connections for now, TlsRefused when one side does not trust the other, LoginRefused when the
        broker does not let this user in, ConfigError for a URL or a file that cannot be read.
        """
        if isinstance(address, str):
            address = _parsed(address)
        self.name = name
        self.user, _ = address.login()
        read_properties_cautiously()
        self.stop = stop or threading.Event()
        opens = partial(self._open, address, heartbeat_s)
        self._connection, self._where, self.channel = unless_stopped(opens, self.stop)
        self._opened_at = time.monotonic()
        self._ended_at: float | None = None
        self.failure: BrokerError | None = None
        self._is_full = is_full
        self._on_end = on_end
        self._given_up = False
        self._unconfirmed: BlockingChannel | None = None
        self._tells_from, self._tells_again_s = 0.0, TELL_AGAIN_S
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._tell_of_alarms()
        self._thread = threading.Thread(target=self._run, name="rabbitmq", daemon=True)
        self._thread.start()

    def _open(
        self, address: BrokerAddress, heartbeat_s: int
    ) -> tuple[pika.BlockingConnection, str, BlockingChannel]:
        connection, where = open_connection(
            address, name=self.name, heartbeat_s=heartbeat_s, blocked_timeout_s=BLOCKED_TIMEOUT_S
        )
        try:
            channel = _confirming_channel(connection)
        except PIKA_ERRORS as error:
            with suppress(*PIKA_ERRORS):
                connection.close()
            raise translate_error(error, where=where, user=self.user, what="") from error
        return connection, where, channel

    def call(self, function: Callable[[], Result], what: str, *, size_bytes: int = 0) -> Result:
        """Run a function on the thread and return what it gives; `what` it is about stands in its errors.

        A broker whose queue has lost its members neither answers nor confirms, for ever, while its heartbeats
        go on; nor does RabbitMQ 3.10 now and then for what it was sent while a stream changed its leader. The
        log says so meanwhile, and in the end the connection is given up: ConnectionLost.
        `size_bytes` is what the function sends, which may take its time; how far it is, is shown meanwhile.
        """
        future: Future[Result] = Future()

        def command() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(function())
            except PIKA_ERRORS as error:
                future.set_exception(self._translated(error, what))
            except Exception as error:  # a mistake in the call: its caller's, while this thread goes on
                future.set_exception(error)

        self._ask(command)
        with Transfer("sending") as transfer:

            def show() -> None:
                if future.running():
                    transfer.show(max(0, size_bytes - self._unsent_bytes), size_bytes)

            return self._answer(future, what, size_bytes, show)

    def _answer(self, future: Future[Result], what: str, size_bytes: int, show: Callable[[], None]) -> Result:
        """Wait for what a command gives; `show` how far it is meanwhile."""
        patience_s = ANSWER_TIMEOUT_S + size_bytes / SLOWEST_LINK_BYTES_PER_S
        look_every_s = LOOK_EVERY_S if size_bytes >= LARGE_BYTES else POLL_S
        asked_at, warn_after_s = time.monotonic(), SILENCE_S
        answer_by, leave_at = asked_at + patience_s, math.inf
        while self._thread.is_alive() or future.done():
            with suppress(TimeoutError):
                return future.result(timeout=look_every_s)
            show()
            silent_s = time.monotonic() - asked_at
            if silent_s > warn_after_s:
                # A slow line, an alarm, or a queue with too few nodes of its cluster: all of them may end.
                log.warning("RabbitMQ does not answer yet", about=what, seconds=round(warn_after_s))
                warn_after_s *= 2
            if self._is_blocked:
                answer_by = time.monotonic() + patience_s
            if time.monotonic() > answer_by:
                self._give_up(f"no answer about {what} for {silent_s:.0f} s")
            if self.stop.is_set():
                leave_at = min(leave_at, time.monotonic() + LEAVE_AFTER_S)
            if time.monotonic() > leave_at:
                self._given_up = True
                self.failure = ConnectionLost(f"RabbitMQ had not answered about {what} when asked to stop")
                raise self.failure
        raise self.failure or ConnectionLost("the connection is closed")

    def post(self, function: Callable[[], None]) -> None:
        """Run a function on the thread, before all that is asked of it later, and wait for nothing.

        What goes wrong ends the connection.
        """
        if self.failure:
            raise self.failure
        self._ask(function)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run a function on the thread after a while; for functions that run there."""
        self._connection.call_later(delay_s, function)

    def on_own_channel(self, function: Callable[[BlockingChannel], Result], what: str) -> Result:
        """Run a function on a channel of its own: an error closes that channel, and nothing else."""
        return self.call(lambda: self.on_new_channel(function), what)

    def on_new_channel(self, function: Callable[[BlockingChannel], Result]) -> Result:
        """Run a function on a channel that is closed afterwards; for functions that run on the thread."""
        channel = self.new_channel()
        try:
            return function(channel)
        finally:
            if channel.is_open:
                channel.close()

    def publish_unconfirmed(self, send: Callable[[BlockingChannel], None]) -> None:
        """Send something that may be lost, on a channel for such things, without waiting for anything.

        Nothing is sent while an alarm would hold it up, nor for a while after RabbitMQ has refused something:
        what was not there yet may be there later.
        """

        def command() -> None:
            if self._is_blocked:
                return
            if self._unconfirmed is None or not self._unconfirmed.is_open:
                if time.monotonic() < self._tells_from:
                    return
                self._tells_from = time.monotonic() + self._tells_again_s
                self._tells_again_s = min(TELL_AGAIN_AT_MOST_S, 2 * self._tells_again_s)
                self._unconfirmed = self._connection.channel()
            if self._unconfirmed.is_open:
                with suppress(pika.exceptions.AMQPChannelError):
                    send(self._unconfirmed)

        self._ask(command)

    @property
    def server(self) -> str:
        """What the broker says that it is, such as RabbitMQ 4.0.5."""
        said = self._connection._impl.server_properties or {}
        return f"{said.get('product', 'an unknown broker')} {said.get('version', '')}".strip()

    @property
    def lived_s(self) -> float:
        """The seconds from its opening to its end, or until now."""
        return (self._ended_at or time.monotonic()) - self._opened_at

    @property
    def traffic_bytes(self) -> int:
        """The bytes that have come so far; heartbeats are 8 each."""
        return int(self._connection._impl.bytes_received)

    @staticmethod
    def arriving(channel: BlockingChannel) -> tuple[int, int]:
        """Return the bytes that have come of the message that is on its way, and its size, or zeros."""
        done_bytes, size_bytes = channel._impl._content_assembler.progress
        return done_bytes, size_bytes

    @property
    def _unsent_bytes(self) -> int:
        transport = self._connection._impl._transport
        return transport.get_write_buffer_size() if transport else 0

    @property
    def _is_blocked(self) -> bool:
        """Whether an alarm of the broker holds up what this connection publishes."""
        return self._connection._impl._blocked_conn_timer is not None

    def new_channel(self) -> BlockingChannel:
        """Open one more channel; for functions that run on the thread."""
        return self._connection.channel()

    def renew_channel(self) -> None:
        """Put another one in the place of the main channel; for functions that run on the thread."""
        old, self.channel = self.channel, _confirming_channel(self._connection)
        old.close()

    def wake(self) -> None:
        """Let the thread look again at what there is to do."""
        self._wake.set()
        # As BlockingConnection's own does it, but without a timer and a second turn of the loop.
        self._connection._impl.ioloop.add_callback_threadsafe(self._end_turn)

    def close(self) -> None:
        """End the connection, and wait for its thread unless the broker hangs."""
        self._closing = True
        self.wake()
        self._thread.join(0 if self._given_up else CLOSE_PATIENCE_S)

    def _give_up(self, why: str) -> None:
        """End the connection even if its thread waits inside pika, as pika itself does without heartbeats."""
        impl = self._connection._impl
        error = pika.exceptions.AMQPHeartbeatTimeout(why)
        impl._adapter_add_callback_threadsafe(lambda: impl._terminate_stream(error))

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
            # What was to be told at the end.
            self._do_what_is_asked()
            self._leave()
        except BrokerError as error:
            self.failure = error
        except PIKA_ERRORS as error:
            self.failure = self._translated(error)
        finally:
            self._ended_at = time.monotonic()
            self.failure = self.failure or ConnectionLost("the connection is closed")
            self._on_end()
            if self._connection.is_open:
                with suppress(*PIKA_ERRORS):
                    self._leave()

    def _leave(self) -> None:
        # BlockingConnection.close goes through a list of channels, and raises AttributeError when RabbitMQ
        # closes one of them meanwhile. Closing the connection underneath closes them too.
        self._connection._impl.close()
        self._connection._flush_output(self._connection._closed_result.is_ready)

    def _ask(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self.wake()

    def _do_what_is_asked(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _turn(self) -> None:
        self._wake.clear()
        self._do_what_is_asked()
        if not self.channel.is_open:
            # A consumer timeout or a missing right closes the channel without an exception here.
            raise ConnectionLost(f"RabbitMQ closed the channel ({self.channel._closing_reason})")
        if self._is_full():
            # Back-pressure through the socket; a glance once in a while keeps heartbeats going.
            self._wake.wait(POLL_S)
            self._connection.process_data_events(time_limit=0)
        elif not self._commands:
            self._connection.process_data_events(time_limit=POLL_S)
        if self.failure:
            raise self.failure

    def _end_turn(self) -> None:
        # pika's own way to let process_data_events return: no channel has a negative number.
        self._connection._request_channel_dispatch(-1)

    def _tell_of_alarms(self) -> None:
        """Log when RabbitMQ takes no messages for want of memory or disk, and when it does again."""

        def blocked(_connection: object, frame: pika.frame.Method) -> None:
            log.warning("RabbitMQ takes no messages for now: waiting", because=frame.method.reason)

        def unblocked(_connection: object, _frame: pika.frame.Method) -> None:
            log.info("RabbitMQ takes messages again")

        # BlockingConnection would tell of it only when the call that hangs in an alarm has returned.
        self._connection._impl.add_on_connection_blocked_callback(blocked)
        self._connection._impl.add_on_connection_unblocked_callback(unblocked)

    def _translated(self, error: Exception, what: str = "") -> BrokerError:
        return translate_error(error, where=self._where, user=self.user, what=what)


def _confirming_channel(connection: pika.BlockingConnection) -> BlockingChannel:
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


def _parsed(url: str) -> BrokerAddress:
    try:
        return parse_address(url)
    except ValueError as error:
        raise ConfigError(f"the broker's URL {error}") from error
