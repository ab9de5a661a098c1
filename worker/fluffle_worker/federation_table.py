"""Which columns the model of a federation takes: a task of tables is told before it reads its rows."""

import threading

from fluffle.broker import Broker
from fluffle.connection import Connector
from fluffle.data_source import TaskOfTables
from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.model_stream import newest_version
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.stopping import StopRequested
from fluffle.task import Task
from fluffle.topology import Topology

log = get_logger(__name__)


def with_federations_table(
    task: Task, connector: Connector, topology: Topology, stop: threading.Event, *, patience_s: float
) -> Task:
    """Return a task of tables with the model of its federation, once there is one; others as they are.

    Raises TaskError where there are no rows, and where the federation's model is of no table, or of another
    one than the task's settings say. Raises StopRequested when `stop` is set first.
    """
    if not isinstance(task, TaskOfTables):
        return task
    # Before anybody waits for the federation.
    task.require_rows()
    layouts: list[Layout] = []

    def look(broker: Broker) -> None:
        if found := newest_version(broker, topology, stop=stop):
            layouts.append(found.layout)

    run_with_reconnect(connector.connect, until_federation_is_gone(look), stop, patience_s=patience_s)
    if not layouts:
        raise StopRequested
    table = layouts[0].table
    if table is None:
        raise TaskError(
            f"the federation {topology.federation!r} trains no model of a table: its aggregator was not "
            "started with --task tabular"
        )
    log.info("the federation's model is of a table", **table.in_words)
    return task.with_table_model(table)
