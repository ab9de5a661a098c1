"""Aggregators that die at every possible moment: nothing is lost or counted twice, and no bit differs."""

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from builders import SIZE, a_config, a_strategy, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    UntilQuiet,
    a_server,
    newest,
    rejected,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)

from fluffle.broker import Broker, Delivery
from fluffle.errors import ConnectionLost
from fluffle.model_stream import StoredVersion
from fluffle.pieces import Body
from fluffle.record import ModelVersion
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.service import serve

CHARGES = {
    "fedasync": a_config(a_strategy("fedasync", mixing=0.3), commit_schedule=CommitSchedule(every=2)),
    "fedbuff": a_config(a_strategy("fedbuff", buffer_size=2)),
    "fedbuff and adam": a_config(a_strategy("fedbuff", buffer_size=2, optimizer="adam")),
    "fedbuff and normalised steps": a_config(a_strategy("fedbuff", buffer_size=2, normalize_steps=True)),
    "fedasync and throttled repeats": a_config(
        a_strategy("fedasync", mixing=0.3, throttle=1.5), commit_schedule=CommitSchedule(every=2)
    ),
    "fedbuff and throttled repeats": a_config(a_strategy("fedbuff", buffer_size=2, throttle=1.5)),
    "fadas": a_config(a_strategy("fadas", buffer_size=2, learning_rate=0.1)),
    "fedasync and clipped norms": a_config(
        a_strategy("fedasync", mixing=0.3),
        limits=Limits(limit_norm=2.0, on_large_norm="clip"),
        commit_schedule=CommitSchedule(every=2),
        first=replace(a_version(), norms=(0.5,) * 10),
    ),
    "fedbuff and versions in int8": replace(
        a_config(a_strategy("fedbuff", buffer_size=2)), downlink_codec="int8"
    ),
    "ace": a_config(a_strategy("ace", buffer_size=1), commit_schedule=CommitSchedule(every=2)),
    "reuse": a_config(a_strategy("reuse", buffer_size=1), commit_schedule=CommitSchedule(every=2)),
    "fedac": a_config(a_strategy("fedac", buffer_size=2, learning_rate=0.1)),
    "ringleader": a_config(a_strategy("ringleader")),
    "ca2fl and momentum": a_config(a_strategy("ca2fl", buffer_size=2, optimizer="momentum")),
    "fedbuff and averaged versions": a_config(
        a_strategy("fedbuff", buffer_size=1), commit_schedule=CommitSchedule(every=2), average_decay=0.7
    ),
    "fedavg and momentum": a_config(a_strategy("fedavg", buffer_size=2, optimizer="momentum")),
}
ROUNDS = 3
WORKERS = ("a", "b")


class Workers:
    """Two workers that train a few rounds, each round from what is then the newest version."""

    def __init__(self, server: FakeServer, config: AggregatorConfig) -> None:
        self._server = server
        self._config = config
        self.sent: list[WeightUpdate] = []

    def train(self) -> bool:
        """Send the updates of one more round; False when there is no model or all rounds are over."""
        number = len(self.sent) // len(WORKERS) + 1
        if number > ROUNDS or not versions(self._server, self._config):
            return False
        base = newest(self._server, self._config)
        updates = [
            an_update(
                worker,
                number,
                base_term=base.term,
                base_version=base.version,
                values=[0.1 * number + place] * SIZE,
                sends=base.plan.sends,
                steps=place + 3,
            )
            for place, worker in enumerate(WORKERS)
        ]
        send(self._server, self._config, *updates)
        self.sent += updates
        return True


