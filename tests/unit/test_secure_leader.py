"""The leader under secure aggregation: it learns the sum of a buffer, and each update counts once."""

from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_vector, a_version, an_evaluation, an_update
from fake_broker import FakeBroker
from leading import (
    Clock,
    a_server,
    aggregate,
    newest,
    rejected,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)
from securing import (
    EPOCH,
    NAMES,
    VALUES,
    WITHOUT_W4,
    Epoch,
    Helper,
    a_masked,
    a_secure_config,
    expected,
    go_on,
    helpers,
)

from fluffle.model import Layout, TensorSpec
from fluffle.secure.closing import Finished, decode_close, decode_for_helper
from fluffle.update import WeightUpdate
from fluffle_aggregator.goal import Goal


def test_a_full_buffer_becomes_a_version_bit_for_bit_the_sum_without_masks() -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, helpers(server, config))

    version = newest(server, config)
    assert version.version == 1
    assert version.vector.tolist() == expected(((values, 64) for values in VALUES.values()), 3)
    assert [str(one.id) for one in version.folded] == ["w1/r1/1", "w2/r1/1", "w3/r1/1"]
    assert version.last_sum
    assert (version.last_sum.number, set(version.last_sum.helpers)) == (
        1,
        {"helper-1", "helper-2", "helper-3"},
    )
    assert unacked(server, config) == []


def test_late_updates_weigh_what_the_table_says() -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        go_on(leader, broker, answering)
        before = newest(server, config).vector
        late = [("w1", 0, 1, 45), ("w2", 1, 2, 64), ("w3", 1, 2, 64)]
        for name, base, term, _ in late:
            send(server, config, a_masked(name, 2, base_version=base, base_term=term, values=VALUES[name]))
        go_on(leader, broker, answering)

    version = newest(server, config)
    step = expected([(VALUES[name], factor) for name, _, _, factor in late], 3)
    assert version.vector.tolist() == (before + a_vector(*step)).tolist()
    assert [one.weight for one in version.folded] == [45 / 64, 1.0, 1.0]


def test_any_two_of_three_helpers_suffice_and_the_third_comes_back() -> None:
    for away in NAMES:
        config, clock = a_secure_config(), Clock()
        server = a_server(config, *(a_masked(name) for name in VALUES))
        with FakeBroker(server) as broker:
            leader = take_the_lead(broker, config, clock)
            at_work = helpers(server, config, [name for name in NAMES if name != away])
            go_on(leader, broker, at_work, clock)
            assert newest(server, config).version == 1
            send(server, config, *(a_masked(name, 2, base_version=1) for name in VALUES))
            # Those that have answered are asked now: nobody waits.
            go_on(leader, broker, at_work)
            assert newest(server, config).version == 2
            send(server, config, *(a_masked(name, 3, base_version=2) for name in VALUES))
            late = Helper(away, server, config)
            go_on(leader, broker, [late, at_work[0]], clock)
        assert newest(server, config).version == 3


def test_one_helper_alone_opens_nothing_and_the_log_says_who_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        [alone] = helpers(server, config, NAMES[:1])
        for _ in range(3):
            go_on(leader, broker, [alone], clock)
        assert newest(server, config).version == 0
        assert "the sum waits for helpers" in caplog.text
        assert "helper-2 or helper-3" in caplog.text

        go_on(leader, broker, [alone, Helper(NAMES[1], server, config)], clock)
        for _ in range(3):
            go_on(leader, broker, [alone, Helper(NAMES[1], server, config)], clock)

    assert newest(server, config).version == 1
    assert rejected(server, config) == []


@pytest.mark.parametrize("dies", ["before the openings", "after the openings", "before the commit"])
def test_the_next_leader_finishes_exactly_the_closed_sum(dies: str) -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    answering = helpers(server, config)
    with FakeBroker(server) as first:
        leader = take_the_lead(first, config, Clock())
        work_off(leader, first)
        if dies != "before the openings":
            for each in answering:
                each.answer()
    # More came meanwhile, and some of it is in front.
    send(server, config, a_masked("w4", values=(9.0 / 4,) * SIZE), a_masked("w5"))

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, answering)
        version = newest(server, config)
        assert version.vector.tolist() == expected(((values, 64) for values in VALUES.values()), 3)
        assert [one.id.worker for one in version.folded] == ["w1", "w2", "w3"]
        send(server, config, a_masked("w1", 2, base_version=1, base_term=3))
        go_on(leader, broker, answering)

    assert [one.id.worker for one in newest(server, config).folded] == ["w4", "w5", "w1"]
    assert unacked(server, config) == []
    assert rejected(server, config) == []


