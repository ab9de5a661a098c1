"""What the live page shows: a watcher of one federation, which any request may ask for a view."""

import threading
from math import inf

from fluffle.broker import Broker
from fluffle.connection import federation_connector
from fluffle.errors import BrokerError, FluffleError
from fluffle.logs import get_logger
from fluffle.management import MONITORING, ManagementSettings
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.topology import topology_of
from fluffle_cli.dashboard.table import Wanted, page_of
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.watcher import Watcher

log = get_logger(__name__)

PAST_MIB = 64
# RabbitMQ itself counts every 5 s.
ASK_EVERY_S = 5.0
AFTER_TROUBLE_S = 10.0


class Watch:
    """Keeps what the page shows of one federation up to date; any thread may look at it."""

    def __init__(self, settings: ManagementSettings, stop: threading.Event) -> None:
        """Watch as `settings` say, until `stop` is set."""
        self._settings = settings
        self._stop = stop
        self._topology = topology_of(settings.federation)
        self._watcher = Watcher(self._topology, name="dashboard", past_mib=PAST_MIB)
        self._watcher.say("connecting to the broker")
        self._asks_for_consumers = False

    def run(self) -> None:
        """Follow until `stop` is set, with new connections as they are lost.

        It waits for a broker or a federation that is not there. Raises LoginRefused or AccessRefused when the
        broker does not let this user in, or not listen.
        """
        connector = federation_connector(
            self._settings.model_copy(update={"connect_timeout_s": inf}),
            self._topology,
            name=f"{self._settings.federation}/dashboard",
            stop=self._stop,
            on_wait=self._watcher.say,
        )
        try:
            run_with_reconnect(connector.connect, until_federation_is_gone(self._follow), self._stop)
        except FluffleError as error:
            # Beside a demo the page is still there.
            self._watcher.say(str(error))
            raise

    def picture(self) -> dict[str, object]:
        """Return all but the workers."""
        return as_json(self._watcher.view())

    def page(self, wanted: Wanted) -> dict[str, object]:
        """Return one page of the workers. Raises KeyError for an unknown column."""
        return page_of(self._watcher.view(), wanted)

    def _follow(self, broker: Broker) -> None:
        if not self._asks_for_consumers:
            # Not before: there is a queue only now.
            self._asks_for_consumers = True
            threading.Thread(target=self._watch_consumers, name="consumers", daemon=True).start()
        try:
            for _ in self._watcher.follow(broker, self._stop):
                self._watcher.say("")
        except BrokerError as error:
            self._watcher.say(str(error))
            raise

    def _watch_consumers(self) -> None:
        """Ask RabbitMQ again and again who leads and who stands by: a standby that waits says nothing.

        Where no management interface answers this user, it says so once, and tries again now and then.
        """
        said, own = "", f"{self._topology.federation}/aggregator/"
        while not self._stop.is_set():
            try:
                with self._settings.management(tag=MONITORING) as management:
                    while not self._stop.is_set():
                        consumers = management.consumers_of(self._topology.updates.name).items()
                        self._watcher.note_aggregators(
                            {tag.removeprefix(own): leads for tag, leads in consumers if tag.startswith(own)}
                        )
                        self._stop.wait(ASK_EVERY_S)
            except FluffleError as error:
                self._watcher.note_aggregators(None)
                if str(error) != said:
                    said = str(error)
                    log.info("standbys are known only once they say something", because=said)
                self._stop.wait(AFTER_TROUBLE_S)
