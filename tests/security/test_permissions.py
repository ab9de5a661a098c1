"""Who may do what: every role against every operation of a real node, as separate users, in one table."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pika
import pytest
from brokers import SOON_S, commit
from builders import a_version
from fluffle_command import Fluffle
from logins import (
    PASSWORD,
    Logins,
    Operation,
    binds,
    consumes,
    declares,
    declares_exchange,
    deletes,
    deletes_exchange,
    gets,
    joins,
    looks_at,
    parts,
    publishes,
    purges,
    unbinds,
)

from fluffle.errors import AccessRefused
from fluffle.management import Management
from fluffle.model_stream import record_at_hand, version_at_hand
from fluffle.rabbit import RabbitBroker
from fluffle.rights import ROLES, rights_of
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode
from fluffle_cli.users import hash_of

# The second begins like the first, and so a pattern that is not closed would match it.
OWN, OTHER = topology_of("matrix"), topology_of("matrix-2")
EVERYBODY = frozenset(ROLES)
LEADERS = frozenset({"aggregator", "operator"})
MODEL_READERS = LEADERS | {"worker", "evaluator"}
READERS = {
    OWN.models.name: MODEL_READERS,
    OWN.best.name: MODEL_READERS,
    OWN.records.name: MODEL_READERS | {"monitor"},
    OWN.closes.name: LEADERS | {"helper"},
}
LISTENERS = LEADERS | {"monitor"}
OPERATOR = frozenset({"operator"})

Row = tuple[str, Operation, frozenset[str]]


@pytest.fixture(scope="module")
def logins(managed_node: BrokerNode, management: Management) -> Iterator[Logins]:
    """A user for each role of the federation `matrix`, called as the role."""
    for role in ROLES:
        management.put_user(role, rights_of(role, OWN.federation, role), hash_of(PASSWORD))
    with ExitStack() as stack:
        yield Logins(managed_node, stack)
    for role in ROLES:
        management.delete_user(role)


@pytest.fixture(autouse=True)
def federations(logins: Logins, managed_node: BrokerNode) -> Iterator[RabbitBroker]:
    """Both federations, whatever the test before has deleted, with nothing waiting."""
    with RabbitBroker(managed_node.amqp_url, name="matrix", heartbeat_s=10) as broker:
        for topology in (OWN, OTHER):
            broker.declare(topology)
            for queue in (topology.updates, topology.head, topology.rejected):
                assert logins.may("operator", purges(queue.name))
        yield broker


def of_exchanges() -> Iterator[Row]:
    """What can be done with the exchanges of one's own federation."""
    writers = {
        OWN.updates_in.name: {"worker"},
        OWN.evaluations_in.name: {"evaluator"},
        OWN.member_events_in.name: {"worker", "evaluator", "helper"},
        OWN.openings_in.name: {"helper"},
        OWN.digests_in.name: {"helper"},
    }
    for exchange in OWN.exchanges:
        name = exchange.name
        yield f"publish to {name}", publishes(name), LEADERS | writers.get(name, set())
        yield (
            f"declare exchange {name}",
            declares_exchange(name, exchange.kind, **exchange.arguments),
            LEADERS,
        )
        for queue in OWN.queues:
            yield f"bind {queue.name} to {name}", binds(queue.name, name), LEADERS
            yield f"unbind {queue.name} from {name}", unbinds(queue.name, name), LEADERS
            yield f"cut {queue.name} off {name}", unbinds(queue.name, name, key=""), LEADERS
        for other in (OWN.updates_in.name, OWN.evaluations_in.name):
            if other != name:  # nobody joins an exchange to itself
                yield f"join {name} to {other}", joins(other, name), LEADERS
                yield f"part {name} from {other}", parts(other, name), LEADERS


def of_queues() -> Iterator[Row]:
    """What can be done with the queues of one's own federation."""
    for queue in OWN.queues:
        name = queue.name
        yield f"count {name}", looks_at(name), EVERYBODY
        yield f"consume {name}", consumes(queue), READERS.get(name, LEADERS)
        yield f"declare queue {name}", declares(name, **queue.arguments), LEADERS
        yield f"publish to {name} by the default exchange", publishes("", name), OPERATOR
        if name not in READERS:  # RabbitMQ knows neither for a stream
            yield f"get from {name}", gets(name), LEADERS
            yield f"purge {name}", purges(name), LEADERS
        yield f"delete queue {name}", deletes(name), LEADERS
    for name in (exchange.name for exchange in OWN.exchanges):
        yield f"delete exchange {name}", deletes_exchange(name), LEADERS


