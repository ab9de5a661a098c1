"""Aggregators that die at every possible moment: nothing is lost or counted twice, and no bit differs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence

import pytest
from builders import SIZE, a_charge, a_strategy, an_update
from leading import UntilQuiet, a_server, newest, rejected, unacked, versions

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost
from fluffle.fake_broker import FakeServer
from fluffle.record import ModelVersion
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import record_digest
from fluffle_aggregator.service import Charge, Rhythm, serve

CHARGES = {
    "fedasync": a_charge(a_strategy("fedasync", mixing=0.3), rhythm=Rhythm(every=2)),
    "fedbuff": a_charge(a_strategy("fedbuff", buffer_size=2)),
    "fedbuff and adam": a_charge(a_strategy("fedbuff", buffer_size=2, optimizer="adam")),
    "fedavg and momentum": a_charge(a_strategy("fedavg", buffer_size=2, optimizer="momentum")),
}
ROUNDS = 3


class Mortal(UntilQuiet):
    """A connection that is lost at one of its publishes or acks: before or after the broker heard of it."""

    def __init__(self, server: FakeServer, stop: threading.Event, *, dies_at: int, heard: bool) -> None:
        super().__init__(server, stop)
        self._calls = itertools.count()
        self._dies_at = dies_at
        self._heard = heard
        self.died = False

    def publish(self, exchange: str, routing_key: str, body: bytes, headers: Mapping[str, str]) -> None:
        """See Broker."""
        is_last = next(self._calls) == self._dies_at
        if self._heard or not is_last:
            super().publish(exchange, routing_key, body, headers)
        if is_last:
            self._die()

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        is_last = next(self._calls) == self._dies_at
        if self._heard or not is_last:
            super().ack(tags)
        if is_last:
            self._die()

    def _die(self) -> None:
        self.died = True
        self.close()
        raise ConnectionLost("it died here")


def some_updates(charge: Charge) -> list[WeightUpdate]:
    """Updates of two workers for a few rounds, each from the version that is then the newest."""
    sends = charge.first_version().plan.sends
    return [
        an_update(worker, number + 1, base_version=number, values=[0.1 * number + place] * SIZE, sends=sends)
        for number in range(ROUNDS)
        for place, worker in enumerate(["a", "b"])
    ]


def run(charge: Charge, dies_at: Sequence[int], *, heard: bool) -> tuple[FakeServer, bool]:
    """Let aggregators die one after the other, each at its so-manieth call, and then one live on.

    Returns the server, and whether the first of them lived long enough to die as planned.
    """
    server = a_server(charge, *some_updates(charge), first=False)
    stop = threading.Event()
    mortals = [Mortal(server, stop, dies_at=call, heard=heard) for call in dies_at]
    lives: list[Broker] = [*mortals, UntilQuiet(server, stop)]
    serve(charge, lambda: lives.pop(0), stop)
    return server, all(mortal.died for mortal in mortals[:1])


def assert_nothing_shows(server: FakeServer, charge: Charge, expected: ModelVersion) -> None:
    found = newest(server, charge)
    assert found.vector.tobytes() == expected.vector.tobytes()
    assert (found.version, found.applied) == (expected.version, expected.applied)
    assert ids_of_the_history(server, charge) == [update.id for update in some_updates(charge)]
    assert rejected(server, charge) == []
    assert unacked(server, charge) == []


@pytest.mark.parametrize("heard", [False, True], ids=["before the broker heard", "after the broker heard"])
# The first dies at each of its calls in turn; so many more die soon after they have taken over.
@pytest.mark.parametrize("more", [[], *([[soon] * 4 for soon in range(1, 7)])], ids=str)
@pytest.mark.parametrize("name", CHARGES)
def test_wherever_aggregators_die_the_model_has_the_same_bits_and_each_update_once(
    name: str, more: list[int], heard: bool
) -> None:
    charge = CHARGES[name]
    undisturbed, _ = run(charge, [], heard=heard)
    expected = newest(undisturbed, charge)
    assert expected.version >= ROUNDS

    for first in itertools.count():
        server, died = run(charge, [first, *more], heard=heard)
        assert_nothing_shows(server, charge, expected)
        if not died:
            break
    assert first > 2 * ROUNDS


def ids_of_the_history(server: FakeServer, charge: Charge) -> list[UpdateId]:
    """Return what the records contain, along the parents from the newest back to version 0."""
    bodies = server.bodies(charge.topology.models.name)
    by_digest = {
        record_digest(body): version for body, version in zip(bodies, versions(server, charge), strict=True)
    }
    chain = [newest(server, charge)]
    while chain[-1].parent:
        chain.append(by_digest[chain[-1].parent])
    assert chain[-1].version == 0
    return [one.id for version in reversed(chain) for one in version.folded]
