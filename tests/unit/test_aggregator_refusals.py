"""What the aggregator refuses, where it goes, and that nothing else stops."""

from dataclasses import replace

import msgpack
import pytest
from builders import SIZE, a_config, a_layout, a_strategy, a_version, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    a_server,
    aggregate,
    encoded,
    newest,
    rejected,
    send,
    sender_of,
    take_the_lead,
    unacked,
    versions,
    work_off,
)
from messages import rewritten

from fluffle.broker import Delivery
from fluffle.framing import PROTOCOL
from fluffle.record import Evaluation, Hello
from fluffle.update import WeightUpdate
from fluffle.wire import encode_hello
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.reports import PATIENCE_S

NAN = float("nan")
GOOD = an_update("good", 2, base_version=0, values=[1] * SIZE)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "unreadable"),
        (b"not msgpack at all", "unreadable"),
        (encoded(GOOD)[:-1], "unreadable"),
        (bytes(msgpack.packb({"fluffle": PROTOCOL, "kind": "order"})) + b"\xc6\0\0\0\0", "unreadable"),
        (bytes(msgpack.packb({"fluffle": 1, "kind": "order"})) + b"\xc6\0\0\0\0", "other-protocol"),
        (rewritten(encoded(GOOD), id=["a b", "r1", 1]), "unreadable"),
        (rewritten(encoded(GOOD), id=["w" * 101, "r1", 1]), "unreadable"),
        (an_update(federation="other"), "wrong-federation"),
        (an_update(layout=a_layout(5), values=[1] * 5), "wrong-layout"),
        (an_update(values=[1] * 5), "wrong-layout"),
        (an_update(integers=b"\0"), "wrong-layout"),
        (an_update(sends="weights"), "wrong-content"),
        (an_update(values=[0, 0, 0, NAN]), "not-finite"),
        (an_update(values=[float("inf")] * SIZE, codec="bfloat16"), "not-finite"),
        (an_update(examples=0), "bad-examples"),
        (an_update(examples=-5), "bad-examples"),
        (an_update(examples=10**12), "bad-examples"),
        (an_update(base_version=99), "future-version"),
        (an_update("good", 1), "duplicate"),
        (an_evaluation(federation="other"), "wrong-federation"),
        (an_evaluation(99), "future-version"),
    ],
)
def test_one_bad_message_among_good_ones_is_moved_away_with_its_reason_and_the_rest_is_applied(
    bad: WeightUpdate | Evaluation | bytes, reason: str
) -> None:
    config = a_config(a_strategy("fedbuff", buffer_size=2))
    server = a_server(config, an_update("good", 1, values=[1] * SIZE), bad, GOOD)

    aggregate(server, config)

    assert newest(server, config).version == 1
    assert newest(server, config).vector.tolist() == [1.0] * SIZE
    assert newest(server, config).rejected == 1
    assert unacked(server, config) == []
    [headers] = rejected(server, config)
    assert headers["reason"] == reason
    assert headers["detail"]
    assert headers["user"] == sender_of(bad)
    assert headers["from"] == config.topology.updates.name
    assert server.bodies(config.topology.rejected.name) == [encoded(bad)]


def test_a_late_update_is_refused_with_what_it_is_grepped_for() -> None:
    config = a_config(a_strategy(buffer_size=1), limits=Limits(max_staleness=1))
    fresh = [an_update("fast", n, base_version=n - 1) for n in (1, 2)]
    server = a_server(config, *fresh, an_update("slow", 1), an_update("fast", 3, base_version=2))

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["id"] == "slow/r1/1"
    assert headers["worker"] == "slow"
    assert headers["reason"] == "too-stale"
    assert "2 versions ago; at most 1 are allowed" in str(headers["detail"])
    assert newest(server, config).version == 3


def test_the_longest_names_still_go_through_the_brokers_short_strings() -> None:
    longest = replace(an_update("w" * 100, 2**64 - 1, run="r" * 100), examples=0)
    config = a_config()
    server = a_server(config, longest)

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == "bad-examples"
    assert len(str(headers["id"]).encode()) <= 255