def beyond() -> Iterator[Row]:
    """What would reach another federation, or make something that is nobody's."""
    for exchange in OTHER.exchanges:
        yield f"publish to {exchange.name}", publishes(exchange.name), OPERATOR
        yield f"bind to {exchange.name}", binds(OWN.updates.name, exchange.name), OPERATOR
        yield f"join {exchange.name} to one's own", joins(OWN.updates_in.name, exchange.name), OPERATOR
        yield f"join one's own to {exchange.name}", joins(exchange.name, OWN.versions_in.name), OPERATOR
        yield f"part one's own from {exchange.name}", parts(exchange.name, OWN.versions_in.name), OPERATOR
    for queue in OTHER.queues:
        yield f"consume {queue.name}", consumes(queue), OPERATOR
        yield f"bind {queue.name}", binds(queue.name, OWN.versions_in.name), OPERATOR
        yield f"publish to {queue.name} by the default exchange", publishes("", queue.name), OPERATOR
        yield f"delete {queue.name}", deletes(queue.name), OPERATOR
        by_default = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue.name}
        yield f"dead-letter to {queue.name}", declares(f"matrix.to-{queue.name}", **by_default), OPERATOR
    for exchange in OTHER.exchanges:
        name = exchange.name
        alternate, dead_letter = {"alternate-exchange": name}, {"x-dead-letter-exchange": name}
        yield f"pass on to {name}", declares_exchange(f"matrix.on-{name}", **alternate), OPERATOR
        yield f"dead-letter to {name}", declares(f"matrix.dead-{name}", **dead_letter), OPERATOR
        yield f"delete {name}", deletes_exchange(name), OPERATOR
    yield "declare a queue of any name", declares("mine"), OPERATOR
    yield "declare a queue of RabbitMQ's naming", declares(""), OPERATOR
    yield "declare an exchange of any name", declares_exchange("mine"), OPERATOR
    yield "publish to amq.fanout", publishes("amq.fanout"), OPERATOR
    yield "join the models to amq.fanout", joins("amq.fanout", OWN.versions_in.name), OPERATOR
    yield "declare a queue to listen with", declares("matrix.events.mine"), LISTENERS
    yield "listen to the events", binds("matrix.events.mine", OWN.events.name), LISTENERS
    yield "listen to the updates", binds("matrix.events.mine", OWN.updates_in.name), LEADERS
    yield "stop listening", deletes("matrix.events.mine"), LISTENERS
    yield "declare a queue of one's own federation", declares("matrix.mine"), LEADERS
    yield "delete that queue", deletes("matrix.mine"), LEADERS


def of_names() -> Iterator[Row]:
    """What can be done with the queues of a name: the users are the worker and the helper of that name."""
    for user in ("worker", "helper"):
        yield from _of_name(user)


def _of_name(user: str) -> Iterator[Row]:
    own = LEADERS | {user}
    for name in (OWN.worker_lock(user), OWN.worker_bell(user)):
        yield f"declare queue {name}", declares(name), own
        yield f"get from {name}", gets(name), own
        yield f"bind {name} to {OWN.updates_in.name}", binds(name, OWN.updates_in.name), LEADERS
        yield f"publish to {name} by the default exchange", publishes("", name), OPERATOR
        # An exchange of the same name is no way in either.
        yield f"declare exchange {name}", declares_exchange(name), own
        yield f"publish to {name}", publishes(name), LEADERS
        yield f"bind {name} to itself", binds(name, name), LEADERS
        yield f"delete queue {name}", deletes(name), own
        dead_letter = declares(name, x_dead_letter_exchange=OWN.head_in.name)
        yield f"dead-letter from {name} to the head", dead_letter, LEADERS
        yield f"delete queue {name} again", deletes(name), own
        yield f"delete exchange {name}", deletes_exchange(name), own
    for other in (f"{user}-2", f"{user}.2", user[:4], f"{user}/other", ""):
        name = OWN.worker_lock(other)
        yield f"declare queue {name}", declares(name), LEADERS
        yield f"get from {name}", gets(name), LEADERS
        yield f"delete queue {name}", deletes(name), LEADERS
    name = OTHER.worker_lock(user)
    yield f"declare queue {name}", declares(name), OPERATOR
    yield f"delete queue {name}", deletes(name), OPERATOR


