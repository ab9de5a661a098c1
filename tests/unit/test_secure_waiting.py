"""Updates that wait beside a masked buffer: they come in as soon as they can, and cost nobody anything."""

from collections import Counter
from dataclasses import replace

import pytest
from builders import a_version
from fake_broker import FakeBroker, FakeServer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from leading import Clock, a_server, newest, rejected, send, take_the_lead, unacked, versions, work_off
from securing import VALUES, WORKERS, a_masked, a_secure_config, go_on, helpers

from fluffle.broker import Delivery
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.secure.waiting import RELEASE_AFTER_S


def test_hundreds_of_updates_that_waited_for_a_sum_are_taken_in_at_once() -> None:
    config = a_secure_config(buffer_size=600)
    each = 600 // len(WORKERS)
    server = a_server(config, *(a_masked(name, number) for number in range(1, each + 1) for name in WORKERS))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        work_off(leader, broker)
        send(
            server,
            config,
            *(a_masked(name, each + number) for number in range(1, each + 1) for name in WORKERS),
        )
        work_off(leader, broker)
        go_on(leader, broker, helpers(server, config))

    assert [len(version.folded) for version in versions(server, config)] == [0, 600, 600]
    assert unacked(server, config) == []


def test_an_update_that_waited_counts_once_for_the_limit_of_messages() -> None:
    config = replace(a_secure_config(), limits=Limits(limit_messages=2))
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        work_off(leader, broker)
        # They wait for the sum, and then for the next buffer.
        send(server, config, *(a_masked(name, 2) for name in VALUES))
        work_off(leader, broker)
        go_on(leader, broker, helpers(server, config))

    assert rejected(server, config) == []
    assert newest(server, config).version == 2


def test_a_fast_worker_leaves_room_for_the_next_updates_of_the_others() -> None:
    config = a_secure_config()
    fast = [a_masked("w1", number) for number in range(1, 5)]
    server = a_server(config, *fast, a_masked("w2", 1), a_masked("w2", 2), a_masked("w3"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        go_on(leader, broker, answering)
        assert [one["id"] for one in rejected(server, config)] == ["w1/r1/3", "w1/r1/4"]
        assert {one["reason"] for one in rejected(server, config)} == {"over-share"}
        send(server, config, a_masked("w3", 2, base_version=1))
        go_on(leader, broker, answering)

    assert [str(one.id) for one in newest(server, config).folded] == ["w1/r1/2", "w2/r1/2", "w3/r1/2"]


def test_updates_that_the_leader_gives_back_itself_are_no_messages_that_kill_leaders(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        for _ in range(5):
            clock.seconds += RELEASE_AFTER_S
            work_off(leader, broker)
        assert "trying a message" not in caplog.text
        go_on(leader, broker, helpers(server, config))

    assert newest(server, config).version == 1
    assert unacked(server, config) == []


@pytest.mark.parametrize("waits", ["before", "after"])
def test_a_fresh_update_among_late_ones_waits_for_no_new_worker(waits: str) -> None:
    # Of three workers, one fresh update weighs 64, and two late ones 23 each.
    config = a_secure_config(first=a_version(7))
    late = [a_masked("w2"), a_masked("w3")]
    fresh, more = a_masked("w1", base_version=7), a_masked("w2", 2)
    server = a_server(config, *late, *([more, fresh] if waits == "before" else [fresh, more]))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    version = newest(server, config)
    assert {str(one.id): one.weight * 64 for one in version.folded} == {
        "w1/r1/1": 64,
        "w2/r1/1": 23,
        "w2/r1/2": 23,
        "w3/r1/1": 23,
    }
    assert unacked(server, config) == []


def test_what_waited_for_a_sum_comes_into_a_full_buffer_in_which_one_worker_is_too_heavy() -> None:
    config = a_secure_config(first=a_version(7))
    server = a_server(config, *(a_masked(name, base_version=7) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        work_off(leader, broker)
        send(
            server,
            config,
            a_masked("w1", 2, base_version=7),
            a_masked("w2", 2),
            a_masked("w3", 2),
            a_masked("w4"),
        )
        work_off(leader, broker)
        go_on(leader, broker, answering)

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w3", "w4"]


class Impatient(FakeBroker):
    """Closes the channel of whoever keeps a message unacked for 30 minutes, as RabbitMQ does."""

    def __init__(self, server: FakeServer, clock: Clock) -> None:
        super().__init__(server)
        self._clock = clock
        self._delivered_at: dict[int, float] = {}

    def take(self, queue: str, delivery: Delivery) -> None:
        """See FakeBroker."""
        super().take(queue, delivery)
        self._delivered_at[delivery.tag] = self._clock()

    @property
    def longest_unacked_s(self) -> float:
        """How long the oldest unacked message is unacked."""
        return max((self._clock() - self._delivered_at[tag] for tag in self._unacked), default=0.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "answer", "wait"]), st.sampled_from(list(WORKERS)), st.integers(1, 1100)
        ),
        max_size=25,
    ),
    st.integers(3, 5),
)
# The buffer fills late, and then the sum waits for its helpers.
@example([("send", "w1", 1), ("wait", "", 1100), ("send", "w2", 1), ("send", "w3", 1), ("wait", "", 1100)], 3)
@settings(deadline=None, max_examples=60)
def test_no_update_stays_unacked_for_30_minutes_whatever_it_waits_for(
    deeds: list[tuple[str, str, int]], buffer_size: int
) -> None:
    config, clock = a_secure_config(buffer_size=buffer_size), Clock()
    server = a_server(config)
    answering, sent = helpers(server, config), Counter[str]()
    with Impatient(server, clock) as broker:
        leader = take_the_lead(broker, config, clock)
        for deed, worker, seconds in deeds:
            if deed == "send":
                sent[worker] += 1
                base = newest(server, config)
                send(server, config, a_masked(worker, sent[worker], base_version=base.version))
            for each in answering if deed == "answer" else []:
                each.answer()
            until = clock.seconds + (seconds if deed == "wait" else 1)
            while clock.seconds < until:
                clock.seconds = min(until, clock.seconds + 60)
                leader.hear()
                work_off(leader, broker)
                assert broker.longest_unacked_s < 1500
