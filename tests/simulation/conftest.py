"""What makes thousands of simulations quick: no logs, and no bytes are decoded twice."""

import functools
import logging
from collections.abc import Iterator

import pytest
import simulation.chain
import simulation.promises
import simulation.senders
from builders import SIZE
from simulation.aggregators import Killed
from simulation.senders import POISON

import fluffle.model_stream
import fluffle_aggregator.head
import fluffle_aggregator.intake
from fluffle.record_wire import decode_record, decode_version
from fluffle.wire import Inbound, decode_inbound

REMEMBERED = 1_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decode each message once: the same bytes give the same value, which nobody may change."""
    inbound = functools.lru_cache(REMEMBERED)(decode_inbound)

    def decode_or_die(body: bytes, *, most_parameters: int = SIZE) -> Inbound:
        if body.startswith(POISON):
            raise Killed
        return inbound(body, most_parameters=most_parameters)

    remembered: dict[str, object] = {
        "decode_inbound": decode_or_die,
        "decode_record": functools.lru_cache(REMEMBERED)(decode_record),
        "decode_version": functools.lru_cache(REMEMBERED)(decode_version),
    }
    for module in (
        fluffle.model_stream,
        fluffle_aggregator.head,
        fluffle_aggregator.intake,
        simulation.chain,
        simulation.promises,
        simulation.senders,
    ):
        for name in remembered.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, remembered[name])
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
