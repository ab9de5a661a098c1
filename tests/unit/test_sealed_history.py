"""Whatever happens to the leaders of a sealed federation, its model is what its records say is in it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fake_broker import FakeBroker, FakeServer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from leading import a_server, aggregate, newest, send, unacked, versions
from sealed_leading import refusals
from sealing import a_refresh, a_sealed_config, a_sealed_plan, a_sealed_update, opened

from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.update import UpdateId, WeightUpdate
from fluffle_aggregator.config import AggregatorConfig

WORKERS = ("w1", "w2", "w3")
ACTIONS = st.one_of(
    st.tuples(st.just("update"), st.sampled_from(WORKERS), st.integers(0, 3)),
    st.tuples(st.just("refresh"), st.sampled_from(WORKERS), st.just(0)),
    st.tuples(st.just("again"), st.sampled_from(WORKERS), st.just(0)),
    st.tuples(st.just("death"), st.just(""), st.integers(1, 3)),
    st.tuples(st.just("lead"), st.just(""), st.just(0)),
)


class Sites:
    """What the workers have sent: each update with its values."""

    def __init__(self, server: FakeServer, config: AggregatorConfig) -> None:
        self.server, self.config = server, config
        self.sent: dict[UpdateId, WeightUpdate] = {}
        self.values: dict[UpdateId, np.ndarray] = {}
        self._random = np.random.default_rng(3)

    def next_of(self, worker: str) -> int:
        """Return the number of a worker's next message."""
        return 1 + sum(each.worker == worker for each in self.sent)

    def train(self, worker: str, late: int) -> None:
        """Send an update that started from so many versions before the newest one."""
        known = versions(self.server, self.config)
        base = known[max(0, len(known) - 1 - late)]
        values = self._random.uniform(-1, 1, 4).astype(np.float32)
        update = a_sealed_update(
            worker, self.next_of(worker), values=values.tolist(), base_version=base.version
        )
        self._send(replace(update, base_term=base.term))
        self.values[update.id] = values.astype(np.float64)

    def refresh(self, worker: str) -> None:
        """Send a refresh of the newest version, asked for or not."""
        version = newest(self.server, self.config)
        if version.sealed_sum:
            self._send(a_refresh(version, worker, self.next_of(worker)))

    def send_again(self, worker: str) -> None:
        """Send a worker's last message once more."""
        mine = [update for each, update in self.sent.items() if each.worker == worker]
        if mine:
            send(self.server, self.config, mine[-1])

    def _send(self, update: WeightUpdate) -> None:
        self.sent[update.id] = update
        send(self.server, self.config, update)


def die(server: FakeServer, config: AggregatorConfig, having: int) -> None:
    """Let an aggregator die that has so many messages, and has done nothing with them."""
    with FakeBroker(server) as broker:
        broker.consume(config.topology.updates.name, prefetch=config.prefetch)
        for _ in range(having):
            broker.next_delivery(0)


@given(st.lists(ACTIONS, min_size=3, max_size=25))
@example([*[("update", "w1", 0)] * 3, ("lead", "", 0), ("refresh", "w1", 0)])
@settings(max_examples=60, deadline=None)
def test_the_model_is_the_sum_of_what_is_in_it_whoever_led(actions: Sequence[tuple[str, str, int]]) -> None:
    plan = replace(a_sealed_plan(), clip=LARGEST_VALUE / 128 / 8)
    config = a_sealed_config(plan)
    server = a_server(config)
    sites = Sites(server, config)

    for action, worker, number in actions:
        match action:
            case "update":
                sites.train(worker, number)
            case "refresh":
                sites.refresh(worker)
            case "again":
                sites.send_again(worker)
            case "death":
                die(server, config, number)
            case "lead":
                aggregate(server, config)
    aggregate(server, config)

    history = versions(server, config)
    expected = np.full(4, 0.5)
    for version in history:
        for one in version.folded:
            expected += one.weight * 64 * sites.values[one.id] / plan.divisor
        if version.version == history[-1].version:
            assert opened(history[-1]) == pytest.approx(expected.tolist(), abs=2.0**-24)
        assert version.sealed is not None
        assert version.sealed.bound(plan) <= LARGEST_VALUE
    folded = [one.id for version in history for one in version.folded]
    assert len(folded) == len(set(folded)) == history[-1].updates
    assert {reason for reason, _ in refusals(server, config)} <= {"duplicate", "late-refresh", "range-full"}
    # One may wait for another one of its buffer, and with it what came behind it but fills no buffer.
    behind = sum(action in ("again", "refresh") for action, _, _ in actions)
    assert len(unacked(server, config)) <= 1 + behind
