"""What RabbitMQ answers when it refuses a connection, a channel or a queue, and what becomes of it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from brokers import SOON_S, receive, send
from rabbitmqctl import add_user, rabbitmqctl
from relay import Relay

from fluffle.connection import Connector
from fluffle.errors import BrokerError, ConnectionLost, LimitReached, LoginRefused, RequestRefused
from fluffle.rabbit import RabbitBroker
from fluffle.settings import SharedSettings
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode

USER, VHOST = "limited", "elsewhere"
HEARTBEAT_S = 1
# RabbitMQ takes a connection for dead after three heartbeats; pika looks at each heartbeat 5 s late.
MISSED_WITHIN_S = 3 * (HEARTBEAT_S + 5)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own, with a user and a virtual host to take away."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        add_user(started, USER, configure=".*", write=".*", read=".*")
        rabbitmqctl(started, "add_vhost", VHOST)
        rabbitmqctl(started, "set_permissions", "-p", VHOST, USER, ".*", ".*", ".*")
        yield started


def connect(node: BrokerNode, *, vhost: str = "%2F", port: int = 0, heartbeat_s: int = 20) -> RabbitBroker:
    where = f"127.0.0.1:{port or node.amqp_port}"
    return RabbitBroker(f"amqp://{USER}:secret@{where}/{vhost}", name="refused", heartbeat_s=heartbeat_s)


Limits = Callable[[BrokerNode], None]


@contextmanager
def limit(node: BrokerNode, kind: str, limits: str) -> Iterator[None]:
    """Set a limit of the user or of the virtual host while the block lasts."""
    whose = [USER] if kind == "user" else []
    rabbitmqctl(node, f"set_{kind}_limits", *whose, limits)
    try:
        yield
    finally:
        rabbitmqctl(node, f"clear_{kind}_limits", *whose, *(["all"] if whose else []))


@pytest.mark.parametrize(
    ("kind", "says"),
    [("user", "user connection limit (1) is reached"), ("vhost", "connection limit (1) is reached")],
)
def test_a_limit_on_connections_is_named_and_may_pass(node: BrokerNode, kind: str, says: str) -> None:
    with limit(node, kind, '{"max-connections": 1}'):
        with connect(node), pytest.raises(LimitReached) as raised:
            connect(node)

        # RabbitMQ counts a little later than a connection ends.
        assert_soon(lambda: connect(node).close(), LimitReached)
    assert says in str(raised.value)
    assert "virtual host is missing" not in str(raised.value)


def test_a_limit_on_a_users_channels_is_named_and_may_pass(node: BrokerNode, topology: Topology) -> None:
    with (
        limit(node, "user", '{"max-channels": 1}'),
        connect(node) as broker,
        pytest.raises(LimitReached, match=r"number of channels opened .* limit of \(1\)"),
    ):
        broker.declare(topology)

    connect(node).close()


def test_a_connection_with_fewer_channels_than_are_needed_says_so(
    node: BrokerNode, topology: Topology
) -> None:
    rabbitmqctl(node, "eval", "application:set_env(rabbit, channel_max, 1).")
    try:
        with connect(node) as broker, pytest.raises(LimitReached, match="channel_max"):
            broker.declare(topology)
    finally:
        rabbitmqctl(node, "eval", "application:set_env(rabbit, channel_max, 2047).")


def test_who_does_not_wait_learns_of_a_refusal_that_it_may_pass_and_of_a_login_only_for_a_while(
    node: BrokerNode,
) -> None:
    url = f"amqp://{USER}:secret@127.0.0.1:{node.amqp_port}/%2F"
    settings = SharedSettings(broker_url=url, login_patience=2.0)
    connector = Connector(settings, name="hasty", stop=threading.Event())
    with pytest.raises(LoginRefused):
        Connector(
            SharedSettings(broker_url=url.replace("secret", "wrong")), name="new", stop=threading.Event()
        ).connect_at_once()

    with connector.connect_at_once(), limit(node, "user", '{"max-connections": 1}'):
        with pytest.raises(ConnectionLost, match=r"user connection limit \(1\) is reached"):
            connector.connect_at_once()
        rabbitmqctl(node, "change_password", USER, "another")
        try:
            with pytest.raises(ConnectionLost, match="or its password"):
                connector.connect_at_once()
            time.sleep(settings.login_patience)
            with pytest.raises(LoginRefused):
                connector.connect_at_once()
        finally:
            rabbitmqctl(node, "change_password", USER, "secret")


def test_a_quota_on_queues_ends_with_rabbitmqs_reason(node: BrokerNode, topology: Topology) -> None:
    with (
        limit(node, "vhost", '{"max-queues": 0}'),
        connect(node) as broker,
        pytest.raises(RequestRefused, match=r"queue limit in vhost '/' \(0\) is reached"),
    ):
        broker.declare(topology)


def test_a_virtual_host_that_is_down_may_come_back_and_one_that_does_not_exist_is_named(
    node: BrokerNode,
) -> None:
    live = connect(node, vhost=VHOST)
    rabbitmqctl(node, "eval", f'rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"{VHOST}">>).')
    try:
        with pytest.raises(ConnectionLost, match=f"vhost '{VHOST}' is down"):
            live.next_delivery(SOON_S)
        with pytest.raises(ConnectionLost, match=f"vhost '{VHOST}' is down"):
            connect(node, vhost=VHOST)
    finally:
        rabbitmqctl(node, "restart_vhost", "-p", VHOST)

    connect(node, vhost=VHOST).close()
    with pytest.raises(LoginRefused, match="vhost nowhere not found"):
        connect(node, vhost="nowhere")


def test_a_changed_password_leaves_a_connection_alone_and_refuses_the_next_one(
    node: BrokerNode, topology: Topology
) -> None:
    with connect(node) as broker:
        broker.declare(topology)
        rabbitmqctl(node, "change_password", USER, "another")
        try:
            send(broker, topology, b"still here")
            with pytest.raises(LoginRefused, match="or its password"):
                connect(node)
        finally:
            rabbitmqctl(node, "change_password", USER, "secret")


@pytest.mark.parametrize(
    ("away", "back", "says"),
    [
        ("rabbit_maintenance:drain().", "rabbit_maintenance:revive().", "Node was put into maintenance mode"),
        ("rabbit:stop().", "rabbit:start().", "shutdown"),
    ],
    ids=["maintenance", "boot"],
)
def test_a_node_that_closes_its_listeners_ends_connections_and_may_come_back(
    node: BrokerNode, away: str, back: str, says: str
) -> None:
    live = connect(node)
    rabbitmqctl(node, "eval", away)
    try:
        with pytest.raises(ConnectionLost, match=says):
            live.next_delivery(SOON_S)
        with pytest.raises(ConnectionLost, match="Connection refused"):
            connect(node)
    finally:
        rabbitmqctl(node, "eval", back)

    assert_soon(lambda: connect(node).close(), ConnectionLost)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_line_that_is_cut_at_one_end_is_noticed_at_both(
    node: BrokerNode, topology: Topology, side: str
) -> None:
    """The end that is not told learns it from missing heartbeats: the other's consumer is then free."""
    with Relay(node.amqp_port) as relay, connect(node) as other:
        broker = connect(node, port=relay.port, heartbeat_s=HEARTBEAT_S)
        broker.declare(topology)
        broker.consume(topology.updates.name, prefetch=1)
        other.consume(topology.updates.name, prefetch=1)

        relay.cut_clients() if side == "client" else relay.cut_servers()
        with ThreadPoolExecutor(1) as pool:
            noticed = pool.submit(broker.next_delivery, 60.0)
            send(other, topology, b"an update")

            assert [each.body for each in receive(other, 1)] == [b"an update"]
            with pytest.raises(ConnectionLost):
                noticed.result(timeout=MISSED_WITHIN_S)
        broker.close()


