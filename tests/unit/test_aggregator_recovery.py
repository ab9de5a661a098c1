"""Aggregators that die at every possible moment: nothing is lost, nothing counts twice, and no bit differs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from builders import SIZE, a_charge, a_strategy, a_vector, a_version, an_update
from leading import UntilQuiet, a_server, aggregate, newest, publish, rejected, send, unacked, versions

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, TopologyMissing
from fluffle.fake_broker import FakeBroker, FakeServer
from fluffle.record import ModelVersion, Moments
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_record
from fluffle_aggregator.service import Charge, Rhythm, serve

CHARGES = {
    "fedasync": a_charge(a_strategy("fedasync", mixing=0.3), rhythm=Rhythm(every=2)),
    "fedbuff": a_charge(a_strategy("fedbuff", buffer_size=2)),
    "fedbuff and adam": a_charge(a_strategy("fedbuff", buffer_size=2, optimizer="adam")),
    "fedavg and momentum": a_charge(a_strategy("fedavg", buffer_size=2, optimizer="momentum")),
}
ENOUGH = 200


class Mortal(UntilQuiet):
    """A connection that is lost at one of its publishes or acks: before or after the broker heard of it."""

    def __init__(self, server: FakeServer, stop: Stop, *, dies_at: int, heard: bool) -> None:
        super().__init__(server, stop)
        self._calls = itertools.count()
        self._dies_at = dies_at
        self._heard = heard

    def publish(self, exchange: str, routing_key: str, body: bytes, headers: Mapping[str, str]) -> None:
        """See Broker."""
        is_last = self._is_last_call()
        if not is_last or self._heard:
            super().publish(exchange, routing_key, body, headers)
        if is_last:
            self._die()

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        is_last = self._is_last_call()
        if not is_last or self._heard:
            super().ack(tags)
        if is_last:
            self._die()

    def _is_last_call(self) -> bool:
        return next(self._calls) == self._dies_at

    def _die(self) -> None:
        self.close()
        raise ConnectionLost("died here")
