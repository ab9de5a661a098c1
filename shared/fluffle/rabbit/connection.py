"""The thread that owns a connection to RabbitMQ.

Heartbeats go on while the caller trains or folds: the caller's thread never touches a socket. It passes
functions to this thread and waits for their results.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from typing import TypeVar

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from fluffle.address import BrokerAddress, parse_address
from fluffle.errors import BrokerError, ConfigError, ConnectionLost
from fluffle.logs import get_logger
from fluffle.rabbit.faults import PIKA_ERRORS, translate_error
from fluffle.rabbit.opening import open_connection
from fluffle.transfers import LARGE_BYTES, LOOK_EVERY_S, Transfer

log = get_logger(__name__)
Result = TypeVar("Result")

BLOCKED_TIMEOUT_S = 300.0
# While an alarm blocks the connection, the above counts instead.
ANSWER_TIMEOUT_S = 60.0
# A large message may take as long as at this speed before the broker is believed to hang.
SLOWEST_LINK_BYTES_PER_S = 256 * 1024
POLL_S = 1.0
SILENCE_S = 30.0
# From one refused unconfirmed message to the next try; the time doubles with each refusal soon after that.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# After `stop`, wait this long for an answer: less than containers get to end.
STOP_PATIENCE_S = 4.0
# The thread is a daemon: if it still waits after this, it ends with the process.
CLOSE_PATIENCE_S = 5.0


class RabbitConnection:
    """One connection and its main channel; it never reconnects.

    While `is_full` returns True, nothing is read from the socket. `on_end` is called once, on the thread,
    when the connection has ended for any reason. Functions given to `call`, `post` and `on_own_channel` run
    on the thread; nothing else may use `channel`. A consumer's tag is its connection's `name`, for
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
        """Connect to any of the nodes in the address. `name` is what RabbitMQ's UI shows.

        Soon after `stop` is set, calls no longer wait for answers: a broker with an alarm gives none.

        Raises ConnectionLost when nothing answers (it may later), LimitReached when the broker accepts no
        more connections for now, LoginRefused when it refuses the user or one side does not trust the other,
        ConfigError for a URL or a file that cannot be read.
        """
        if isinstance(address, str):
            try:
                address = parse_address(address)
            except ValueError as error:
                raise ConfigError(f"the broker's URL {error}") from error
        self.name = name
        self.user, _ = address.login()
        self.stop = stop or threading.Event()
        self.failure: BrokerError | None = None
        self._is_full = is_full
        self._on_end = on_end
        self._given_up = False
        self._unconfirmed: BlockingChannel | None = None
        self._paused_until, self._pause_s = 0.0, FIRST_PAUSE_S
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened, address, heartbeat_s), name="rabbitmq", daemon=True
        )
        self._thread.start()
        while not opened.done():
            # Opening takes long when nothing answers.
            wait([opened], timeout=LOOK_EVERY_S)
            if self.stop.is_set() and not opened.done():
                self._closing = True
                raise ConnectionLost("RabbitMQ had not answered when this process was asked to stop")
        opened.result()

    def _open(self, address: BrokerAddress, heartbeat_s: int) -> None:
        self._connection, self._where = open_connection(
            address, name=self.name, heartbeat_s=heartbeat_s, blocked_timeout_s=BLOCKED_TIMEOUT_S
        )
        try:
            self.channel = _confirming_channel(self._connection)
        except PIKA_ERRORS as error:
            with suppress(*PIKA_ERRORS):
                self._connection.close()
            raise self._translated(error) from error
        self._log_alarms()

    def call(self, function: Callable[[], Result], what: str, *, size_bytes: int = 0) -> Result:
        """Run a function on the thread and return its result; error messages name `what` it was about.

        The broker may never answer, although heartbeats go on: when a queue has lost its members, and in
        RabbitMQ 3.10 sometimes when a stream changes its leader. Then the log says so, and after a while the
        connection is ended: ConnectionLost.
        `size_bytes` is the size of what the function sends: a large message gets more time, and its progress
        is shown.
        """
        future: Future[Result] = Future()

        def command() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(function())
            except PIKA_ERRORS as error:
                future.set_exception(self._translated(error, what))
            except Exception as error:  # a mistake of the caller: raised there, and this thread goes on
                future.set_exception(error)

        self._ask(command)
        with closing(Transfer("sending")) as transfer:
            return self._answer(future, what, size_bytes, transfer)

    def _answer(self, future: Future[Result], what: str, size_bytes: int, transfer: Transfer) -> Result:
        """Wait for a command's result, and show the progress of a large message meanwhile."""
        patience_s = ANSWER_TIMEOUT_S + size_bytes / SLOWEST_LINK_BYTES_PER_S
        look_every_s = LOOK_EVERY_S if size_bytes >= LARGE_BYTES else POLL_S
        asked_at, warn_after_s = time.monotonic(), SILENCE_S
        answer_by, stop_at = asked_at + patience_s, math.inf
        while self._thread.is_alive() or future.done():
            with suppress(TimeoutError):
                return future.result(timeout=look_every_s)
            if future.running():
                transfer.show(max(0, size_bytes - self._unsent_bytes), size_bytes)
            silent_s = time.monotonic() - asked_at
            if silent_s > warn_after_s:
                # A slow line, an alarm, or a queue with too few nodes of its cluster: each may pass.
                log.warning("RabbitMQ does not answer yet", about=what, seconds=round(warn_after_s))
                warn_after_s *= 2
            if self._is_blocked:
                answer_by = time.monotonic() + patience_s
            if time.monotonic() > answer_by:
                self._give_up(f"no answer about {what} for {silent_s:.0f} s")
            if self.stop.is_set():
                stop_at = min(stop_at, time.monotonic() + STOP_PATIENCE_S)
            if time.monotonic() > stop_at:
                self._given_up = True
                self.failure = ConnectionLost(f"RabbitMQ had not answered about {what} when asked to stop")
                raise self.failure
        raise self.failure or ConnectionLost("the connection is closed")

    def post(self, function: Callable[[], None]) -> None:
        """Run a function on the thread, before all later ones, without waiting for it.

        An error in it ends the connection.
        """
        if self.failure:
            raise self.failure
        self._ask(function)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run a function on the thread later. Call this on the thread only."""
        self._connection.call_later(delay_s, function)

    def on_own_channel(self, function: Callable[[BlockingChannel], Result], what: str) -> Result:
        """Run a function on a channel of its own: an error closes that channel, and nothing else."""
        return self.call(lambda: self.on_new_channel(function), what)

    def on_new_channel(self, function: Callable[[BlockingChannel], Result]) -> Result:
        """Run a function on a channel that is closed afterwards. Call this on the thread only."""
        channel = self.new_channel()
        try:
            return function(channel)
        finally:
            if channel.is_open:
                channel.close()

    def publish_unconfirmed(self, send: Callable[[BlockingChannel], None]) -> None:
        """Send a message that may be lost, on a channel for such messages, without waiting for it.

        It is dropped while an alarm blocks the connection, and for a while after RabbitMQ has refused one:
        the exchange may not exist yet.
        """

        def command() -> None:
            if self._is_blocked:
                return
            if self._unconfirmed is None or not self._unconfirmed.is_open:
                if time.monotonic() < self._paused_until:
                    return
                if time.monotonic() > self._paused_until + LONGEST_PAUSE_S:
                    self._pause_s = FIRST_PAUSE_S
                self._paused_until = time.monotonic() + self._pause_s
                self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
                self._unconfirmed = self._connection.channel()
            if self._unconfirmed.is_open:
                with suppress(pika.exceptions.AMQPChannelError):
                    send(self._unconfirmed)

        self._ask(command)

    @property
    def server(self) -> str:
        """The broker's product and version, such as RabbitMQ 4.0.5."""
        said = self._connection._impl.server_properties or {}
        return f"{said.get('product', 'an unknown broker')} {said.get('version', '')}".strip()

    @property
    def traffic_bytes(self) -> int:
        """The bytes received so far; a heartbeat has 8."""
        return int(self._connection._impl.bytes_received)

    @staticmethod
    def arriving(channel: BlockingChannel) -> tuple[int, int]:
        """Return how many bytes of an incoming message were received, and its size; zeros without one."""
        done_bytes, size_bytes = channel._impl._content_assembler.progress
        return done_bytes, size_bytes

    @property
    def _unsent_bytes(self) -> int:
        transport = self._connection._impl._transport
        return transport.get_write_buffer_size() if transport else 0

    @property
    def _is_blocked(self) -> bool:
        """Whether an alarm of the broker blocks what this connection publishes."""
        return self._connection._impl._blocked_conn_timer is not None

    def new_channel(self) -> BlockingChannel:
        """Open one more channel. Call this on the thread only."""
        return self._connection.channel()

    def renew_channel(self) -> None:
        """Replace the main channel. Call this on the thread only."""
        old, self.channel = self.channel, _confirming_channel(self._connection)
        old.close()

    def wake(self) -> None:
        """Make the thread look for work at once."""
        # While this is set, the thread ends its turn, and then clears it and takes all commands.
        if self._wake.is_set():
            return
        self._wake.set()
        # Like BlockingConnection.add_callback_threadsafe, but without a timer and a second turn of its loop.
        self._connection._impl.ioloop.add_callback_threadsafe(self.end_turn)

    def close(self) -> None:
        """End the connection, and wait for its thread unless the broker hangs."""
        self._closing = True
        self.wake()
        self._thread.join(0 if self._given_up else CLOSE_PATIENCE_S)

    def _give_up(self, why: str) -> None:
        """End the connection even if its thread waits inside pika, as pika does without heartbeats."""
        impl = self._connection._impl
        error = pika.exceptions.AMQPHeartbeatTimeout(why)
        impl._adapter_add_callback_threadsafe(lambda: impl._terminate_stream(error))

    def _run(self, opened: Future[None], address: BrokerAddress, heartbeat_s: int) -> None:
        try:
            self._open(address, heartbeat_s)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while not self._closing:
                self._turn()
            # Such as the last events.
            self._do_what_is_asked()
            self._leave()
        except BrokerError as error:
            self.failure = error
        except PIKA_ERRORS as error:
            self.failure = self._translated(error)
        finally:
            self.failure = self.failure or ConnectionLost("the connection is closed")
            self._on_end()
            if self._connection.is_open:
                with suppress(*PIKA_ERRORS):
                    self._leave()

    def _leave(self) -> None:
        # BlockingConnection.close iterates over its channels and raises AttributeError when RabbitMQ closes
        # one of them meanwhile. Closing the connection underneath closes them, too.
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
            # A consumer timeout or a missing right closes the channel, and pika raises nothing here.
            raise ConnectionLost(f"RabbitMQ closed the channel ({self.channel._closing_reason})")
        if self._is_full():
            # Back-pressure through the socket; heartbeats are handled once per POLL_S.
            self._wake.wait(POLL_S)
            self._connection.process_data_events(time_limit=0)
        elif not self._commands and not self._wake.is_set():
            self._connection.process_data_events(time_limit=POLL_S)
        if self.failure:
            raise self.failure

    def end_turn(self) -> None:
        """Make the thread look for work, and whether it may read on. Call this on the thread only."""
        # This is how pika makes process_data_events return; no channel has a negative number.
        self._connection._request_channel_dispatch(-1)

    def _log_alarms(self) -> None:
        """Log when RabbitMQ accepts no messages for lack of memory or disk, and when it does again."""

        def blocked(_connection: object, frame: pika.frame.Method) -> None:
            log.warning("RabbitMQ takes no messages for now: waiting", because=frame.method.reason)

        def unblocked(_connection: object, _frame: pika.frame.Method) -> None:
            log.info("RabbitMQ takes messages again")

        # BlockingConnection itself would report an alarm only after the blocked call has returned.
        self._connection._impl.add_on_connection_blocked_callback(blocked)
        self._connection._impl.add_on_connection_unblocked_callback(unblocked)

    def _translated(self, error: Exception, what: str = "the connection") -> BrokerError:
        return translate_error(error, where=self._where, user=self.user, what=what)


def _confirming_channel(connection: pika.BlockingConnection) -> BlockingChannel:
    channel = connection.channel()
    channel.confirm_delivery()
    return channel
