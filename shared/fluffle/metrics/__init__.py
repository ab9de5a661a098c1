"""What a part counts, for Prometheus: the only package that knows prometheus_client.

meters.py   what each part counts of the events that it tells
server.py   serves it at /metrics
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fluffle.event_sink import EventSink, Sinks
from fluffle.events import Role


@contextmanager
def metered(
    event_sink: EventSink,
    *,
    host: str,
    port: int | None,
    federation: str,
    role: Role,
    name: str,
    waiting: Callable[[], int] | None = None,
) -> Iterator[EventSink]:
    """Serve, while the block lasts, what a part of a federation counts; without a port, do nothing.

    Events given to the sink that this yields are counted, and go on to `event_sink`. `waiting` says how many
    updates are in a worker's spool. Raises ConfigError when the port cannot be opened.
    """
    if port is None:
        yield event_sink
        return
    # It takes some 12 MB: loaded only where metrics are served.
    from prometheus_client import disable_created_metrics

    from fluffle.metrics.meters import Meter
    from fluffle.metrics.server import serving

    # Else each counter has a second series, since when: `process_start_time_seconds` says it once for all.
    drop_created_series: Callable[[], None] = disable_created_metrics
    drop_created_series()
    meter = Meter(role, federation, name, waiting)
    with serving(meter.registry, host, port):
        yield Sinks(event_sink, meter)
