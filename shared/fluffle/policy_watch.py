"""Asks RabbitMQ for its policies, and says which of them would break what Fluffle promises.

RabbitMQ shows its policies only to a user who may ask its management interface. Where it does not answer this
user, a part says so once and works without; what a policy does to the head queue the leader notices all the
same (fluffle_aggregator.head_keeper).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fluffle.address import parse_address
from fluffle.errors import FluffleError
from fluffle.logs import get_logger
from fluffle.management import policies_at
from fluffle.policies import BrokerPolicy
from fluffle.policy_faults import UNKNOWN_SIZES, PolicyFault, Sizes, faults_of, require_none_fatal
from fluffle.settings import SharedSettings
from fluffle.topology import Topology, topology_of

log = get_logger(__name__)

EVERY_S = 10.0


def policy_watch_of(settings: SharedSettings, management_url: str | None) -> PolicyWatch:
    """Return what looks at the policies on the broker of these settings."""
    return PolicyWatch(
        # Read anew each time: the password may have been changed.
        lambda: policies_at(settings.broker_address(), management_url),
        topology_of(settings.federation),
        virtual_host=parse_address(settings.broker_url).virtual_host,
    )


class PolicyWatch:
    """Looks at a virtual host's policies: when a part starts, and now and then as long as it works."""

    def __init__(
        self, ask: Callable[[], tuple[BrokerPolicy, ...]], topology: Topology, *, virtual_host: str
    ) -> None:
        """Look by calling `ask`, which raises BrokerError or ConfigError when nobody answers."""
        self._ask = ask
        self._topology = topology
        self._virtual_host = virtual_host
        self._sizes = UNKNOWN_SIZES
        self._policies: tuple[BrokerPolicy, ...] | None = None
        self._has_looked = False
        # Why nobody answered the last question.
        self._silence = ""
        self._said: tuple[str, ...] = ()
        self._at_start: tuple[BrokerPolicy, ...] | None = None

    @property
    def faults(self) -> tuple[PolicyFault, ...] | None:
        """What the policies break, as far as the last look that was answered; None before that."""
        return None if self._policies is None else self._faults_of(self._policies)

    def look(self) -> None:
        """Ask, and log what is other than at the last look."""
        self._ask_again()
        self._say_what_is_new()

    def require_safe_start(self) -> None:
        """Look at the first call, and raise UnsafePolicy when a policy would lose messages."""
        if self._at_start is None:
            self._ask_again()
            self._at_start = self._policies or ()
            self.require_safe(self._sizes)
            self._say_what_is_new()

    def require_safe(self, sizes: Sizes) -> None:
        """Raise UnsafePolicy when a policy that was there at the start would lose messages of these sizes.

        One that came later only warns: without an aggregator the updates would be lost all the sooner.
        """
        self._sizes = sizes
        require_none_fatal(self._faults_of(self._at_start or ()))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every 10 s on a thread of its own, so that a slow answer holds nobody up."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(EVERY_S):
                # Before the first look there may be no broker yet.
                if self._has_looked:
                    self.look()

        threading.Thread(target=watch, name="policies", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _faults_of(self, policies: tuple[BrokerPolicy, ...]) -> tuple[PolicyFault, ...]:
        return faults_of(policies, self._topology, virtual_host=self._virtual_host, sizes=self._sizes)

    def _ask_again(self) -> None:
        self._has_looked = True
        try:
            self._policies, self._silence = self._ask(), ""
        except FluffleError as error:
            self._silence = str(error)

    def _say_what_is_new(self) -> None:
        faults = () if self._silence else self.faults or ()
        sentences = (self._silence,) if self._silence else tuple(map(str, faults))
        if sentences == self._said:
            return
        self._said = sentences
        if self._silence:
            log.info("RabbitMQ's policies are not looked at", because=self._silence)
        elif not faults:
            log.info("no policy of RabbitMQ loses messages")
        for fault in faults:
            what = "a policy loses messages" if fault.is_fatal else "a policy makes a promise smaller"
            log.warning(what, because=str(fault))
