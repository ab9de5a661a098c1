"""Asks RabbitMQ who leads and who stands by: a standby that waits tells nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from fluffle.errors import FluffleError
from fluffle.logs import get_logger
from fluffle.management import MONITORING, ManagementSettings
from fluffle.topology import Topology

log = get_logger(__name__)

# RabbitMQ itself counts every 5 s.
EVERY_S = 5.0
AFTER_TROUBLE_S = 10.0


def watch_consumers(
    settings: ManagementSettings,
    topology: Topology,
    tell: Callable[[Mapping[str, bool] | None], None],
    stop: threading.Event,
) -> None:
    """Tell who of the connected aggregators leads, again and again until `stop` is set; None when unknown.

    Where no management interface answers this user, it says so once, and tries again now and then.
    """
    said = ""
    own = f"{topology.federation}/aggregator/"
    while not stop.is_set():
        try:
            with settings.management(tag=MONITORING) as management:
                while not stop.is_set():
                    consumers = management.consumers_of(topology.updates.name).items()
                    tell({tag.removeprefix(own): leads for tag, leads in consumers if tag.startswith(own)})
                    stop.wait(EVERY_S)
        except FluffleError as error:
            tell(None)
            if str(error) != said:
                said = str(error)
                log.info("who stands by is known from what is told alone", because=said)
            stop.wait(AFTER_TROUBLE_S)
