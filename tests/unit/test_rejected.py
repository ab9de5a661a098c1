"""`fluffle rejected`: what is known of a message, which are meant, and where they go."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pytest
from builders import SIZE, a_config, a_strategy, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from leading import a_server, aggregate, encoded, newest, rejected, send, unacked

from fluffle.broker import Delivery
from fluffle.errors import AccessRefused, ConfigError, QueueFull
from fluffle.pieces import Body
from fluffle_aggregator.gates.limits import Limits
from fluffle_cli.rejected import (
    RejectedMessage,
    Selection,
    read_rejected,
    remove,
    send_again,
    summary_of,
)
from fluffle_cli.rejected_command import message_facts

STRICT = a_config(a_strategy(buffer_size=1), limits=Limits(max_staleness=0))
LENIENT = a_config(a_strategy(buffer_size=1))
TOPOLOGY = STRICT.topology
ALL = Selection(("all",))


def a_server_that_refused(count: int = 2) -> FakeServer:
    """Return a server where updates came too late for a strict aggregator: 2, 3 ... of the worker w."""
    server = a_server(STRICT, *(an_update("w", n, values=[1] * SIZE) for n in range(1, count + 2)))
    aggregate(server, STRICT)
    assert [headers["reason"] for headers in rejected(server, STRICT)] == ["too-stale"] * count
    return server


def messages(broker: FakeBroker, wanted: Selection = ALL) -> tuple[list[RejectedMessage], BytesIO]:
    """Read all, and return those that are wanted with their bodies."""
    found, bodies = [], BytesIO()
    for message, body in read_rejected(broker, TOPOLOGY):
        if message in wanted:
            found.append(message)
            bodies.write(body)
    bodies.seek(0)
    return found, bodies


def a_message(number: int = 1, *, reason: str = "too-stale", worker: str = "w") -> RejectedMessage:
    headers = {"reason": reason, "worker": worker, "id": f"{worker}/r/{number}"}
    return RejectedMessage.of(Delivery(number, b"body", headers=headers), number)


def numbers(selection: Selection, among: Sequence[RejectedMessage]) -> list[int]:
    return [message.number for message in among if message in selection]


def test_a_refused_message_has_its_reason_its_worker_and_its_time() -> None:
    server = a_server_that_refused(1)

    with FakeBroker(server) as broker:
        [message], _ = messages(broker)

    assert (message.number, message.reason, message.worker, message.id) == (1, "too-stale", "w", "w/r1/2")
    assert message.detail.startswith("the update started from version 0")
    assert message.size_bytes == len(encoded(an_update("w", 2)))
    assert message.at is not None
    assert "tag" not in message.as_json()


def test_a_message_that_rabbitmq_moved_has_its_reason_whatever_the_sender_wrote() -> None:
    headers = {
        "reason": "admitted",
        "worker": "somebody-else",
        "id": "w/r/1",
        "x-first-death-reason": "delivery_limit",
        "x-first-death-exchange": TOPOLOGY.updates_in.name,
        "x-death": [],
    }

    message = RejectedMessage.of(Delivery(1, b"body", user="w", headers=headers), 1)

    assert (message.reason, message.worker, message.user, message.at) == ("delivery-limit", "w", "w", None)
    assert message.through == TOPOLOGY.updates_in.name
    assert "every aggregator that received it died" in message.detail


@pytest.mark.parametrize("at", ["", "soon", "nan", "-5", "1e300"])
def test_an_invalid_time_counts_as_unknown(at: str) -> None:
    assert RejectedMessage.of(Delivery(1, b"", headers={"reason": "x", "at": at}), 1).at is None


def test_what_would_move_the_cursor_of_a_terminal_is_not_shown() -> None:
    headers = {"reason": "unreadable", "detail": "found '\x1b[2J\r\n'", "user": "\x9b1m"}

    message = RejectedMessage.of(Delivery(1, b"", headers=headers), 1)

    assert (message.detail + message.user).isprintable()


@pytest.mark.parametrize(
    ("which", "reason", "worker", "expected"),
    [
        ("all", None, None, [1, 2, 3, 4]),
        ("2", None, None, [2]),
        ("1,3-4", None, None, [1, 3, 4]),
        ("a/r/1,4", None, None, [1, 4]),
        ("all", "duplicate", None, [2, 4]),
        ("all", "duplicate", "a", [2]),
        ("1-3", None, "b", [3]),
    ],
)
def test_messages_are_selected_by_number_range_id_reason_and_worker(
    which: str, reason: str | None, worker: str | None, expected: list[int]
) -> None:
    among = [
        a_message(1, worker="a"),
        a_message(2, worker="a", reason="duplicate"),
        a_message(3, worker="b"),
        a_message(4, worker="b", reason="duplicate"),
    ]

    assert numbers(Selection.parse(which, reason=reason, worker=worker), among) == expected


@pytest.mark.parametrize("which", ["", "x", "3-", "-3", "5-2", "all,3", "3,,4", "1-2-3", "9" * 5000])
def test_a_selection_that_means_no_message_is_refused_by_name(which: str) -> None:
    with pytest.raises(ConfigError, match="is no message: give numbers"):
        Selection.parse(which, reason=None, worker=None)


def test_a_selected_message_that_does_not_exist_is_an_error() -> None:
    selection = Selection.parse("1,7-9,w/r/5", reason=None, worker=None)

    with pytest.raises(ConfigError, match=r"no message is 7-9, w/r/5: see `fluffle rejected list`"):
        selection.require_match([a_message(1)])


def test_a_requeued_update_is_checked_again_as_its_senders_and_the_others_stay() -> None:
    server = a_server_that_refused(3)
    with FakeBroker(server, user="operator") as broker:
        chosen, bodies = messages(broker, Selection.parse("w/r1/2,3", reason=None, worker=None))
        assert [one.id for one in send_again(broker, TOPOLOGY, chosen, bodies)] == ["w/r1/2", "w/r1/4"]

    senders = [delivery.user for delivery in server.queue(TOPOLOGY.updates.name).ready]
    aggregate(server, LENIENT)

    assert senders == [chosen[0].user] * 2 != ["operator"] * 2
    assert newest(server, LENIENT).updates == 3
    assert [headers["id"] for headers in rejected(server, LENIENT)] == ["w/r1/3"]
    assert unacked(server, LENIENT) == []


def test_a_duplicate_that_is_requeued_comes_back_and_counts_once() -> None:
    server = a_server(LENIENT, an_update("w", 1))
    aggregate(server, LENIENT)
    send(server, LENIENT, an_update("w", 1))
    aggregate(server, LENIENT)

    with FakeBroker(server) as broker:
        chosen, bodies = messages(broker)
        list(send_again(broker, TOPOLOGY, chosen, bodies))
    aggregate(server, LENIENT)

    assert newest(server, LENIENT).updates == 1
    assert [headers["reason"] for headers in rejected(server, LENIENT)] == ["duplicate"]


class SendsOne(FakeBroker):
    """A connection that sends one message in another's name, and then raises."""

    def __init__(self, server: FakeServer, error: Exception) -> None:
        super().__init__(server)
        self._error = error
        self._sent = 0

    def publish_as(
        self, user: str, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]
    ) -> None:
        """See Broker."""
        if self._sent:
            raise self._error
        self._sent += 1
        super().publish_as(user, exchange, routing_key, body, headers)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            AccessRefused("user_id"),
            "message 2 cannot be sent again as its sender .* has the tag impersonator",
        ),
        (QueueFull("full"), r"message 2 and those behind it stay in digits.rejected"),
    ],
)
def test_when_the_broker_refuses_a_message_it_and_the_rest_stay_in_the_queue(
    error: Exception, words: str
) -> None:
    server = a_server_that_refused(3)

    with SendsOne(server, error) as broker:
        chosen, bodies = messages(broker)
        with pytest.raises(type(error), match=words):
            list(send_again(broker, TOPOLOGY, chosen, bodies))

    assert len(server.bodies(TOPOLOGY.updates.name)) == 1
    assert [headers["id"] for headers in rejected(server, STRICT)] == ["w/r1/3", "w/r1/4"]


