"""Synchronous rounds with secure aggregation: a round that cannot be completed is followed by another one."""

from builders import SIZE, a_config, a_strategy, an_update
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, rejected, send, take_the_lead, unacked, work_off
from securing import VALUES, a_masked, a_secure_config, go_on, helpers

from fluffle_aggregator.secure.waiting import RELEASE_AFTER_S

TIMEOUT_S = 60.0


def test_a_round_of_which_an_update_was_refused_is_followed_by_another_one() -> None:
    config, clock = a_secure_config(name="fedavg"), Clock()
    server = a_server(config, a_masked("w1"), a_masked("w2"), an_update("w3"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        answering = helpers(server, config)
        go_on(leader, broker, answering)
        assert newest(server, config).version == 0
        clock.seconds += TIMEOUT_S
        go_on(leader, broker, answering)
        # Nobody trains a second time for one version.
        again = newest(server, config)
        assert (again.version, again.vector.tolist(), again.folded) == (1, [0.0] * SIZE, ())
        send(server, config, *(a_masked(name, 2, base_version=1) for name in VALUES))
        go_on(leader, broker, answering)

    assert [str(one.id) for one in newest(server, config).folded] == ["w1/r1/2", "w2/r1/2", "w3/r1/2"]
    reasons = {str(one["id"]): one["reason"] for one in rejected(server, config)}
    assert reasons == {"w3/r1/1": "wrong-content", "w1/r1/1": "too-stale", "w2/r1/1": "too-stale"}


def test_a_round_waits_for_its_slowest_worker_for_as_long_as_its_update_may_come() -> None:
    config, clock = a_secure_config(name="fedavg"), Clock()
    server = a_server(config, a_masked("w1"), a_masked("w2"), a_masked("w2"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(30):
            work_off(leader, broker)
            clock.seconds += TIMEOUT_S
        assert newest(server, config).version == 0
        send(server, config, a_masked("w3"))
        go_on(leader, broker, helpers(server, config))

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w3"]


def test_a_round_whose_last_update_never_comes_is_followed_by_another_one_after_an_hour() -> None:
    config, clock = a_secure_config(name="fedavg"), Clock()
    server = a_server(config, a_masked("w1"), a_masked("w2"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        while newest(server, config).version == 0:
            clock.seconds += TIMEOUT_S
            work_off(leader, broker)
        work_off(leader, broker)

    assert 3600 < clock.seconds < 4500
    assert [one["reason"] for one in rejected(server, config)] == ["too-stale", "too-stale"]
    assert unacked(server, config) == []


def test_asynchronous_updates_wait_for_further_workers_whatever_was_refused() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, a_masked("w1"), a_masked("w2"), an_update("w3"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        while clock.seconds < 3 * RELEASE_AFTER_S + 10 * TIMEOUT_S:
            work_off(leader, broker)
            clock.seconds += TIMEOUT_S

    assert newest(server, config).version == 0
    assert [one["reason"] for one in rejected(server, config)] == ["wrong-content"]


def test_each_round_of_which_all_updates_were_refused_is_followed_by_another_one() -> None:
    config, clock = a_config(a_strategy("fedavg", buffer_size=2)), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for number in range(1, 8):
            assert newest(server, config).version == number - 1
            wrong = [
                an_update(name, number, base_version=number - 1, examples=10**10) for name in ("w1", "w2")
            ]
            send(server, config, *wrong)
            work_off(leader, broker)
            clock.seconds += TIMEOUT_S
            work_off(leader, broker)

    assert newest(server, config).version == 7
