"""`fluffle broker setup` on a real node: a federation made at once, or printed for whoever may import it."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pika
import pytest
from fluffle_command import Fluffle, ask_management
from policies import OPERATOR, USUAL, count, policy

from fluffle.management import Management
from fluffle.rabbit import RabbitBroker
from fluffle.rights import rights_of
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode

Import = Callable[[dict[str, object]], None]


def reaches_both_ends(node: BrokerNode, topology: Topology) -> None:
    """Messages arrive, and to an aggregator the exchanges and queues are those that it declares."""
    with RabbitBroker(node.amqp_url, name="setup", heartbeat_s=10) as broker:
        broker.declare(topology)
        for number, exchange in enumerate((topology.updates_in, topology.evaluations_in), start=1):
            broker.publish(exchange.name, "", b"hello", {})
            assert broker.state(topology.updates.name).messages == number
        broker.publish(topology.versions_in.name, "", b"model", {})
        assert broker.state(topology.head.name).messages == 1


def test_setup_makes_what_an_aggregator_would_and_a_second_run_changes_nothing(
    fluffle: Fluffle, managed_node: BrokerNode, topology: Topology
) -> None:
    for _ in range(2):
        made = fluffle("broker", "setup", "--federation", topology.federation)
        assert made.exit_code == 0, made.output

    reaches_both_ends(managed_node, topology)


def test_setup_makes_users_with_passwords_in_files(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management, topology: Topology, tmp_path: Path
) -> None:
    roles = {f"lead-{topology.federation}": "aggregator", f"site-{topology.federation}": "worker"}
    wanted = ",".join(f"{name}={role}" for name, role in roles.items())
    arguments = ("broker", "setup", "--federation", topology.federation, "--users", wanted)

    first = fluffle(*arguments)
    passwords = {name: (tmp_path / "passwords" / name).read_text() for name in roles}
    again = fluffle(*arguments)

    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert "exists, unchanged" in again.output
    assert stat.S_IMODE((tmp_path / "passwords").stat().st_mode) == 0o700
    for name, role in roles.items():
        file, account = tmp_path / "passwords" / name, management.account(name)
        assert file.read_text() == passwords[name]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert account is not None
        assert account.rights["/"] == rights_of(role, topology.federation, name)
        login = pika.PlainCredentials(name, passwords[name].strip())
        port = managed_node.amqp_port
        pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, "/", login)).close()


def test_printed_definitions_can_be_imported_and_need_no_broker(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management, topology: Topology, tmp_path: Path
) -> None:
    name = f"site-{topology.federation}"

    printed = fluffle(
        *("broker", "setup", "--print", "--federation", topology.federation),
        *("--users", f"{name}=worker", "--password-folder", "secret/passwords"),
        FLUFFLE_BROKER_URL="amqp://broker.invalid/%2F",
        FLUFFLE_MANAGEMENT_URL="",
    )

    password = (tmp_path / "secret" / "passwords" / name).read_text().strip()
    assert printed.exit_code == 0, printed.output
    assert password not in printed.output
    ask_management(managed_node, "POST", "definitions", json.loads(printed.stdout))
    account = management.account(name)
    assert account is not None
    assert account.rights["/"] == rights_of("worker", topology.federation, name)
    login = pika.PlainCredentials(name, password)
    port = managed_node.amqp_port
    pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, "/", login)).close()
    reaches_both_ends(managed_node, topology)


def test_no_user_is_printed_unless_asked_for(fluffle: Fluffle) -> None:
    printed = fluffle("broker", "setup", "--print")

    assert set(json.loads(printed.stdout)) == {"exchanges", "queues", "bindings"}


def test_a_queue_with_other_arguments_is_an_error_that_names_it(
    fluffle: Fluffle, managed_node: BrokerNode, topology: Topology
) -> None:
    with pika.BlockingConnection(pika.URLParameters(managed_node.amqp_url)) as connection:
        connection.channel().queue_declare(topology.head.name, durable=True)

    refused = fluffle("broker", "setup", "--federation", topology.federation)

    assert refused.exit_code == 2
    assert f"queue {topology.head.name} exists with other arguments" in refused.output


@pytest.mark.parametrize("kind", [USUAL, OPERATOR])
def test_setup_creates_nothing_and_names_the_policy_that_would_lose_messages(
    fluffle: Fluffle, managed_node: BrokerNode, topology: Topology, kind: str
) -> None:
    pattern = rf"^{topology.federation}\."
    with policy(managed_node, pattern, {"message-ttl": 5000}, kind=kind, name="short-lived"):
        refused = fluffle("broker", "setup", "--federation", topology.federation)

    assert refused.exit_code == 2
    assert f"policy 'short-lived' (pattern {pattern!r})" in refused.output
    assert f"queue {topology.updates.name} with message-ttl 5000" in refused.output
    assert (
        f"rabbitmqctl clear_{'operator_' if kind == OPERATOR else ''}policy -p / short-lived"
        in refused.output
    )
    assert count(managed_node, topology.updates.name) is None


def test_setup_warns_of_a_policy_that_somebody_may_want(
    fluffle: Fluffle, managed_node: BrokerNode, topology: Topology
) -> None:
    with policy(managed_node, rf"^{topology.rejected.name}$", {"message-ttl": 86_400_000}, name="a-day"):
        made = fluffle("broker", "setup", "--federation", topology.federation)

    assert made.exit_code == 0
    assert "warning: RabbitMQ's policy 'a-day'" in made.output
    assert "a refused message is gone after 86400000 ms" in made.output
    reaches_both_ends(managed_node, topology)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--users", "site-a=boss"), "--users must be NAME=ROLE,... with the roles"),
        (("--users", "a b=worker"), "--users must be 1 to 100 letters"),
    ],
)
def test_wrong_users_are_one_sentence(fluffle: Fluffle, arguments: tuple[str, ...], says: str) -> None:
    refused = fluffle("broker", "setup", *arguments)

    assert refused.exit_code == 2
    assert says in refused.output
    assert refused.output.count("\n") == 1