def test_a_crash_between_sending_and_removing_leaves_the_message_in_both_queues_and_it_counts_once() -> None:
    server = a_server_that_refused(1)
    with FakeBroker(server) as broker:
        [message], bodies = messages(broker)
        broker.publish_as(message.user, TOPOLOGY.updates_in.name, "", bodies.read(), {})
    assert len(rejected(server, LENIENT)) == 1
    aggregate(server, LENIENT)

    with FakeBroker(server) as broker:
        chosen, bodies = messages(broker)
        list(send_again(broker, TOPOLOGY, chosen, bodies))
    aggregate(server, LENIENT)

    assert newest(server, LENIENT).updates == 2
    assert [headers["reason"] for headers in rejected(server, LENIENT)] == ["duplicate"]


def test_discarded_messages_are_gone_and_the_others_stay_in_their_order() -> None:
    server = a_server_that_refused(4)

    with FakeBroker(server) as broker:
        chosen, _ = messages(broker, Selection.parse("1,3", reason=None, worker=None))
        assert len(list(remove(broker, TOPOLOGY, chosen))) == 2

    assert [headers["id"] for headers in rejected(server, STRICT)] == ["w/r1/3", "w/r1/5"]


def test_messages_are_counted_by_reason_and_worker() -> None:
    messages = [a_message(), a_message(worker="b"), a_message(reason="duplicate")]

    assert summary_of(messages) == "3 messages, 12 bytes: 2 too-stale, 1 duplicate; from w 2, b 1"
    assert summary_of(messages[:1]) == "1 message, 4 bytes: 1 too-stale; from w 1"
    assert summary_of([]) == "no such message is in the queue"


def test_an_update_is_described_with_its_vector() -> None:
    values = [3.0, -4.0, float("nan"), float("inf")]
    facts = dict(message_facts(encoded(an_update("w", 7, values=values, loss=0.5))))

    assert facts["id"] == "w/r1/7"
    assert (facts["kind"], facts["examples"], facts["codec"]) == ("WeightUpdate", "10", "float32")
    assert (facts["parameters"], facts["NaN"], facts["infinite"]) == ("4", "1", "1")
    assert facts["finite values"] == "min -4, max 3, L2 norm 5"
    assert facts["loss"] == "0.5"


def test_a_vector_without_a_finite_number_is_described_without_a_warning() -> None:
    facts = dict(message_facts(encoded(an_update(values=[float("nan")] * SIZE))))

    assert facts["NaN"] == str(SIZE)
    assert "finite values" not in facts


def test_large_finite_numbers_have_a_norm() -> None:
    largest = float(np.finfo(np.float32).max)
    facts = dict(message_facts(encoded(an_update(values=[largest] * SIZE))))

    assert facts["finite values"].endswith(f"L2 norm {2 * largest:.4g}")


def test_evaluations_and_unreadable_messages_are_described_too() -> None:
    assert dict(message_facts(encoded(an_evaluation(3, {"loss": 1.0}))))["evaluator"] == "e1"
    assert "a map" in dict(message_facts(b"\xc1 no message"))["cannot be read"]
    assert dict(message_facts(b"\xc1\x00"))["begins with"] == "c1 00"