@pytest.mark.parametrize("rows", [of_exchanges, of_queues, of_names, beyond], ids=lambda rows: rows.__name__)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_the_table_says_and_nothing_else(
    logins: Logins, role: str, rows: Callable[[], Iterator[Row]]
) -> None:
    operations = {name: (operation, role in allowed) for name, operation, allowed in rows()}

    found = {name: logins.may(role, operation) for name, (operation, _) in operations.items()}

    assert found == {name: expected for name, (_, expected) in operations.items()}


def test_a_monitor_reads_the_record_of_each_version_and_no_model(
    logins: Logins, federations: RabbitBroker
) -> None:
    version = replace(a_version(1), federation=OWN.federation)
    commit(federations, OWN, version)

    with RabbitBroker(logins.url("monitor"), name="monitor", heartbeat_s=10) as monitor:
        record = record_at_hand(monitor, OWN)
        with pytest.raises(AccessRefused, match=OWN.models.name):
            version_at_hand(monitor, OWN)

    assert record is not None
    assert (record.rank, record.vector.size) == (version.rank, 0)


def test_a_monitor_lists_the_versions_without_the_right_to_read_a_model(
    logins: Logins, federations: RabbitBroker, fluffle: Fluffle
) -> None:
    commit(federations, OWN, *(replace(a_version(number), federation=OWN.federation) for number in (7, 8)))

    listed = fluffle(
        "model", "list", FLUFFLE_BROKER_URL=logins.url("monitor"), FLUFFLE_FEDERATION=OWN.federation
    )

    assert listed.exit_code == 0, listed.output
    assert {"7", "8"} <= {line.split()[0] for line in listed.output.splitlines() if line.strip()}


def test_a_user_without_the_right_to_the_records_is_told_what_to_do(
    logins: Logins, federations: RabbitBroker, management: Management
) -> None:
    older = replace(rights_of("monitor", OWN.federation, "older"), read=r"^matrix\.(events|models)$")
    management.put_user("older", older, hash_of(PASSWORD))

    with (
        RabbitBroker(logins.url("older"), name="older", heartbeat_s=10) as broker,
        pytest.raises(AccessRefused, match=r"no right to matrix\.records: make the user again"),
    ):
        record_at_hand(broker, OWN)


def test_a_worker_reads_the_models_and_its_update_arrives_in_its_name(
    logins: Logins, federations: RabbitBroker
) -> None:
    federations.consume(OWN.updates.name, prefetch=1)
    federations.publish(OWN.versions_in.name, "", b"model", {})

    with RabbitBroker(logins.url("worker"), name="worker", heartbeat_s=10, speaks_for="worker") as worker:
        worker.check(OWN)
        with worker.read_stream(OWN.models.name, offset="last") as reader:
            model = reader.next_body(SOON_S)
        worker.publish(OWN.updates_in.name, "", b"update", {})
        delivery = federations.next_delivery(SOON_S)

    assert model == b"model"
    assert delivery is not None
    assert (delivery.body, delivery.user, delivery.exchange) == (b"update", "worker", OWN.updates_in.name)
    federations.ack([delivery.tag])


@pytest.mark.parametrize("somebody", ["evaluator", "aggregator", "operator", "nobody"])
def test_a_worker_cannot_speak_in_the_name_of_another(
    logins: Logins, federations: RabbitBroker, somebody: str
) -> None:
    with (
        RabbitBroker(logins.url("worker"), name="forger", heartbeat_s=10, speaks_for=somebody) as forger,
        pytest.raises(AccessRefused, match="may not speak for another"),
    ):
        forger.publish(OWN.updates_in.name, "", b"forged", {})

    assert federations.state(OWN.updates.name).messages == 0


def test_an_aggregator_cannot_speak_in_the_name_of_a_worker(
    logins: Logins, federations: RabbitBroker
) -> None:
    with (
        RabbitBroker(logins.url("aggregator"), name="forger", heartbeat_s=10, speaks_for="worker") as forger,
        pytest.raises(AccessRefused, match="may not speak for another"),
    ):
        forger.publish(OWN.updates_in.name, "", b"forged", {})

    assert federations.state(OWN.updates.name).messages == 0


