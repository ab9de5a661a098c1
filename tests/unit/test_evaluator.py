"""The evaluator's loop: each version that it can keep up with is reported once."""

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
from builders import a_version
from fake_broker import FakeBroker, FakeServer
from working import TOPOLOGY, CountingTask, Scripted, a_federation, publish_versions, sent

from fluffle.broker import Broker
from fluffle.errors import ConnectionLost, LayoutError, QueueFull
from fluffle.model import Layout
from fluffle.pieces import Body
from fluffle.record import Evaluation, ModelVersion
from fluffle_worker.evaluator import Evaluator

LAYOUT = Layout.of(CountingTask().initial_weights(0))


def version(number: int, value: float = 0.0, *, finished: str = "") -> ModelVersion:
    record = a_version(number, values=[value] * 2, layout=LAYOUT, finished=finished)
    return replace(record, integers=bytes(8))


def an_evaluator(task: CountingTask, stop: threading.Event | None = None) -> Evaluator:
    return Evaluator(name="e1", task=task, topology=TOPOLOGY, stop=stop or threading.Event())


def reports(server: FakeServer) -> list[tuple[int, float]]:
    """Return the reported versions and their accuracies."""
    found = [message for message in sent(server) if isinstance(message, Evaluation)]
    return [(one.version, one.metrics["accuracy"]) for one in found]


def go_on(server: FakeServer, sent: int) -> None:
    """Publish two more versions after each report, and the end after three."""
    following = [version(2 * sent, 10.0 * sent - 5), version(2 * sent + 1, 10.0 * sent)]
    publish_versions(server, *following if sent < 3 else [version(99, 99.0, finished="enough")])


def test_the_newest_version_is_reported_once_and_those_in_between_are_left_out() -> None:
    server = a_federation(version(0, 0.0))

    an_evaluator(CountingTask()).work(lambda: Scripted(server, go_on))

    assert reports(server) == [(0, 0.0), (3, 10.0), (5, 20.0)], "and nobody is left to read of the last"


def test_a_lost_connection_is_made_anew_and_the_version_is_evaluated_again() -> None:
    server = a_federation(version(0, 0.5))

    class Lost(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            self.close()
            raise ConnectionLost("it was lost here")

    lives: list[Broker] = [Lost(server), Scripted(server, go_on)]
    an_evaluator(CountingTask()).work(lambda: lives.pop(0))

    assert reports(server)[0] == (0, 0.5)


def test_a_report_that_a_full_queue_does_not_take_is_left_out() -> None:
    server = a_federation(version(0, 0.5))
    stop = threading.Event()

    class Full(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            stop.set()
            raise QueueFull("the queue is full")

    an_evaluator(CountingTask(), stop).work(lambda: Full(server))

    assert reports(server) == []


def test_a_model_of_another_layout_is_refused_in_words() -> None:
    server = a_federation(version(0))

    with pytest.raises(LayoutError, match="where this one has kernel"):
        an_evaluator(CountingTask(name="kernel")).work(lambda: FakeBroker(server))
