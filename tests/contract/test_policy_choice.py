"""Which policy acts on a queue: what `fluffle.policies` works out is what RabbitMQ does."""

import random
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from policies import OPERATOR, USUAL, a_channel, acting, policy
from rabbitmqctl import add_user, rabbitmqctl

from fluffle.address import parse_address
from fluffle.errors import AccessRefused, ConfigError, ConnectionLost, LoginRefused
from fluffle.management import policies_at
from fluffle.policies import BrokerPolicy, acting_on, clear_command, narrow_command
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.node import BrokerNode

PATTERNS = ["", ".*", "^federation", "rejected$", r"\.(head|models)$", "(?i)UPDATES", r"^\w+-\d+\.h", "no"]
DEFINITIONS: list[dict[str, object]] = [
    {"max-length": 100},
    {"max-length-bytes": 10_000_000},
    {"message-ttl": 3_600_000, "delivery-limit": 50},
    {"max-age": "1h"},
    {"queue-mode": "lazy", "max-length": 5},
    {"alternate-exchange": "elsewhere"},
    {"dead-letter-exchange": "elsewhere"},
    {"queue-leader-locator": "balanced"},
    {"stream-max-segment-size-bytes": 1_000_000, "max-length-bytes": 5_000_000},
    {"max-in-memory-length": 1},
]
# An operator may set limits, and no more.
LIMITS = DEFINITIONS[:3]


@pytest.fixture(scope="module")
def node() -> Iterator[BrokerNode]:
    """A node with the management interface, on which nobody else sets policies."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-tests-") as folder,
        BrokerNode.start(Path(folder)) as started,
    ):
        yield started


@pytest.fixture
def ready(node: BrokerNode, topology: Topology) -> Topology:
    """A federation whose queues are there."""
    with RabbitBroker(node.amqp_url, name="policies", heartbeat_s=20) as broker:
        broker.declare(topology)
    return topology


def ask(node: BrokerNode, url: str = "") -> tuple[BrokerPolicy, ...]:
    return policies_at(parse_address(url or node.amqp_url), node.management_url)


@pytest.mark.parametrize("seed", range(4))
def test_the_acting_policy_is_the_one_that_rabbitmq_names(
    node: BrokerNode, ready: Topology, seed: int
) -> None:
    chance = random.Random(seed)
    with ExitStack() as stack:
        for number in range(8):
            kind = chance.choice([USUAL, USUAL, OPERATOR])
            definition = chance.choice(DEFINITIONS if kind == USUAL else LIMITS)
            # Each priority once: of two that have the same one, RabbitMQ does not say which acts.
            stack.enter_context(
                policy(
                    node,
                    chance.choice(PATTERNS),
                    definition,
                    kind=kind,
                    name=f"policy-{number}",
                    priority=(number * 5 + seed) % 8,
                    applies_to=chance.choice(["all", "queues"]),
                )
            )

        known, said = ask(node), acting(node)

    for queue in ready.queues:
        found = acting_on(known, queue)
        assert all(sure for _, sure in found)
        names = {policy.is_operator: policy.name for policy, _ in found}
        assert (names.get(False, ""), names.get(True, "")) == said[queue.name]


@pytest.mark.parametrize("kind", [USUAL, OPERATOR])
@pytest.mark.parametrize("pattern", [".*", r"^(federation|other)-?\d*\."])
def test_the_commands_that_an_error_names_keep_a_policy_off_one_federation_and_delete_it(
    node: BrokerNode, ready: Topology, kind: str, pattern: str
) -> None:
    other, name = "other.queue", "it's-old"
    with (
        a_channel(node) as channel,
        policy(node, pattern, {"message-ttl": 3_600_000}, kind=kind, name=name, applies_to="queues"),
    ):
        channel.queue_declare(other, durable=True)
        [known] = ask(node)
        assert acting_on([known], ready.head) == ((known, True),)

        rabbitmqctl(node, *shlex.split(narrow_command(known, ready, "/"))[1:])

        [narrowed] = ask(node)
        assert (narrowed.name, narrowed.definition) == (known.name, known.definition)
        said = acting(node)
        assert {queue.name: said[queue.name] for queue in ready.queues} == {
            queue.name: ("", "") for queue in ready.queues
        }
        assert name in said[other]

        rabbitmqctl(node, *shlex.split(clear_command(narrowed, "/"))[1:])
        assert ask(node) == ()
        # For the end of the `with`.
        rabbitmqctl(node, *shlex.split(narrow_command(known, ready, "/"))[1:])


def test_the_tag_management_may_look_and_without_it_an_error_says_what_is_missing(
    node: BrokerNode, ready: Topology
) -> None:
    url = add_user(node, "looks-on", configure="^$", write="^$", read="^$")
    with policy(node, ".*", {"max-length": 5}), policy(node, ".*", {"max-length": 4}, kind=OPERATOR):
        with pytest.raises(
            AccessRefused, match=r"needs the tag management \(rabbitmqctl set_user_tags looks-on"
        ):
            ask(node, url)
        for tag in ("management", "policymaker", "monitoring"):
            rabbitmqctl(node, "set_user_tags", "looks-on", tag)

            assert [one.definition for one in ask(node, url)] == [{"max-length": 5}, {"max-length": 4}]
        with pytest.raises(LoginRefused, match="or its password"):
            ask(node, url.replace("secret", "wrong"))


def test_a_management_interface_that_is_unknown_or_out_of_reach_is_an_error(node: BrokerNode) -> None:
    address = parse_address(node.amqp_url)
    with pytest.raises(ConfigError, match=r"does not use RabbitMQ's usual port.*FLUFFLE_MANAGEMENT_URL"):
        policies_at(address, None)
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1 "):
        policies_at(address, "http://127.0.0.1:1")