def test_the_next_leader_needs_no_update_again_once_the_sum_is_closed() -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    answering = helpers(server, config)
    with FakeBroker(server) as first:
        work_off(take_the_lead(first, config, Clock()), first)
    server.queue(config.topology.updates.name).ready.clear()
    send(server, config, an_evaluation())

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, answering)

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w3"]


def test_updates_of_a_sum_that_helpers_refuse_are_rejected_and_the_next_sum_is_opened() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in ("w1", "w2", "w4")))
    answering = [Helper(name, server, config, registry=WITHOUT_W4) for name in NAMES]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, answering, clock)
        refused = rejected(server, config)
        assert [one["id"] for one in refused] == ["w1/r1/1", "w2/r1/1", "w4/r1/1"]
        assert {one["reason"] for one in refused} == {"not-opened"}
        assert "unknown-worker: the worker w4 is revoked" in str(refused[0]["detail"])
        record = newest(server, config)
        assert record.vector.tolist() == [0.0] * SIZE
        assert record.last_sum
        assert "the worker w4 is revoked" in record.last_sum.given_up
        send(server, config, *(a_masked(name, 4, base_version=record.version) for name in VALUES))
        go_on(leader, broker, answering, clock)

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w3"]


def test_a_leader_that_dies_while_it_gives_up_leaves_that_to_the_next_one() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in ("w1", "w2", "w4")))
    answering = [Helper(name, server, config, registry=WITHOUT_W4) for name in NAMES]
    with FakeBroker(server) as first:
        leader = take_the_lead(first, config, clock)
        work_off(leader, first)
        for each in answering:
            each.answer()
        leader.hear()
    assert newest(server, config).version == 1
    assert rejected(server, config) == []
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, clock), broker, answering, clock)

    assert [one["reason"] for one in rejected(server, config)] == ["not-opened"] * 3
    assert unacked(server, config) == []


def test_nonsense_in_a_sum_is_discarded_and_its_workers_are_suspected() -> None:
    config = a_secure_config()
    nonsense = np.random.default_rng(0).integers(0, 2**32, SIZE, np.uint32)
    spoiled = EPOCH.masked(an_update("w3"), nonsense)
    server = a_server(config, a_masked("w1"), a_masked("w2"), spoiled)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, helpers(server, config))

    version = newest(server, config)
    assert version.vector.tolist() == [0.0] * SIZE
    assert {one["reason"] for one in rejected(server, config)} == {"unsound-sum"}
    assert "honest updates come to at most" in str(rejected(server, config)[0]["detail"])
    assert {name: one.suspected for name, one in version.contributors.items()} == {"w1": 1, "w2": 1, "w3": 1}


def test_a_buffer_of_too_few_workers_waits_says_so_and_is_never_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, clock = a_secure_config(buffer_size=6), Clock()
    caplog.set_level("INFO")
    server = a_server(config, *(a_masked(name, number) for name in ("w1", "w2") for number in (1, 2)))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(3):
            go_on(leader, broker, helpers(server, config))
            clock.seconds += 61
        assert server.bodies(config.topology.closes.name) == []
        assert "there are updates of 2 workers, and a sum needs 3" in caplog.text
        # Long before RabbitMQ would close the channel, they go back, and come again.
        clock.seconds += 1200
        go_on(leader, broker, helpers(server, config))
        assert "updates return to the queue" in caplog.text
        send(server, config, a_masked("w3"))
        clock.seconds += 61
        go_on(leader, broker, helpers(server, config))

    assert len(newest(server, config).folded) == 5
    assert rejected(server, config) == []