def test_an_operator_sends_a_refused_update_again_in_its_workers_name(
    logins: Logins, federations: RabbitBroker
) -> None:
    federations.consume(OWN.updates.name, prefetch=1)

    with RabbitBroker(logins.url("operator"), name="mender", heartbeat_s=10, speaks_for="worker") as operator:
        operator.publish(OWN.updates_in.name, "", b"once more", {})
        delivery = federations.next_delivery(SOON_S)

    assert delivery is not None
    assert delivery.user == "worker"
    federations.ack([delivery.tag])


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_copies_that_a_sender_asks_for_reach_no_other_queue(
    logins: Logins, federations: RabbitBroker, header: str
) -> None:
    targets = [queue.name for topology in (OWN, OTHER) for queue in topology.queues]
    copied = pika.BasicProperties(headers={header: targets})

    accepted = logins.may("worker", publishes(OWN.updates_in.name, "matrix.head", copied))

    waiting = {
        name: federations.state(name).messages
        for name in targets
        if not name.endswith((".models", ".best", ".records"))
    }
    assert accepted
    assert waiting == {name: int(name == OWN.updates.name) for name in waiting}


def test_a_monitor_sees_the_queues_and_gets_at_no_message(logins: Logins, managed_node: BrokerNode) -> None:
    api = f"{managed_node.management_url}api"
    take = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
    send = {"properties": {}, "routing_key": "", "payload": "x", "payload_encoding": "string"}
    with httpx.Client(auth=("monitor", PASSWORD), trust_env=False) as monitor:
        seen = monitor.get(f"{api}/queues/%2F/{OWN.updates.name}")
        others = [
            monitor.post(f"{api}/queues/%2F/{OWN.updates.name}/get", json=take),
            monitor.post(f"{api}/exchanges/%2F/{OWN.updates_in.name}/publish", json=send),
            monitor.delete(f"{api}/queues/%2F/{OWN.updates.name}"),
            monitor.delete(f"{api}/queues/%2F/{OWN.updates.name}/contents"),
            monitor.get(f"{api}/definitions"),
            monitor.get(f"{api}/users"),
            monitor.put(
                f"{api}/permissions/%2F/monitor", json=rights_of("operator", "matrix", "monitor").patterns
            ),
        ]

    assert seen.json()["name"] == OWN.updates.name
    assert [answer.is_success for answer in others] == [False] * len(others)


@pytest.mark.parametrize("role", ["worker", "evaluator", "aggregator"])
def test_the_parts_have_no_login_to_the_management_interface(
    logins: Logins, managed_node: BrokerNode, role: str
) -> None:
    answer = httpx.get(f"{managed_node.management_url}api/whoami", auth=(role, PASSWORD), trust_env=False)

    assert answer.status_code == httpx.codes.UNAUTHORIZED


def test_a_pattern_lets_nobody_into_another_federation_or_to_the_default_exchange(
    logins: Logins, management: Management
) -> None:
    # (role, federations, may write to `matrix`, may write to `matrix-2`)
    table = [
        ("worker", "matrix*", True, True),
        ("worker", "matrix-*", False, True),
        ("worker", "gym-*,matrix", True, False),
        ("aggregator", "*", True, True),
        ("aggregator", "a*,matrix-*", False, True),
        ("aggregator", "a*", False, False),
    ]
    for number, (role, federations, *_) in enumerate(table):
        name = f"pattern-{number}"
        management.put_user(name, rights_of(role, federations, name), hash_of(PASSWORD))

    tried = [
        (
            role,
            federations,
            logins.may(f"pattern-{number}", publishes(OWN.updates_in.name)),
            logins.may(f"pattern-{number}", publishes(OTHER.updates_in.name)),
        )
        for number, (role, federations, *_) in enumerate(table)
    ]
    beyond_all = [
        logins.may(f"pattern-{number}", operation)
        for number in range(len(table))
        for operation in (publishes("", OWN.updates.name), publishes("amq.fanout"), declares("mine"))
    ]

    assert tried == table
    assert not any(beyond_all)
