"""An aggregator at work in one thread: on a fake server, for as long as there is something to do."""

import threading
from collections.abc import Callable, Mapping

from brokers import commit
from fake_broker import FakeBroker, FakeServer

from fluffle.broker import Broker, Delivery
from fluffle.event_sink import Sinks
from fluffle.events import Event
from fluffle.record import Evaluation, ModelVersion
from fluffle.record_wire import decode_version
from fluffle.sites import SiteEvaluation
from fluffle.survey.messages import SiteStatistics
from fluffle.update import WeightUpdate
from fluffle.wire import encode_evaluation, encode_site_evaluation, encode_statistics, encode_update
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.service import serve
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.trial import try_out

Message = WeightUpdate | Evaluation | SiteEvaluation | SiteStatistics | bytes


class UntilQuiet(FakeBroker):
    """Asks the aggregator to stop when nothing has come twice in a row: it had the time to find its end."""

    def __init__(self, server: FakeServer, stop: threading.Event) -> None:
        super().__init__(server)
        self._stop = stop
        self._quiet = 0

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Broker."""
        delivery = super().next_delivery(timeout_s)
        self._quiet = 0 if delivery else self._quiet + 1
        if self._quiet >= 2:
            self._stop.set()
        return delivery


class Heard(Sinks):
    """The events of an aggregator."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        self.events.append(event)


class Trials:
    """Tries messages as an aggregator of these settings does, in another process; notes how that ended."""

    def __init__(self, settings: AggregatorSettings) -> None:
        self.ended: list[str] = []
        self._settings = settings

    def __call__(self, model: GlobalModel, delivery: Delivery) -> str:
        """See AggregatorConfig."""
        self.ended.append(try_out(self._settings, model, delivery))
        return self.ended[-1]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def a_server(config: AggregatorConfig, *messages: Message, first: bool = True) -> FakeServer:
    """Return a server with the federation's queues, version 0 unless told otherwise, and waiting messages."""
    server = FakeServer(longest_wait_s=0)
    with FakeBroker(server) as broker:
        broker.declare(config.topology)
        if first:
            publish(broker, config, config.first_version())
    send(server, config, *messages)
    return server


def publish(broker: Broker, config: AggregatorConfig, version: ModelVersion) -> None:
    """Publish a version as a leader does."""
    commit(broker, config.topology, version)


def send(server: FakeServer, config: AggregatorConfig, *messages: Message) -> None:
    """Send messages as workers and evaluators do, each as the user of its own name."""
    for message in messages:
        is_report = isinstance(message, Evaluation)
        exchange = config.topology.evaluations_in if is_report else config.topology.updates_in
        with FakeBroker(server, user=sender_of(message)) as broker:
            broker.publish(exchange.name, "", encoded(message), {})


def sender_of(message: Message) -> str:
    """Return the user who may send a message; anybody may send bytes."""
    match message:
        case WeightUpdate():
            return message.id.worker
        case Evaluation():
            return message.evaluator
        case SiteEvaluation() | SiteStatistics():
            return message.worker
    return "somebody"


def encoded(message: Message) -> bytes:
    """Return the bytes of a message; bytes are one already."""
    match message:
        case WeightUpdate():
            return encode_update(message)
        case Evaluation():
            return encode_evaluation(message)
        case SiteEvaluation():
            return encode_site_evaluation(message)
        case SiteStatistics():
            return encode_statistics(message)
    return message


def aggregate(
    server: FakeServer, config: AggregatorConfig, connect: Callable[[], Broker] | None = None
) -> None:
    """Run an aggregator until the federation has finished, or until there is nothing to do."""
    stop = threading.Event()
    serve(config, connect or (lambda: UntilQuiet(server, stop)), stop)


def take_the_lead(broker: Broker, config: AggregatorConfig, clock: Clock) -> Leading:
    """Return a leader whose time passes when the test says so."""
    broker.consume(config.topology.updates.name, prefetch=config.prefetch)
    return Leading(config, broker, StreamHealth(), clock=clock, unix_clock=lambda: 1_700_000_000.0)


def work_off(leader: Leading, broker: Broker) -> None:
    """Let a leader take in all that waits, and commit what is due."""
    while delivery := broker.next_delivery(0):
        leader.take_in(delivery)
        leader.tick()
    leader.tick()


def versions(server: FakeServer, config: AggregatorConfig) -> list[ModelVersion]:
    """Return the versions in the stream."""
    return [decode_version(body) for body in server.bodies(config.topology.models.name)]


def newest(server: FakeServer, config: AggregatorConfig) -> ModelVersion:
    """Return the newest version in the stream."""
    return max(versions(server, config), key=lambda version: version.rank)


def unacked(server: FakeServer, config: AggregatorConfig) -> list[bytes]:
    """Return what waits in the updates queue once every aggregator has left."""
    return server.bodies(config.topology.updates.name)


def rejected(server: FakeServer, config: AggregatorConfig) -> list[Mapping[str, object]]:
    """Return the headers of the refused messages."""
    return [delivery.headers for delivery in server.queue(config.topology.rejected.name).ready]


def die_with_a_message(server: FakeServer, config: AggregatorConfig, *, leaders: int) -> None:
    """Let so many leaders die, one after the other, with a message that they have received."""
    for _ in range(leaders):
        with FakeBroker(server) as broker:
            take_the_lead(broker, config, Clock())
            broker.next_delivery(0)