def test_one_worker_gives_no_more_than_its_share_of_a_buffer_and_what_waits_is_in_the_next() -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked("w1", number) for number in (1, 2)), a_masked("w2"), a_masked("w3"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        answering = helpers(server, config)
        go_on(leader, broker, answering)
        assert [str(one.id) for one in newest(server, config).folded] == ["w1/r1/1", "w2/r1/1", "w3/r1/1"]
        send(server, config, a_masked("w2", 2, base_version=1), a_masked("w3", 2, base_version=1))
        go_on(leader, broker, answering)

    folded = newest(server, config).folded
    assert [(str(one.id), one.staleness) for one in folded] == [
        ("w1/r1/2", 1),
        ("w2/r1/2", 0),
        ("w3/r1/2", 0),
    ]


@pytest.mark.parametrize(
    ("update", "reason", "says"),
    [
        (an_update("w1"), "wrong-content", "the update is not masked"),
        (
            a_masked("w1", epoch=Epoch(2)),
            "other-epoch",
            "masked for epoch 2, and the helpers have the keys of epoch 1",
        ),
        (
            replace(a_masked("w1"), id=replace(a_masked("w1").id, worker="w9")),
            "not-registered",
            "w9 is not in the",
        ),
        (a_masked("w1", values=(1.0,) * (SIZE + 1)), "wrong-layout", "the update has 5 trained values"),
    ],
)
def test_an_update_that_could_spoil_a_sum_is_refused_before(
    update: WeightUpdate, reason: str, says: str
) -> None:
    config = a_secure_config()
    server = a_server(config, update)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker)

    [found] = rejected(server, config)
    assert found["reason"] == reason
    assert says in str(found["detail"])


def test_statistics_are_merged_as_a_weighted_mean_under_the_masks() -> None:
    specs = (
        TensorSpec("dense/kernel", (SIZE,), "float32"),
        TensorSpec("norm/mean", (2,), "float32", "statistic"),
    )
    layout = Layout(specs)
    first = replace(a_version(layout=layout), statistics=a_vector(0.0, 1.0))
    config = a_secure_config(first=first)
    found = {"w1": (100.0, 1e-3), "w2": (-50.5, 65025.0), "w3": (0.25, 7.0)}
    sent = [a_masked(name, layout=layout, statistics=values) for name, values in found.items()]
    server = a_server(config, *sent)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    mean = np.mean([a_vector(*each).astype(np.float64) for each in found.values()], axis=0)
    np.testing.assert_allclose(newest(server, config).statistics, mean, rtol=1e-6)


def test_the_end_does_not_wait_for_a_sum_and_its_updates_are_refused() -> None:
    config, clock = a_secure_config(goal=Goal(max_seconds=5.0)), Clock()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker)
        clock.seconds += 10
        go_on(leader, broker, clock=clock)

    assert newest(server, config).finished
    assert [one["reason"] for one in rejected(server, config)] == ["finished"] * 3
    assert unacked(server, config) == []


def test_close_records_follow_each_other_across_leaders() -> None:
    config = a_secure_config()
    server = a_server(config)
    answering = helpers(server, config)
    for number in range(1, 4):
        term = number
        base = newest(server, config).version
        send(server, config, *(a_masked(name, number, base_version=base, base_term=term) for name in VALUES))
        with FakeBroker(server) as broker:
            go_on(take_the_lead(broker, config, Clock()), broker, answering)

    closes = [decode_close(body) for body in server.bodies(config.topology.closes.name)]
    assert [each.number for each in closes] == [1, 2, 3]
    assert newest(server, config).version == 3
    assert len(versions(server, config)) == 4


def test_whoever_sees_the_end_tells_the_helpers() -> None:
    finished = replace(a_version(), finished="3 versions")
    config = a_secure_config(first=finished)
    server = a_server(config)

    aggregate(server, config)

    [body] = server.bodies(config.topology.closes.name)
    assert decode_for_helper(body) == Finished(because="3 versions")


def test_what_waits_for_the_next_buffer_never_makes_one_larger_than_its_size() -> None:
    config = a_secure_config()
    names = ("w1", "w2", "w3", "w4", "w5", "w1", "w2", "w3", "w4")
    sent = [a_masked(name, names[:at].count(name) + 1) for at, name in enumerate(names)]
    server = a_server(config, *sent)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    assert [len(version.folded) for version in versions(server, config)] == [0, 3, 3, 3]
    assert unacked(server, config) == []
