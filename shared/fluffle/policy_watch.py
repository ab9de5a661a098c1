"""Reads RabbitMQ's policies, and says which of them would break what Fluffle promises.

RabbitMQ shows its policies only to a user that may use its management interface. For any other user a part
logs that once, and works without them; the leader still notices what a policy does to the head queue
(fluffle_aggregator.head_keeper).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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


def policy_watch_of(settings: SharedSettings, management_url: str | None) -> "PolicyWatch":
    """Return a watch of the policies on the broker of these settings."""
    return PolicyWatch(
        # The address is read again each time: the password may have changed.
        lambda: policies_at(settings.broker_address(), management_url),
        topology_of(settings.federation),
        virtual_host=parse_address(settings.broker_url).virtual_host,
    )


class PolicyWatch:
    """Checks a virtual host's policies: when a part starts, and every 10 s while it works."""

    def __init__(
        self, ask: Callable[[], tuple[BrokerPolicy, ...]], topology: Topology, *, virtual_host: str
    ) -> None:
        """Call `ask` at each check; it raises BrokerError or ConfigError when there is no answer."""
        self._ask = ask
        self._faults_of = partial(faults_of, topology=topology, virtual_host=virtual_host)
        self._sizes = UNKNOWN_SIZES
        self._policies: tuple[BrokerPolicy, ...] | None = None
        self._at_start: tuple[BrokerPolicy, ...] | None = None
        # Why the last check got no answer; None before the first check.
        self._no_answer: str | None = None
        self._logged: tuple[str, ...] = ("",)

    @property
    def faults(self) -> tuple[PolicyFault, ...] | None:
        """What the policies break, as of the last check that got an answer; None before that."""
        return None if self._policies is None else self._faults_of(self._policies, sizes=self._sizes)

    def look(self) -> None:
        """Read the policies, and log what has changed since the last check."""
        self._read()
        self._log_changes()

    def require_safe_start(self) -> None:
        """Read the policies at the first call, and raise RequestRefused if one would lose messages."""
        if self._at_start is None:
            self._read()
            self._at_start = self._policies or ()
            self.require_safe(self._sizes)
            self._log_changes()

    def require_safe(self, sizes: Sizes) -> None:
        """Raise RequestRefused if a policy that existed at the start would lose messages of these sizes.

        A policy that came later only causes a warning: without an aggregator more updates would be lost.
        """
        self._sizes = sizes
        require_none_fatal(self._faults_of(self._at_start or (), sizes=sizes))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every 10 s in a thread, so that a slow answer delays nothing else."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(EVERY_S):
                # Before the first check there may be no broker yet.
                if self._no_answer is not None:
                    self.look()

        threading.Thread(target=watch, name="policies", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _read(self) -> None:
        try:
            self._policies, self._no_answer = self._ask(), ""
        except FluffleError as error:
            self._no_answer = str(error)

    def _log_changes(self) -> None:
        faults = () if self._no_answer else self.faults or ()
        now = (self._no_answer or "", *map(str, faults))
        if now == self._logged:
            return
        self._logged = now
        if self._no_answer:
            log.info("RabbitMQ's policies cannot be checked", because=self._no_answer)
        elif not faults:
            log.info("no policy of RabbitMQ loses messages")
        for fault in faults:
            what = "a policy loses messages" if fault.is_fatal else "a policy weakens a promise"
            log.warning(what, because=str(fault))
