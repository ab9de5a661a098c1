"""What refuses a running federation for a while: limits, logins being replaced, virtual hosts that are down.

Whoever was at work waits, says which limit or refusal it met, and goes on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from federation import Federation, Part, assert_refused, wait_until
from rabbitmqctl import add_user, rabbitmqctl
from relay import Relay

from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "numpy_task:task"
# Both of the aggregator's, one each of the worker, the evaluator, the watcher and the live page.
CONNECTIONS = 6
REFUSED_NOW = "the broker refuses this process now, which it accepted before; trying again"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node of these tests' own: they limit it, and take its users away."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=False) as started:
        yield started


def through(relay: Relay, node: BrokerNode, url: str = "") -> str:
    """The URL of a relay in front of the node."""
    return (url or node.amqp_url).replace(f":{node.amqp_port}/", f":{relay.port}/")


def every_part(federation: Federation, *flags: str) -> list[Part]:
    """Start one of each, and wait until all are at work: the last one is the live page."""
    leader = federation.aggregator("leader", "--buffer-size", "1", *flags)
    leader.wait_for("leading")
    parts = [
        leader,
        federation.worker(0, "--delay", "0.2", *flags),
        federation.evaluator(*flags),
        federation.start("status", "fluffle_cli.main", "status", "--watch", "--json", *flags),
        federation.start("page", "fluffle_cli.main", "dashboard", "--dashboard-port", "0", *flags),
    ]
    parts[1].wait_for("update published")
    parts[2].wait_for("evaluated")
    wait_until(lambda: '"version"' in parts[3].log.read_text(), "the watcher's first look")
    return parts


def assert_all_go_on(parts: list[Part]) -> None:
    """Hold that each of them goes on with its work."""
    leader, worker, evaluator, status, _ = parts
    committed, published, evaluated, looks = (
        len(leader.events("version committed")),
        len(worker.events("update published")),
        len(evaluator.events("evaluated")),
        status.log.read_text().count('"version"'),
    )
    leader.wait_for("version committed", committed + 3)
    worker.wait_for("update published", published + 3)
    evaluator.wait_for("evaluated", evaluated + 1)
    wait_until(lambda: status.log.read_text().count('"version"') > looks + 1, "the watcher to go on")
    assert [part.process.poll() for part in parts] == [None] * len(parts)


def wait_for_words(words: str, parts: list[Part]) -> None:
    """Wait until each of them has logged something."""
    wait_until(lambda: all(words in part.log.read_text() for part in parts), f"{words!r} in every log")


def said_by(part: Part) -> str:
    """What a part has said about its waits, in one text."""
    events = ("waiting for the broker", "waiting for the federation", REFUSED_NOW)
    return "\n".join(str(line["because"]) for event in events for line in part.events(event))


def a_user(node: BrokerNode, name: str) -> str:
    """Make a user who may speak for every part, and return the URL that it connects with."""
    url = add_user(node, name, configure=".*", write=".*", read=".*")
    rabbitmqctl(node, "set_user_tags", name, "impersonator")
    return url


@contextmanager
def vhost_limit(node: BrokerNode, connections: int) -> Iterator[None]:
    rabbitmqctl(node, "set_vhost_limits", f'{{"max-connections": {connections}}}')
    try:
        yield
    finally:
        rabbitmqctl(node, "clear_vhost_limits")


def test_a_limit_that_half_open_connections_use_up_is_waited_for_and_named(
    node: BrokerNode, tmp_path: Path
) -> None:
    """A relay closes the clients' side only: RabbitMQ counts the old ones until it misses heartbeats."""
    with (
        Relay(node.amqp_port) as relay,
        Federation("half-open", through(relay, node), tmp_path, task=TASK) as federation,
    ):
        parts = every_part(federation)
        with vhost_limit(node, CONNECTIONS):
            relay.cut_clients()

            wait_for_words("waiting for the broker", parts[:4])
            assert_all_go_on(parts)

        for part in parts[:3]:
            assert f"connection limit ({CONNECTIONS}) is reached" in said_by(part)
            assert "virtual host is missing" not in part.log.read_text()


