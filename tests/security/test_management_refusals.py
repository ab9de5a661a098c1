"""What RabbitMQ's management interface refuses is passed on with its own reason."""

from collections.abc import Callable, Iterator

import pytest
from rabbitmqctl import add_user, rabbitmqctl

from fluffle.errors import (
    AccessRefused,
    BrokerError,
    LoginRefused,
    RequestRefused,
    TopologyMissing,
)
from fluffle.management import Management, ManagementSettings
from fluffle.rights import Rights
from fluffle_cli.node import BrokerNode

VHOST = "refusing"


def queue(name: str, **arguments: object) -> dict[str, object]:
    """A queue as RabbitMQ's definitions have it."""
    arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
    return {"name": name, "durable": True, "auto_delete": False, "arguments": arguments}


@pytest.fixture(scope="module")
def limited(managed_node: BrokerNode) -> Iterator[Management]:
    """The administrator, on a virtual host that has one queue and may have no more."""
    rabbitmqctl(managed_node, "add_vhost", VHOST)
    rabbitmqctl(managed_node, "set_permissions", "-p", VHOST, managed_node.user, ".*", ".*", ".*")
    with login(managed_node, managed_node.amqp_url.replace("%2F", VHOST)) as management:
        management.put("queues", queue("first"))
        rabbitmqctl(managed_node, "set_vhost_limits", "-p", VHOST, '{"max-queues": 1}')
        yield management
    rabbitmqctl(managed_node, "delete_vhost", VHOST)


def login(node: BrokerNode, url: str) -> Management:
    return ManagementSettings(broker_url=url, management_url=node.management_url).management()


@pytest.mark.parametrize(
    ("asks", "kind", "reason"),
    [
        (
            lambda m: m.put("queues", queue("second")),
            RequestRefused,
            f"queue limit in vhost '{VHOST}' (1) is reached",
        ),
        (
            lambda m: m.put("queues", queue("first", x_max_length=3)),
            RequestRefused,
            "inequivalent arg 'x-max-length'",
        ),
        (
            lambda m: m.put("exchanges", {"name": "e", "type": "nonsense"}),
            RequestRefused,
            "unknown exchange type 'nonsense'",
        ),
        (
            lambda m: m.put("exchanges", {"name": "amq.mine", "type": "fanout"}),
            AccessRefused,
            "Access refused.",
        ),
        (lambda m: m.delete_user("nobody-of-this-name"), TopologyMissing, "the user 'nobody-of-this-name'"),
        (lambda m: m.put_user("bad", Rights(configure="("), "hash"), RequestRefused, "invalid_regexp"),
    ],
    ids=["quota", "mismatch", "type", "reserved", "user", "pattern"],
)
def test_each_refusal_says_why_in_rabbitmqs_words(
    limited: Management, asks: Callable[[Management], object], kind: type[BrokerError], reason: str
) -> None:
    with pytest.raises(kind) as raised:
        asks(limited)

    assert type(raised.value) is kind
    assert reason in str(raised.value)
    assert "no virtual host" not in str(raised.value)


def test_a_virtual_host_that_is_not_there_is_named(managed_node: BrokerNode) -> None:
    url = managed_node.amqp_url.replace("%2F", "nowhere")
    with login(managed_node, url) as management, pytest.raises(LoginRefused, match="'nowhere'"):
        management.put("queues", queue("any"))


def test_a_wrong_login_and_a_missing_tag_are_different_errors(managed_node: BrokerNode) -> None:
    url = add_user(managed_node, "no-tag", configure=".*", write=".*", read=".*")

    with pytest.raises(LoginRefused, match="'no-tag' or its password"):
        login(managed_node, url.replace("secret", "wrong"))
    with pytest.raises(AccessRefused, match="'no-tag' needs the tag administrator"):
        login(managed_node, url)
