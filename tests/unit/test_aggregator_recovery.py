"""Aggregators that die at every possible moment: nothing is lost, nothing counts twice, and no bit differs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping

import pytest
from builders import SIZE, a_charge, a_strategy, an_update
from leading import UntilQuiet, a_server, newest, rejected, unacked, versions

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost
from fluffle.fake_broker import FakeServer
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
MORE_THAN_ALL_CALLS = 200


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


def run(charge: Charge, *, deaths: int, dies_at: int, heard: bool) -> tuple[FakeServer, bool]:
    """Let so many aggregators die one after the other, each at its so-manieth call, and one live on."""
    server = a_server(charge, *some_updates(charge), first=False)
    stop = threading.Event()
    mortals = [Mortal(server, stop, dies_at=dies_at, heard=heard) for _ in range(deaths)]
    lives: list[Broker] = [*mortals, UntilQuiet(server, stop)]
    serve(charge, lambda: lives.pop(0), stop)
    return server, any(mortal.died for mortal in mortals)


@pytest.mark.parametrize("heard", [False, True], ids=["before the broker heard", "after the broker heard"])
@pytest.mark.parametrize("deaths", [1, 2, 5], ids="{} deaths".format)
@pytest.mark.parametrize("name", CHARGES)
def test_wherever_aggregators_die_the_model_has_the_same_bits_and_each_update_once(
    name: str, deaths: int, heard: bool
) -> None:
    charge = CHARGES[name]
    undisturbed, _ = run(charge, deaths=0, dies_at=0, heard=heard)
    expected = newest(undisturbed, charge)
    assert expected.version >= ROUNDS

    for dies_at in range(MORE_THAN_ALL_CALLS):
        server, died = run(charge, deaths=deaths, dies_at=dies_at, heard=heard)
        if not died:
            break
        found = newest(server, charge)
        assert found.vector.tobytes() == expected.vector.tobytes(), dies_at
        assert (found.version, found.applied, found.updates) == (
            expected.version,
            expected.applied,
            expected.updates,
        )
        assert ids_of_the_history(server, charge) == [update.id for update in some_updates(charge)]
        assert rejected(server, charge) == []
        assert unacked(server, charge) == []
    else:
        pytest.fail("the aggregator never got to its end")
    assert dies_at > 3 * ROUNDS


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