def test_at_the_first_start_a_limit_is_waited_for_and_named(node: BrokerNode, tmp_path: Path) -> None:
    with Federation("limited", node.amqp_url, tmp_path, task=TASK) as federation:
        with vhost_limit(node, 0):
            impatient = federation.worker(1, "--connect-timeout-s", "2")
            leader = federation.aggregator("leader", "--buffer-size", "1")
            leader.wait_for("waiting for the broker")

            assert_refused(impatient, "connection limit (0) is reached")
            assert "connection limit (0) is reached" in said_by(leader)

        leader.wait_for("leading")


def test_a_limit_that_leaves_too_few_connections_ends_a_part_after_its_patience(
    node: BrokerNode, tmp_path: Path
) -> None:
    """An aggregator needs two connections: with one it is let in, again and again, and can do nothing."""
    url = a_user(node, "one-connection")
    rabbitmqctl(node, "set_user_limits", "one-connection", '{"max-connections": 1}')
    with Federation("one-connection", url, tmp_path, task=TASK) as federation:
        leader = federation.aggregator("leader", "--connect-timeout-s", "6")

        assert_refused(leader, "user connection limit (1) is reached")
        assert len(leader.events("lost the broker; connecting again")) > 1


def test_a_quota_on_queues_ends_an_aggregator_with_rabbitmqs_reason(node: BrokerNode, tmp_path: Path) -> None:
    rabbitmqctl(node, "add_vhost", "small")
    rabbitmqctl(node, "set_permissions", "-p", "small", node.user, ".*", ".*", ".*")
    rabbitmqctl(node, "set_vhost_limits", "-p", "small", '{"max-queues": 2}')
    url = node.amqp_url.replace("/%2F", "/small")
    with Federation("quota", url, tmp_path, task=TASK) as federation:
        leader = federation.aggregator("leader")

        assert_refused(leader, "queue limit in vhost 'small' (2) is reached", "raise it")
        assert not leader.events("lost the broker; connecting again")


def rotating(node: BrokerNode, user: str, folder: Path) -> tuple[str, Path]:
    """Make a user whose password is in a file; return the URL without it, and the file."""
    a_user(node, user)
    file = folder / "password"
    file.write_text("secret\n")
    return f"amqp://{user}@127.0.0.1:{node.amqp_port}/%2F", file


def test_a_part_that_was_accepted_before_waits_for_a_new_password_in_its_file(
    node: BrokerNode, tmp_path: Path
) -> None:
    url, file = rotating(node, "rotated", tmp_path)
    with Federation("rotated", url, tmp_path, task=TASK) as federation:
        parts = every_part(federation, "--broker-password-file", str(file))

        # The broker's side first, and meanwhile the file is being written.
        rabbitmqctl(node, "change_password", "rotated", "new-secret")
        file.write_text("")
        rabbitmqctl(node, "close_all_user_connections", "rotated", "rotation")
        wait_for_words(REFUSED_NOW, parts)
        file.write_text("new-secret\n")

        assert_all_go_on(parts)


def test_a_login_that_stays_refused_ends_a_part_after_its_patience(node: BrokerNode, tmp_path: Path) -> None:
    url, file = rotating(node, "revoked", tmp_path)
    with Federation("revoked", url, tmp_path, task=TASK) as federation:
        parts = every_part(federation, "--broker-password-file", str(file), "--login-patience", "4")

        rabbitmqctl(node, "change_password", "revoked", "new-secret")
        rabbitmqctl(node, "close_all_user_connections", "revoked", "rotation")

        for part in parts:
            assert_refused(part, "refused the user 'revoked' or its password")
            assert REFUSED_NOW in part.log.read_text()


