"""A look at the broker before the sites are sent: what is wrong there is said at the driver, and at once."""

import threading

from fluffle.connection import REFUSED, Connector
from fluffle.errors import BrokerError, ConfigError, TopologyMissing
from fluffle.logs import get_logger
from fluffle.settings import SharedSettings
from fluffle.topology import topology_of

log = get_logger(__name__)


def look_at_broker(settings: SharedSettings, url_of_site: str | None, *, expects_aggregator: bool) -> None:
    """Log in as a site does, and warn if RabbitMQ does not answer, or if no aggregator is there.

    `url_of_site` is the broker URL of one of the sites; None if all log in as the settings say. Then a
    refused login, which would be refused for all of them, raises LoginRefused, AccessRefused or ConfigError.
    """
    own = {"broker_url": url_of_site, "broker_password_file": None} if url_of_site else {}
    connector = Connector(settings.model_copy(update=own), name="driver", stop=threading.Event())
    updates = topology_of(settings.federation).updates.name
    try:
        with connector.connect_at_once() as broker:
            is_led = bool(broker.state(updates).consumers)
    except TopologyMissing:
        is_led = False
    except (BrokerError, ConfigError) as error:
        if url_of_site is None and isinstance(error, REFUSED):
            raise
        log.warning("the driver cannot look at RabbitMQ, and the sites try it themselves", because=str(error))
        return
    if expects_aggregator and not is_led:
        log.warning("no aggregator is at work: the sites wait until one is started")
