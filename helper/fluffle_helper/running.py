"""Running a helper from Python.

    from fluffle_helper.running import run_helper

    run_helper(
        federation="hospital",
        secure_key="helper-1.key",
        secure_registry="registry.json",
        secure_operator="operator.pub",
    )

No signal handler is set, and any thread will do. `fluffle helper` does the same.
"""

import threading

from structlog.contextvars import bound_contextvars

from fluffle.connection import helper_connector
from fluffle.event_sink import ReportingSink
from fluffle.metrics import metered
from fluffle.settings import load_arguments
from fluffle.topology import topology_of
from fluffle_helper.loop import Helper, HelperResult
from fluffle_helper.own_files import HelperFiles
from fluffle_helper.settings import HelperSettings


def run_helper(*, stop: threading.Event | None = None, **settings: object) -> HelperResult:
    """Open sums for a federation until it has finished, or until `stop` is set.

    `settings` are those of `fluffle helper`, such as `federation`, `broker_url` and
    `secure_key`; others come from the environment (FLUFFLE_BROKER_URL), fluffle.toml and the defaults. Raises
    ConfigError for wrong settings or files, and BrokerError when the broker refuses the helper permanently or
    cannot be reached for `connect_timeout_s`.
    """
    checked = load_arguments(HelperSettings, settings)
    with bound_contextvars(**checked.log_fields()):
        return help_to_open(checked, stop or threading.Event())


def help_to_open(settings: HelperSettings, stop: threading.Event) -> HelperResult:
    """Be a helper as the settings say; see `run_helper`."""
    topology = topology_of(settings.federation)
    files = HelperFiles(
        key=settings.secure_key,
        registry=settings.secure_registry,
        operator=settings.secure_operator,
        federation=settings.federation,
    )
    # What is wrong at the start ends the process; later the operator may be replacing the files.
    name = files.read().key.name
    with (
        files.locked(),
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
            name=name,
            topology=topology,
            files=files,
            fewest_workers=settings.secure_min_workers,
            compares=settings.helpers_compare,
            stop=stop,
            event_sink=event_sink,
        )
        connector = helper_connector(settings, topology, helper=name, stop=stop, event_sink=event_sink)
        return helper.work(connector.connect, patience_s=settings.connect_timeout_s)
