"""Running a helper from Python: in a thread, or inside another program.

    from fluffle_helper.running import run_helper

    run_helper(federation="hospital", broker_url="amqp://helper-1:...@broker", secure_key="helper-1.key", ...)

`fluffle helper` does the same.
"""

import threading

from structlog.contextvars import bound_contextvars

from fluffle.connection import helper_connector
from fluffle.event_sink import ReportingSink
from fluffle.metrics import metered
from fluffle.reconnecting import run_with_reconnect, until_federation_is_gone
from fluffle.secure.ledger_file import holding
from fluffle.settings import load_arguments
from fluffle.topology import topology_of
from fluffle_helper.keys import HelperFiles, Keys
from fluffle_helper.loop import Helper, HelperResult
from fluffle_helper.settings import HelperSettings


def run_helper(*, stop: threading.Event | None = None, **settings: object) -> HelperResult:
    """Open the sums of a federation until `stop` is set.

    `settings` are those of `fluffle helper`. Raises ConfigError for wrong settings, for files that do not
    belong together and for a lost ledger, NameTaken while another process works under the helper's name, and
    BrokerError when the broker refuses it permanently or cannot be reached for `connect_timeout_s`.
    """
    return help_out(load_arguments(HelperSettings, settings), stop or threading.Event())


def help_out(settings: HelperSettings, stop: threading.Event) -> HelperResult:
    """Be a helper as the settings say; see `run_helper`."""
    topology = topology_of(settings.federation)
    with holding(settings.secure_key):
        keys = Keys(HelperFiles.of(settings), settings.federation)
        name = keys.key.name
        with (
            bound_contextvars(helper=name),
            metered(
                ReportingSink(topology, role="helper", name=name),
                host=settings.metrics_host,
                port=settings.metrics_port,
                federation=settings.federation,
                role="helper",
                name=name,
            ) as event_sink,
        ):
            helper = Helper(
                keys, topology, stop, fewest_workers=settings.secure_min_workers, event_sink=event_sink
            )
            connector = helper_connector(settings, topology, helper=name, stop=stop, event_sink=event_sink)
            run_with_reconnect(
                connector.connect,
                until_federation_is_gone(helper.work),
                stop,
                event_sink,
                patience_s=settings.connect_timeout_s,
            )
            return helper.result