class WhileTheyTrain(UntilQuiet):
    """Lets the workers train whenever nothing is left to do."""

    def __init__(self, server: FakeServer, stop: threading.Event, workers: Workers) -> None:
        super().__init__(server, stop)
        self._workers = workers

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Broker."""
        waiting = FakeBroker.next_delivery(self, 0)
        if waiting is None and self._workers.train():
            waiting = FakeBroker.next_delivery(self, 0)
        return waiting or super().next_delivery(timeout_s)


class Mortal(WhileTheyTrain):
    """A connection that is lost at one of its publishes or acks: before or after the broker heard of it."""

    def __init__(
        self, server: FakeServer, stop: threading.Event, workers: Workers, *, dies_at: int, heard: bool
    ) -> None:
        super().__init__(server, stop, workers)
        self._calls = itertools.count()
        self._dies_at = dies_at
        self._heard = heard
        self.died = False

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
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


def run(config: AggregatorConfig, dies_at: Sequence[int], *, heard: bool) -> tuple[FakeServer, Workers, bool]:
    """Let aggregators die one after the other, each at its so-manieth call, and then one live on.

    Returns the server, the workers, and whether the first of them lived long enough to die as planned.
    """
    server = a_server(config, first=False)
    stop = threading.Event()
    workers = Workers(server, config)
    mortals = [Mortal(server, stop, workers, dies_at=call, heard=heard) for call in dies_at]
    lives: list[Broker] = [*mortals, WhileTheyTrain(server, stop, workers)]
    serve(config, lambda: lives.pop(0), stop)
    return server, workers, all(mortal.died for mortal in mortals[:1])


def assert_nothing_shows(
    server: FakeServer, workers: Workers, config: AggregatorConfig, expected: ModelVersion
) -> None:
    found = newest(server, config)
    assert found.vector.tobytes() == expected.vector.tobytes()
    assert found.average.tobytes() == expected.average.tobytes()
    assert (found.version, found.applied) == (expected.version, expected.applied)
    assert found.norms == expected.norms
    assert ids_of_the_history(server, config) == [update.id for update in workers.sent]
    assert rejected(server, config) == []
    assert unacked(server, config) == []


@pytest.mark.parametrize("heard", [False, True], ids=["before the broker heard", "after the broker heard"])
# The first dies at each of its calls in turn; so many more die soon after they have taken over.
@pytest.mark.parametrize("more", [[], *([[soon] * 4 for soon in range(1, 7)])], ids=str)
@pytest.mark.parametrize("name", CHARGES)
def test_wherever_aggregators_die_the_model_has_the_same_bits_and_each_update_once(
    name: str, more: list[int], heard: bool
) -> None:
    config = CHARGES[name]
    undisturbed, _, _ = run(config, [], heard=heard)
    expected = newest(undisturbed, config)
    assert expected.version >= ROUNDS

    for first in itertools.count():
        server, workers, died = run(config, [first, *more], heard=heard)
        assert_nothing_shows(server, workers, config, expected)
        if not died:
            break
    assert first > 2 * ROUNDS


def test_what_lies_in_a_half_full_buffer_is_not_acked_when_seconds_say_that_a_step_is_due() -> None:
    config = a_config(a_strategy(buffer_size=2), commit_schedule=CommitSchedule(every=100, after_s=10))
    server = a_server(config, *(an_update("a", number) for number in (1, 2, 3)))
    clock = Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds = 11
        leader.tick()

        send(server, config, an_update("b", 1))
        work_off(leader, broker)
        assert (newest(server, config).version, newest(server, config).updates) == (2, 4)

        send(server, config, an_update("b", 2))
        work_off(leader, broker)
        clock.seconds = 22
        leader.tick()

    # It died with one in the buffer.
    assert newest(server, config).updates == 4
    assert unacked(server, config) == [encode_update(an_update("b", 2))]


def test_the_run_with_clipped_norms_does_clip() -> None:
    config = CHARGES["fedasync and clipped norms"]

    server, _, _ = run(config, [], heard=True)

    norms = newest(server, config).norms
    assert len(norms) == 10 + ROUNDS * len(WORKERS)
    # Twice the median of the ten that were there.
    assert norms[11] == 1.0


def ids_of_the_history(server: FakeServer, config: AggregatorConfig) -> list[UpdateId]:
    """Return what the records contain, along the parents from the newest back to version 0."""
    bodies = server.bodies(config.topology.models.name)
    by_digest = {
        StoredVersion(version, body).digest: version
        for body, version in zip(bodies, versions(server, config), strict=True)
    }
    chain = [newest(server, config)]
    while chain[-1].parent:
        chain.append(by_digest[chain[-1].parent])
    assert chain[-1].version == 0
    return [one.id for version in reversed(chain) for one in version.folded]