def test_a_publish_over_a_dead_line_is_given_up_and_may_be_sent_again(
    node: BrokerNode, topology: Topology
) -> None:
    with Relay(node.amqp_port) as relay:
        broker = connect(node, port=relay.port, heartbeat_s=HEARTBEAT_S)
        broker.declare(topology)

        relay.hold_both_ways()
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            send(broker, topology, b"nobody hears this")

        assert time.monotonic() - began < MISSED_WITHIN_S
        broker.close()


def test_a_broker_that_accepts_and_never_answers_is_given_up(node: BrokerNode) -> None:
    with Relay(node.amqp_port) as relay, ThreadPoolExecutor(2) as pool:
        relay.hold_both_ways()
        openings = [
            pool.submit(
                RabbitBroker,
                f"{scheme}://u:p@127.0.0.1:{relay.port}/%2F",
                name="silent",
                heartbeat_s=HEARTBEAT_S,
            )
            for scheme in ("amqp", "amqps")
        ]

        for opening in openings:
            with pytest.raises(ConnectionLost, match=r"no RabbitMQ answers at .*Timeout"):
                opening.result(timeout=60.0)


@pytest.mark.parametrize(
    "hold", [Relay.hold_answers, lambda relay: relay.hold_answers_after(1)], ids=["at once", "after a frame"]
)
def test_a_broker_that_stops_answering_in_the_handshake_is_left_when_asked_to_stop(
    node: BrokerNode, hold: Callable[[Relay], None]
) -> None:
    stop = threading.Event()
    with Relay(node.amqp_port) as relay, ThreadPoolExecutor(1) as pool:
        hold(relay)
        url = f"amqp://{USER}:secret@127.0.0.1:{relay.port}/%2F"
        opening = pool.submit(RabbitBroker, url, name="silent", heartbeat_s=HEARTBEAT_S, stop=stop)
        with pytest.raises(TimeoutError):
            opening.result(timeout=1.0)

        stop.set()

        with pytest.raises(ConnectionLost, match="asked to stop"):
            opening.result(timeout=3.0)


def test_a_connection_ends_in_good_order_while_rabbitmq_refuses_what_was_told_last(
    node: BrokerNode, topology: Topology
) -> None:
    """An error on the connection's thread would be a warning here, and a traceback in a part's log."""
    url = add_user(node, "may-do-nothing")
    with connect(node) as operator:
        operator.declare(topology)

    for _ in range(20):
        with RabbitBroker(url, name="refused", heartbeat_s=20) as broker:
            broker.publish_unconfirmed(topology.events.name, "", b"an event")


def test_what_kept_others_out_of_a_queue_is_gone_after_its_virtual_host_was_down(
    node: BrokerNode, topology: Topology
) -> None:
    def use(broker: RabbitBroker, stack: ExitStack) -> None:
        broker.take_name(topology, "site-1", label="process 1", on_rival=lambda _: None)
        assert list(stack.enter_context(broker.peek(topology.rejected.name))) == []

    with connect(node, vhost=VHOST) as broker, ExitStack() as stack:
        broker.declare(topology)
        use(broker, stack)
        rabbitmqctl(node, "eval", f'rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"{VHOST}">>).')
        with pytest.raises(ConnectionLost, match="is down"):
            broker.next_delivery(SOON_S)
    rabbitmqctl(node, "restart_vhost", "-p", VHOST)

    with connect(node, vhost=VHOST) as again, ExitStack() as stack:
        use(again, stack)


def assert_soon(tries: Callable[[], None], refusal: type[BrokerError]) -> None:
    """Hold that something is not refused any more after a moment."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            tries()
        except refusal:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return
