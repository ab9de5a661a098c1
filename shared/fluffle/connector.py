"""Making a part's connections one after the other: what is worth waiting for, and for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LimitReached,
    LoginRefused,
    TlsRefused,
    TopologyMissing,
)
from fluffle.logs import get_logger
from fluffle.rabbit import RabbitBroker
from fluffle.reconnecting import wait_before
from fluffle.settings import SharedSettings

log = get_logger(__name__)

Prepare = Callable[[RabbitBroker], None]

# At the first start one of these is a mistake. Later on a password or a certificate is being replaced, or a
# user or a virtual host is made anew, which takes an operator several steps.
NOT_LET_IN = (LoginRefused, TlsRefused, AccessRefused, ConfigError)


class Patience:
    """How long a part waits for what refuses it. Pure: the time is an argument, in seconds.

    Each time it waits `connect_timeout_s` for a broker or a federation that is not there, or for a limit that
    is reached. A refused login, or a missing right, lasts, unless this part was let in before: then it
    is tried again for `login_patience_s`.
    """

    def __init__(self, *, connect_timeout_s: float, login_patience_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._login_patience_s = login_patience_s
        self._was_let_in = False
        self._since = 0.0
        self._not_let_in_since: float | None = None

    def begin(self, now: float) -> None:
        """Note that a connection is needed from now on."""
        self._since = now

    def let_in(self) -> None:
        """Note that the broker has let this part in, with all the rights that it needs."""
        self._was_let_in = True
        self._not_let_in_since = None

    def allows(self, error: BrokerError | ConfigError, now: float) -> bool:
        """Tell whether to try again after this error."""
        if not isinstance(error, NOT_LET_IN):
            self._not_let_in_since = None
            waits = isinstance(error, (ConnectionLost, LimitReached, TopologyMissing))
            return waits and now - self._since < self._connect_timeout_s
        if not self._was_let_in:
            return False
        if self._not_let_in_since is None:
            self._not_let_in_since = now
        return now - self._not_let_in_since < self._login_patience_s


class Connector:
    """Makes the connections of one part, one after the other."""

    def __init__(
        self,
        settings: SharedSettings,
        *,
        name: str,
        stop: threading.Event,
        speaks_for: str | None = None,
        prepare: Prepare = lambda _: None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Connect as the settings say; `name` is what RabbitMQ's UI shows.

        `prepare` is called with each new connection, and what it raises counts as if the connection had not
        been made. `on_wait` is called before each wait with the reason for it.
        """
        self._settings = settings
        self._stop = stop
        self._prepare = prepare
        self._on_wait = on_wait
        self._patience = Patience(
            connect_timeout_s=settings.connect_timeout_s, login_patience_s=settings.login_patience
        )
        self._open = partial(
            RabbitBroker,
            name=name,
            heartbeat_s=settings.heartbeat_s,
            speaks_for=speaks_for,
            max_message_bytes=settings.max_message_bytes,
            stop=stop,
        )

    def connect(self) -> RabbitBroker:
        """Return a connection, and wait for what may pass.

        Raises what refused the last attempt, when it lasts or the patience is over, or when `stop` is set.
        """
        self._patience.begin(time.monotonic())
        attempts = 0
        while True:
            try:
                return self._attempt()
            except (BrokerError, ConfigError) as error:
                if self._stop.is_set() or not self._patience.allows(error, time.monotonic()):
                    raise
                attempts += 1
                self._say(error, attempts)
            if self._stop.wait(wait_before(attempts)):
                raise ConnectionLost("this process was asked to stop while it waited for the broker")

    def connect_at_once(self) -> RabbitBroker:
        """Return a connection, for a caller that does not wait: whatever may pass becomes a ConnectionLost.

        TopologyMissing is raised as it is.
        """
        self._patience.begin(time.monotonic())
        try:
            return self._attempt()
        except TopologyMissing:
            raise
        except (BrokerError, ConfigError) as error:
            if isinstance(error, ConnectionLost) or not self._patience.allows(error, time.monotonic()):
                raise
            raise ConnectionLost(str(error)) from error

    def _attempt(self) -> RabbitBroker:
        # The password file and the certificates are read anew each time: they may have been replaced.
        broker = self._open(self._settings.broker_address())
        try:
            self._prepare(broker)
        except BaseException:
            broker.close()
            raise
        self._patience.let_in()
        return broker

    def _say(self, error: BrokerError | ConfigError, attempts: int) -> None:
        awaited = (
            "waiting for the federation" if isinstance(error, TopologyMissing) else "waiting for the broker"
        )
        if isinstance(error, NOT_LET_IN):
            awaited = "the broker does not let this process in any more; trying again"
        log.warning(awaited, attempt=attempts, because=str(error))
        if self._on_wait:
            self._on_wait(str(error))
