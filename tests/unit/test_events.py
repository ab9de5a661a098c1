"""Events: each kind travels as it is, what is broken is refused, and telling is never in the way."""

import math
import threading
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import pytest
from fake_broker import FakeBroker, FakeServer
from federation import wait_until
from hypothesis import given
from hypothesis import strategies as st
from messages import rewritten, taken_apart

from fluffle.errors import WireError
from fluffle.event_sink import MAX_WAITING, SEND_EVERY_S, ReportingSink
from fluffle.events import (
    KINDS,
    MAX_EVENTS,
    MAX_TEXT,
    Applied,
    Evaluated,
    Event,
    Happened,
    Joined,
    Left,
    Published,
    Report,
    Text,
    Trained,
)
from fluffle.fields import AnyNumber, Metrics
from fluffle.record import Hello
from fluffle.topology import topology_of
from fluffle.wire import decode_report, encode_hello, encode_report

TOPOLOGY = topology_of("digits")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: Mapping[object, st.SearchStrategy[Any]] = {
    Text: st.text(max_size=MAX_TEXT),
    int: st.integers(-(2**63) + 1, 2**63),
    float: NUMBERS,
    AnyNumber | None: st.none() | NUMBERS,
    Literal["evaluator", "sites"]: st.sampled_from(["evaluator", "sites"]),
    Metrics: st.dictionaries(st.sampled_from(["accuracy", "loss"]), NUMBERS),
}


def any_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    """Return events of one kind with any values."""
    return st.builds(kind, *(VALUES[each.type] for each in fields(kind)))


@given(events=st.lists(st.one_of(*map(any_of, KINDS.values())), max_size=8), at=NUMBERS)
def test_a_report_comes_back_as_it_was_sent(events: list[Event], at: float) -> None:
    report = Report("digits", "worker", "w1", tuple(Happened(at, event) for event in events))

    assert decode_report(encode_report(report)) == report


def test_long_texts_are_cut_and_metrics_that_are_not_finite_stay() -> None:
    events = Left("x" * 2 * MAX_TEXT), Evaluated(1, {"loss": math.nan, "accuracy": 0.5})
    report = Report("digits", "aggregator", "a", tuple(Happened(0.0, event) for event in events))

    left, evaluated = (each.event for each in decode_report(encode_report(report)).events)

    assert left == Left("x" * MAX_TEXT)
    assert isinstance(evaluated, Evaluated)
    assert str(evaluated.metrics) == "{'loss': nan, 'accuracy': 0.5}"


def test_the_loss_of_a_round_may_be_nan_or_missing() -> None:
    rounds = [Trained("w1/r1/1", 1.0, math.nan), Trained("w1/r1/2", 1.0)]
    report = Report("digits", "worker", "w1", tuple(Happened(0.0, each) for each in rounds))

    first, second = [each.event for each in decode_report(encode_report(report)).events]

    assert isinstance(first, Trained)
    assert first.loss is not None
    assert math.isnan(first.loss)
    assert second == rounds[1]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([[0.0, ["exploded"]]], r"events\[0\].event: unknown 'exploded'"),
        ([[0.0, []]], r"events\[0\].event: unknown ''"),
        ([[0.0, "joined"]], r"events\[0\].event: unknown ''"),
        ([["noon", ["joined"]]], r"events\[0\].at: expected int or float"),
        ([[0.0, ["left"]]], r"events\[0\].event: expected a list of because"),
        ([[0.0, ["left", 7]]], r"events\[0\].event.because: expected str"),
        ([[0.0, ["left", "x" * (MAX_TEXT + 1)]]], r"because: 501 characters"),
        ([[0.0, ["joined"]]] * (MAX_EVENTS + 1), r"events: 257 entries, at most 256"),
    ],
)
def test_the_error_of_a_broken_report_names_the_field(events: list[object], said: str) -> None:
    report = encode_report(Report("digits", "worker", "w1", ()))

    with pytest.raises(WireError, match=said):
        decode_report(rewritten(report, events=events))


def test_a_message_of_another_kind_is_refused_as_a_report() -> None:
    with pytest.raises(WireError, match="field kind: unknown 'hello'"):
        decode_report(encode_hello(Hello("digits", "w1")))


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer()
    with FakeBroker(server) as broker:
        broker.declare(TOPOLOGY)
    return server


def heard_by(server: FakeServer) -> list[Report]:
    """Return what waits for the one who listens."""
    [heard] = server.listeners[TOPOLOGY.events.name].values()
    return [decode_report(delivery.body) for delivery in heard]


def test_events_arrive_in_order_with_the_name_of_their_sender(server: FakeServer) -> None:
    told: list[Event] = [Published(number) for number in range(MAX_EVENTS + 5)]
    event_sink = ReportingSink(TOPOLOGY, role="worker", name="w1")
    with FakeBroker(server) as broker, broker.listen(TOPOLOGY.events.name, name="test"):
        with event_sink.over(broker):
            for event in told:
                event_sink(event)
        reports = heard_by(server)

    assert [each.event for report in reports for each in report.events] == [Joined(), *told]
    assert {(report.role, report.name) for report in reports} == {("worker", "w1")}
    assert server.last_topic == "worker.w1"


def test_events_are_published_while_the_connection_lasts_and_not_only_at_its_end(server: FakeServer) -> None:
    event_sink = ReportingSink(TOPOLOGY, role="aggregator", name="a")
    with (
        FakeBroker(server) as broker,
        broker.listen(TOPOLOGY.events.name, name="test"),
        event_sink.over(broker),
    ):
        wait_until(lambda: bool(heard_by(server)), "a report", deadline_s=100 * SEND_EVERY_S)


def test_without_a_connection_the_newest_events_wait_for_the_next_one(server: FakeServer) -> None:
    event_sink = ReportingSink(TOPOLOGY, role="worker", name="w1")
    for number in range(2 * MAX_WAITING):
        event_sink(Published(number))
    with FakeBroker(server) as broker, broker.listen(TOPOLOGY.events.name, name="test"):
        with event_sink.over(broker):
            pass
        events = [each.event for report in heard_by(server) for each in report.events]

    assert len(events) == MAX_WAITING
    assert events[-2:] == [Published(2 * MAX_WAITING - 1), Joined()]


def test_events_that_cannot_be_encoded_are_dropped_and_later_ones_are_published(server: FakeServer) -> None:
    event_sink = ReportingSink(TOPOLOGY, role="aggregator", name="a")
    with FakeBroker(server) as broker, broker.listen(TOPOLOGY.events.name, name="test"):
        with event_sink.over(broker):
            event_sink(Evaluated(1, {f"metric {number}": 0.0 for number in range(300_000)}))
        with event_sink.over(broker):
            event_sink(Left("done"))
        events = [each.event for report in heard_by(server) for each in report.events]

    assert events[-2:] == [Joined(), Left("done")]


def test_a_header_has_nothing_but_plain_values() -> None:
    events = (Happened(1.0, Applied(1, 0.5, 10, 400, 1600)),)

    header, _ = taken_apart(encode_report(Report("digits", "aggregator", "a", events)))
    assert header["events"] == [[1.0, ["applied", 1, 0.5, 10, 400, 1600]]]


def test_no_thread_is_left_behind(server: FakeServer) -> None:
    with FakeBroker(server) as broker, ReportingSink(TOPOLOGY, role="worker", name="w").over(broker):
        assert "events" in {thread.name for thread in threading.enumerate()}

    assert "events" not in {thread.name for thread in threading.enumerate()}