def delete_and_make_again(node: BrokerNode) -> None:
    """What somebody does who makes a user anew, step by step."""
    rabbitmqctl(node, "delete_user", "passing")
    a_user(node, "passing")


def stop_the_virtual_host(node: BrokerNode) -> None:
    """What happens when the processes of a virtual host die."""
    rabbitmqctl(node, "eval", 'rabbit_vhost_sup_sup:stop_and_delete_vhost(<<"/">>).')
    rabbitmqctl(node, "restart_vhost")


def drain(node: BrokerNode) -> None:
    """What an operator does before and after maintenance."""
    rabbitmqctl(node, "eval", "rabbit_maintenance:drain().")
    rabbitmqctl(node, "eval", "rabbit_maintenance:revive().")


@pytest.fixture
def passing(node: BrokerNode) -> Iterator[str]:
    """The URL of a user who is there for one test."""
    yield a_user(node, "passing")
    rabbitmqctl(node, "delete_user", "passing")


@pytest.mark.parametrize("happens", [delete_and_make_again, stop_the_virtual_host, drain])
def test_what_the_broker_takes_away_for_a_moment_is_waited_for(
    node: BrokerNode, passing: str, tmp_path: Path, happens: Callable[[BrokerNode], None]
) -> None:
    with Federation(happens.__name__.replace("_", "-"), passing, tmp_path, task=TASK) as federation:
        parts = every_part(federation)

        happens(node)

        assert_all_go_on(parts)
        for part in parts[:3]:
            assert part.events("lost the broker; connecting again")


def test_a_virtual_host_that_is_made_anew_is_waited_for_and_not_taken_for_a_new_federation(
    node: BrokerNode, tmp_path: Path
) -> None:
    """A backup of RabbitMQ's definitions has no messages: the model is put back from a file."""
    rabbitmqctl(node, "add_vhost", "anew")
    rabbitmqctl(node, "set_permissions", "-p", "anew", node.user, ".*", ".*", ".*")
    with Federation("anew", node.amqp_url.replace("%2F", "anew"), tmp_path, task=TASK) as federation:
        aggregators = [federation.aggregator(name, "--buffer-size", "1") for name in ("first", "second")]
        worker = federation.worker(0, "--delay", "0.2")
        worker.wait_for("update published", 3)
        assert federation.fluffle("model", "export", "--out", "kept.fluffle").returncode == 0

        rabbitmqctl(node, "delete_vhost", "anew")
        worker.wait_for(REFUSED_NOW)
        rabbitmqctl(node, "add_vhost", "anew")
        rabbitmqctl(node, "set_permissions", "-p", "anew", node.user, ".*", ".*", ".*")

        # Which of the two they meet depends on what RabbitMQ takes away first.
        ends = ("its queue was deleted", "had versions, and now")
        for aggregator in aggregators:
            assert_refused(aggregator)
            assert any(end in aggregator.log.read_text() for end in ends)
        assert sum(len(aggregator.events("new federation")) for aggregator in aggregators) == 1
        assert federation.fluffle("model", "restore", "kept.fluffle").returncode == 0
        federation.aggregator("third", "--buffer-size", "1")
        worker.wait_for("update published", len(worker.events("update published")) + 3)
        assert "vhost anew not found" in said_by(worker)


@pytest.mark.parametrize("cut", [Relay.cut_servers, Relay.cut_clients, Relay.hold_both_ways])
def test_a_line_that_is_half_open_at_either_end_is_made_anew(
    node: BrokerNode, tmp_path: Path, cut: Callable[[Relay], None]
) -> None:
    with (
        Relay(node.amqp_port) as relay,
        Federation(cut.__name__.replace("_", "-"), through(relay, node), tmp_path, task=TASK) as federation,
    ):
        parts = every_part(federation)

        cut(relay)
        for part in parts[:3]:
            part.wait_for("lost the broker; connecting again")
        relay.let_go()

        assert_all_go_on(parts)
