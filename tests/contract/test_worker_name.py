"""One process at a time works under a worker's name, and both processes learn of each other."""

import time
from collections.abc import Callable

import pytest
from brokers import SOON_S, Connect
from federation import wait_until
from rabbitmqctl import add_user, rabbitmqctl
from relay import Relay

from fluffle.broker import Broker
from fluffle.errors import AccessRefused, ConnectionLost, NameTaken
from fluffle.rabbit import RabbitBroker
from fluffle.rights import rights_of
from fluffle.topology import Topology, topology_of
from fluffle_cli.node import BrokerNode

WORKER, FIRST, SECOND, THIRD = "site-1", "process 1 on north", "process 2 on south", "process 3 on east"
HEARTBEAT_S, LONG_HEARTBEAT_S = 1, 60


class Rivals(list[str]):
    """The labels of those who wanted a name that is taken."""


def nobody(label: str) -> None:
    raise AssertionError(f"{label} must not want this name")


def take(
    broker: Broker,
    topology: Topology,
    label: str,
    on_rival: Callable[[str], None] = nobody,
    *,
    name: str = WORKER,
) -> None:
    broker.take_name(topology, name, label=label, on_rival=on_rival)


def test_who_has_a_name_goes_on_and_who_comes_later_is_told_who_that_is(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    rivals = Rivals()
    take(broker, topology, FIRST, rivals.append)

    for newcomer in (SECOND, THIRD):
        with pytest.raises(NameTaken, match=f"'{WORKER}': {FIRST}"):
            take(connect(), topology, newcomer)

    wait_until(lambda: rivals == [SECOND, THIRD], "the first one to learn of the others", deadline_s=SOON_S)
    broker.check(topology)


def test_a_name_is_free_when_the_connection_that_had_it_ends(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    first = connect()
    take(first, topology, FIRST)

    first.close()

    take(broker, topology, SECOND)


def test_workers_of_different_names_do_not_hear_of_each_other(
    connect: Connect, broker: Broker, topology: Topology
) -> None:
    for name in ("a", "a.b", "a:bell", "A", "a-b@c", "n" * 100):
        take(connect(), topology, f"process of {name[:8]}", name=name)

    broker.check(topology)


def test_names_that_are_too_long_for_a_quotation_are_taken_once_all_the_same(connect: Connect) -> None:
    name, topology = "n" * 100, topology_of("f" * 48)
    broker, rivals = connect(), Rivals()
    broker.declare(topology)
    take(broker, topology, FIRST, rivals.append, name=name)

    with pytest.raises(NameTaken):
        take(connect(), topology, SECOND, name=name)

    wait_until(lambda: len(rivals) == 1, "the first one to learn of the other", deadline_s=SOON_S)


def connect_to(node: BrokerNode, *, url: str = "", port: int = 0, heartbeat_s: int = 10) -> RabbitBroker:
    """Connect to the node, through another port if one is given."""
    url = url or node.amqp_url
    if port:
        url = url.replace(f":{node.amqp_port}/", f":{port}/")
    return RabbitBroker(url, name="name", heartbeat_s=heartbeat_s)


@pytest.fixture
def declared(node: BrokerNode, topology: Topology) -> Topology:
    """A federation that is there."""
    with connect_to(node) as broker:
        broker.declare(topology)
    return topology


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (SECOND, f"{FIRST} holds"),
        pytest.param(FIRST, "the last connection of this process holds", marks=pytest.mark.long),
    ],
    ids=["another process", "the same process"],
)
def test_a_connection_that_is_gone_without_a_word_holds_a_name_until_its_heartbeats_are_missed(
    node: BrokerNode, declared: Topology, label: str, says: str
) -> None:
    with Relay(node.amqp_port) as relay:
        first = connect_to(node, port=relay.port, heartbeat_s=HEARTBEAT_S)
        take(first, declared, FIRST)
        # Long heartbeats, so that the connection stays in RabbitMQ's eyes as long as the first try takes.
        frozen = connect_to(node, port=relay.port, heartbeat_s=LONG_HEARTBEAT_S)
        take(frozen, declared, FIRST, name="site-2")
        relay.hold_both_ways()

        with connect_to(node) as newcomer, pytest.raises(ConnectionLost, match=says) as raised:
            take(newcomer, declared, label, name="site-2")
        with connect_to(node) as newcomer:
            take(newcomer, declared, label)

        assert "does not answer" in str(raised.value)
        first.close()
        frozen.close()


def test_the_rights_of_a_worker_do_for_its_own_name_and_for_no_other(
    node: BrokerNode, declared: Topology
) -> None:
    users = [f"{declared.federation}-{number}" for number in range(2)]
    urls = [add_user(node, user, **rights_of("worker", declared.federation, user).patterns) for user in users]
    rivals = Rivals()
    with connect_to(node, url=urls[0]) as first, connect_to(node, url=urls[0]) as again:
        with connect_to(node, url=urls[1]) as other:
            take(first, declared, FIRST, rivals.append, name=users[0])

            with pytest.raises(NameTaken, match=FIRST):
                take(again, declared, SECOND, name=users[0])
            with pytest.raises(AccessRefused, match=f"the worker name '{users[0]}'"):
                take(other, declared, THIRD, name=users[0])
            take(other, declared, THIRD, name=users[1])

        wait_until(lambda: rivals == [SECOND], "the first one to learn of the other", deadline_s=SOON_S)


def test_a_policy_that_lets_queues_expire_takes_no_name_away(node: BrokerNode, declared: Topology) -> None:
    pattern = f"^{declared.federation}\\."
    rabbitmqctl(node, "set_policy", declared.federation, pattern, '{"expires": 500}', "--apply-to", "queues")
    try:
        with connect_to(node) as first, connect_to(node) as newcomer:
            take(first, declared, FIRST, Rivals().append)
            time.sleep(2.0)

            with pytest.raises(NameTaken, match=FIRST):
                take(newcomer, declared, SECOND)
    finally:
        rabbitmqctl(node, "clear_policy", declared.federation)


def test_what_a_name_leaves_on_the_broker_is_nothing(node: BrokerNode, declared: Topology) -> None:
    with connect_to(node) as first, connect_to(node) as newcomer:
        take(first, declared, FIRST, Rivals().append)
        with pytest.raises(NameTaken):
            take(newcomer, declared, SECOND)

    def left() -> list[str]:
        names = rabbitmqctl(node, "list_queues", "--silent", "name").split()
        return [name for name in names if name.startswith(declared.worker_lock(""))]

    wait_until(lambda: not left(), "both queues to go", deadline_s=SOON_S)