def test_an_update_that_is_sent_again_is_refused_as_a_duplicate_even_many_versions_later() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, *(an_update("w", n, base_version=n - 1) for n in range(1, 30)))
    aggregate(server, config)

    send(server, config, an_update("w", 1))
    aggregate(server, config)

    assert [line["reason"] for line in rejected(server, config)] == ["duplicate"]
    assert newest(server, config).updates == 29


def test_refusals_are_counted_for_their_sender_even_if_all_that_it_sent_was_refused() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(
        config,
        an_update("known", 1),
        an_update("known", 2, examples=0),
        an_update("stranger", 1, examples=0),
        an_update("known", 3, base_version=1),
    )

    aggregate(server, config)

    record = newest(server, config)
    assert record.rejected == 2
    assert {name: one.rejected for name, one in record.contributors.items()} == {"known": 1, "stranger": 1}
    stranger = record.contributors["stranger"]
    assert stranger.updates == 0
    assert stranger.refusal.startswith("bad-examples: the update claims 0 examples; expected 1 to")


def test_what_comes_after_the_end_is_not_counted_as_refused() -> None:
    config = a_config(a_strategy(buffer_size=1), goal=Goal(max_versions=1))
    clock, server = Clock(), a_server(config, an_evaluation(0, {"accuracy": 0.5}), an_update("w1", 1))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        closing = newest(server, config)
        send(server, config, an_update("w1", 2, base_version=1), an_update("w2", 1, examples=0))
        work_off(leader, broker)
        clock.seconds += 10 * PATIENCE_S
        work_off(leader, broker)

    record = newest(server, config)
    assert closing.closing == record.finished == "1 versions were made"
    assert [line["reason"] for line in rejected(server, config)] == ["finished", "finished"]
    assert record.rejected == 0
    assert {name: one.rejected for name, one in record.contributors.items()} == {"w1": 0}


@pytest.mark.parametrize("user", ["a b", "w" * 101, "ünï"])
def test_a_refusal_of_a_user_that_no_worker_can_be_leaves_the_record_readable(user: str) -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config)
    with FakeBroker(server, user=user) as broker:
        broker.publish(config.topology.updates_in.name, "", b"junk", {})
    send(server, config, an_update("known", 1))

    aggregate(server, config)

    assert (newest(server, config).version, newest(server, config).rejected) == (1, 1)
    assert set(newest(server, config).contributors) == {"known"}


def test_metrics_of_any_name_stop_nobody() -> None:
    names = ["event", "version", "held", "metrics", "self", "level", "time", "exc_info", "f1/0"]
    report = an_evaluation(0, dict.fromkeys(names, 0.5))
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, report, an_update())

    aggregate(server, config)

    evaluation = newest(server, config).evaluation
    assert evaluation is not None
    assert evaluation.metrics == report.metrics


def test_a_hello_is_acked_and_nothing_else() -> None:
    config = a_config()
    server = a_server(config, encode_hello(Hello("digits", "another")))

    aggregate(server, config)

    assert unacked(server, config) == []
    assert rejected(server, config) == []
    assert len(versions(server, config)) == 1


def test_after_the_end_an_update_is_refused_as_finished_and_no_version_follows() -> None:
    config = a_config(a_strategy(buffer_size=1), first=a_version(finished="it was enough"))
    server = a_server(config, an_update("late"))

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == "finished"
    assert "it was enough" in str(headers["detail"])
    assert len(versions(server, config)) == 1


def deliver_in_vain(server: FakeServer, config: AggregatorConfig, times: int) -> None:
    """Let aggregators take what waits into their hands, and die so many times."""
    for _ in range(times):
        with FakeBroker(server) as broker:
            broker.consume(config.topology.updates.name, prefetch=10)


