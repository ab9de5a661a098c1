"""`fluffle broker setup`: makes the exchanges and queues of a federation on any broker."""

from __future__ import annotations

import threading
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from fluffle.command_line import settings_command
from fluffle.connection import connect
from fluffle.settings import SharedSettings
from fluffle.topology import topology_of


class SetupSettings(SharedSettings):
    """Flags of `fluffle broker setup`."""

    part: ClassVar[str] = "broker"


def run(settings: SetupSettings) -> None:
    """Declare the topology and show it."""
    topology = topology_of(settings.federation)
    name = f"{settings.federation}/setup"
    with connect(settings, name=name, stop=threading.Event()) as broker:
        broker.declare(topology)
    table = Table("queue", "bound to", "kind", title=f"The federation {settings.federation}")
    for queue in topology.queues:
        table.add_row(
            queue.name, ", ".join(each.name for each in queue.exchanges), str(queue.arguments["x-queue-type"])
        )
    Console().print(table)


command = settings_command(
    SetupSettings,
    run,
    about="Make the exchanges and queues of a federation; what is there already stays as it is.\n\n"
    "An aggregator does the same when it starts: this is for a broker on which it may not.",
)
