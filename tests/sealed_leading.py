"""The leader of a sealed federation at work on a fake server."""

from dataclasses import replace

from fake_broker import FakeServer
from leading import aggregate, newest, rejected, send
from sealing import a_sealed_update

from fluffle_aggregator.config import AggregatorConfig

EXACT = 2.0**-30


def refusals(server: FakeServer, config: AggregatorConfig) -> list[tuple[object, str]]:
    """Return reason and detail of each refused message."""
    return [(each["reason"], str(each["detail"])) for each in rejected(server, config)]


def fill(server: FakeServer, config: AggregatorConfig, *, first: int, count: int) -> None:
    """Send updates of two workers, so many of each, from the newest version, and work them off."""
    for number in range(first, first + count):
        base = newest(server, config)
        updates = [a_sealed_update(worker, number, base_version=base.version) for worker in ("w1", "w2")]
        send(server, config, *(replace(each, base_term=base.term) for each in updates))
        aggregate(server, config)