def test_of_what_was_there_when_two_aggregators_died_only_the_cause_is_refused() -> None:
    poison = encoded(an_update("poison"))
    tried = []

    def try_out(_model: GlobalModel, delivery: Delivery) -> str:
        tried.append(delivery.body)
        return "was ended by SIGKILL" if delivery.body == poison else ""

    config = a_config(a_strategy(buffer_size=2), try_out=try_out)
    innocent = [an_update("before"), an_update("behind")]
    server = a_server(config, innocent[0], an_update("poison"), innocent[1])
    deliver_in_vain(server, config, times=2)

    aggregate(server, config)

    assert tried == [encoded(innocent[0]), poison, encoded(innocent[1])]
    assert [one.id.worker for one in newest(server, config).folded] == ["before", "behind"]
    [headers] = rejected(server, config)
    assert headers["reason"] == "crashes"
    assert headers["detail"] == "after 2 deliveries, a process that tried this message was ended by SIGKILL"


def test_what_was_delivered_in_vain_once_is_taken_in_at_once() -> None:
    config = a_config(a_strategy(buffer_size=1), try_out=lambda _layout, _body: "must not be asked")
    server = a_server(config, an_update())
    deliver_in_vain(server, config, times=1)

    aggregate(server, config)

    assert newest(server, config).version == 1
    assert rejected(server, config) == []


@pytest.mark.parametrize(
    ("message", "user", "exchange", "says"),
    [
        (an_update("honest"), "other", "digits.updates", "'honest' but comes from the RabbitMQ user 'other'"),
        (an_update("honest"), None, "digits.updates", "no verified RabbitMQ user"),
        (
            an_update("e1"),
            "e1",
            "digits.evaluations",
            "the exchange digits.updates, not 'digits.evaluations'",
        ),
        (an_update("honest"), "honest", "", "the exchange digits.updates, not ''"),
        (an_evaluation(evaluator="w1"), "w1", "digits.updates", "the exchange digits.evaluations"),
        (an_evaluation(evaluator="e1"), "w1", "digits.evaluations", "'e1' but comes from"),
        (an_evaluation(evaluator="e1"), None, "digits.evaluations", "no verified RabbitMQ user"),
    ],
)
def test_nobody_is_believed_but_the_broker_about_who_sent_a_message(
    message: WeightUpdate | Evaluation, user: str | None, exchange: str, says: str
) -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("honest", 2))
    forged = Delivery(0, encoded(message), 0, user, exchange)
    server.queue(config.topology.updates.name).put(forged)

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == "foreign-sender"
    assert says in str(headers["detail"])
    assert newest(server, config).updates == 1
    assert newest(server, config).evaluation is None
    # The honest worker has nothing to do with it.
    assert newest(server, config).contributors["honest"].rejected == 0


@pytest.mark.parametrize(
    ("limits", "reason", "setting"),
    [
        (Limits(limit_messages=2), "too-many", "limit_messages"),
        (Limits(limit_mib=0.9 / 1024), "too-much", "limit_mib"),
        (Limits(limit_share=0.5), "over-share", "limit_share"),
        (Limits(limit_examples=49), "bad-examples", "limit_examples"),
        (Limits(limit_norm=2.0), "large-norm", "limit_norm"),
    ],
)
def test_a_worker_over_a_limit_is_refused_by_its_name_and_the_others_are_applied(
    limits: Limits, reason: str, setting: str
) -> None:
    first = replace(a_version(), norms=(2.0,) * 10)
    config = a_config(a_strategy(buffer_size=4), limits=limits, first=first)
    fair = [an_update("greedy", 1), an_update("greedy", 2), an_update("fair", 1)]
    over = an_update("greedy", 3, run="r" * 100, values=[9] * SIZE, examples=50)
    server = a_server(config, *fair, over, an_update("fair", 2))

    aggregate(server, config)

    record = newest(server, config)
    assert record.vector.tolist() == [1.0] * SIZE
    assert {name: (one.updates, one.rejected) for name, one in record.contributors.items()} == {
        "greedy": (2, 1),
        "fair": (2, 0),
    }
    [headers] = rejected(server, config)
    assert (headers["reason"], headers["worker"], headers["user"]) == (reason, "greedy", "greedy")
    assert setting in str(headers["detail"])


def test_what_is_too_many_is_refused_before_it_is_read() -> None:
    config = a_config(limits=Limits(limit_messages=1))
    server = a_server(config, b"rubbish", b"rubbish")

    aggregate(server, config)

    assert [headers["reason"] for headers in rejected(server, config)] == ["unreadable", "too-many"]
