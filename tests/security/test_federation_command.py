"""`fluffle federation` on a real node: what it shows, what it deletes, and when it refuses to."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pika
import pytest
from brokers import SOON_S, commit
from builders import a_version
from federation import wait_until
from fluffle_command import Fluffle, ask_management
from logins import PASSWORD

from fluffle.events import Happened, Rejected, Report
from fluffle.management import Management
from fluffle.rabbit import RabbitBroker
from fluffle.record import Contributor
from fluffle.rights import rights_of
from fluffle.topology import Topology
from fluffle.wire import encode_report
from fluffle_cli.dashboard.program import DashboardSettings, Watch
from fluffle_cli.federations import all_footprints
from fluffle_cli.node import BrokerNode
from fluffle_cli.users import hash_of

pytestmark = pytest.mark.long


@pytest.fixture
def broker(managed_node: BrokerNode, topology: Topology, management: Management) -> Iterator[RabbitBroker]:
    """A federation with one version, two updates that wait and one refused message."""
    with RabbitBroker(managed_node.amqp_url, name="test", heartbeat_s=20) as connected:
        connected.declare(topology)
        version = replace(
            a_version(3), federation=topology.federation, contributors={"w1": Contributor(3, 30, 6, 3.0)}
        )
        commit(connected, topology, version)
        for exchange, count in ((topology.updates_in, 2), (topology.rejected_in, 1)):
            for _ in range(count):
                connected.publish(exchange.name, "", b"body", {})

        def are_counted() -> bool:
            found = all_footprints(management)[topology.federation]
            return [found.messages_in(each.name) for each in (topology.updates, topology.rejected)] == [2, 1]

        wait_until(are_counted, "RabbitMQ to count them", every_s=0.5)
        yield connected


@contextmanager
def connected_as(node: BrokerNode, name: str, management: Management) -> Iterator[None]:
    """Be connected under the name that a part gives its connection."""
    parameters = pika.URLParameters(node.amqp_url)
    parameters.client_properties = {"connection_name": name}
    # No heartbeats: nobody answers them meanwhile, and RabbitMQ would close the connection.
    parameters.heartbeat = 0
    with pika.BlockingConnection(parameters):
        wait_until(lambda: name in management.connection_names(), f"{name} to be seen", every_s=0.5)
        yield
    wait_until(lambda: name not in management.connection_names(), f"{name} to be gone", every_s=0.5)


def names_on_broker(management: Management, federation: str) -> list[str]:
    names = [each.name for each in management.queues()] + management.exchanges()
    return sorted(name for name in names if name.startswith(f"{federation}."))


@pytest.mark.usefixtures("broker")
def test_the_list_has_each_federation_with_its_version_and_what_waits(
    fluffle: Fluffle, topology: Topology, management: Management
) -> None:
    shown = fluffle("federation", "list")
    as_json = fluffle("federation", "list", "--json")

    found = {each["federation"]: each for each in map(json.loads, as_json.stdout.splitlines())}
    assert (shown.exit_code, as_json.exit_code) == (0, 0), shown.output + as_json.output
    assert found[topology.federation] == {
        "federation": topology.federation,
        "version": 3,
        "term": 1,
        "updates": 3,
        "finished": "",
        "workers": 0,
        "aggregator_leads": False,
        "waiting": 2,
        "rejected": 1,
        "trouble": "",
    }
    line = next(line for line in shown.output.splitlines() if line.split()[:1] == [topology.federation])
    assert "no aggregator" in line
    assert all_footprints(management).keys() >= found.keys()


@pytest.mark.usefixtures("broker")
def test_a_monitor_sees_the_federations_but_not_their_users(
    fluffle: Fluffle, topology: Topology, managed_node: BrokerNode, management: Management
) -> None:
    federation, name = topology.federation, f"monitor-of-{topology.federation}"
    management.put_user(name, rights_of("monitor", federation, name), hash_of(PASSWORD))
    login = {"FLUFFLE_BROKER_URL": f"amqp://{name}:{PASSWORD}@127.0.0.1:{managed_node.amqp_port}/%2F"}

    listed = fluffle("federation", "list", **login)
    shown = fluffle("federation", "show", federation, **login)
    deleted = fluffle("federation", "delete", federation, "--yes", **login)

    assert (listed.exit_code, shown.exit_code, deleted.exit_code) == (0, 0, 2)
    assert federation in listed.output
    assert "shown to administrators only" in shown.output
    assert "needs the tag administrator" in deleted.output


@pytest.mark.usefixtures("broker")
def test_one_federation_is_shown_with_its_queues_connected_parts_and_users(
    fluffle: Fluffle, topology: Topology, managed_node: BrokerNode, management: Management
) -> None:
    federation = topology.federation
    fluffle("user", "add", f"w-{federation}", "--role", "worker", "--federation", f"{federation},gym-*")

    with connected_as(managed_node, f"{federation}/worker/w1", management):
        shown = fluffle("federation", "show", federation).output.splitlines()

    assert "version     3 (term 1), 3 updates" in shown
    assert "connected   worker w1" in shown
    rows = [line.split() for line in shown]
    assert any(row[:3] == [topology.updates.name, "│", "2"] for row in rows)
    assert any(row[::2][:3] == [f"w-{federation}", "worker", f"{federation},gym-*"] for row in rows)


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("deed", ["delete", "reset"])
def test_connected_parts_are_named_and_nothing_is_deleted(
    fluffle: Fluffle, topology: Topology, managed_node: BrokerNode, management: Management, deed: str
) -> None:
    before = names_on_broker(management, topology.federation)

    with connected_as(managed_node, f"{topology.federation}/aggregator/lead", management):
        refused = fluffle("federation", deed, topology.federation, "--yes")

    assert refused.exit_code == 2
    assert "aggregator lead" in refused.output
    assert "--force" in refused.output
    assert names_on_broker(management, topology.federation) == before


@pytest.mark.usefixtures("broker")
def test_a_deletion_says_what_is_lost_and_keeps_queues_that_fluffle_did_not_create(
    fluffle: Fluffle, topology: Topology, managed_node: BrokerNode, management: Management
) -> None:
    federation = topology.federation
    mine, other = f"{federation}.mine", f"{federation}-2.updates"
    for name in (mine, other):
        ask_management(managed_node, "PUT", f"queues/%2F/{name}", {"durable": True})
    left_behind = f"{federation}.worker.w1"
    ask_management(managed_node, "PUT", f"queues/%2F/{left_behind}", {"durable": True})

    deleted = fluffle("federation", "delete", federation, "--yes")

    assert deleted.exit_code == 0, deleted.output
    assert "2 messages for the aggregator, most of them updates, 1 refused message" in deleted.output
    assert "Deleted 13 exchanges with their bindings and 8 queues" in deleted.output
    assert f"Not deleted, because Fluffle did not create it: queue {mine}" in deleted.output
    assert names_on_broker(management, federation) == [mine]
    assert names_on_broker(management, f"{federation}-2") == [other]
    for name in (mine, other):
        ask_management(managed_node, "DELETE", f"queues/%2F/{name}")


def test_a_reset_federation_is_complete_and_empty(
    fluffle: Fluffle, topology: Topology, broker: RabbitBroker, management: Management
) -> None:
    before = names_on_broker(management, topology.federation)

    done = fluffle("federation", "reset", topology.federation, "--yes")

    assert done.exit_code == 0, done.output
    assert "begins at version 0" in done.output
    assert names_on_broker(management, topology.federation) == before
    assert not all_footprints(management)[topology.federation].missing
    # The claim in the head is all that is there.
    counts = [
        broker.state(queue.name).messages for queue in (topology.updates, topology.rejected, topology.head)
    ]
    assert counts == [0, 0, 1]


def test_a_federation_is_deleted_while_somebody_listens_and_the_listeners_queue_ends_with_it(
    fluffle: Fluffle, topology: Topology, broker: RabbitBroker, management: Management
) -> None:
    with broker.listen(topology.events.name, name="page"):
        deleted = fluffle("federation", "delete", topology.federation, "--yes")

        assert deleted.exit_code == 0, deleted.output
        assert "Deleted 13 exchanges with their bindings and 7 queues" in deleted.output
        assert names_on_broker(management, topology.federation) == [f"{topology.events.name}.page"]
    wait_until(lambda: not names_on_broker(management, topology.federation), "the listener's queue to end")


def test_a_listener_hears_the_events_of_a_federation_that_was_reset(
    fluffle: Fluffle, topology: Topology, broker: RabbitBroker, management: Management
) -> None:
    with broker.listen(topology.events.name, name="page") as listener:
        done = fluffle("federation", "reset", topology.federation, "--yes")
        for exchange in (topology.events, topology.member_events_in):
            broker.publish_unconfirmed(exchange.name, "worker.w1", b"event")

        heard = [listener.next_delivery(SOON_S) for _ in range(2)]

    assert done.exit_code == 0, done.output
    assert [each and each.exchange for each in heard] == [
        topology.events.name,
        topology.member_events_in.name,
    ]
    assert not all_footprints(management)[topology.federation].missing


def test_an_open_page_shows_the_events_and_versions_of_a_federation_that_was_reset(
    fluffle: Fluffle,
    topology: Topology,
    broker: RabbitBroker,
    managed_node: BrokerNode,
) -> None:
    stop, federation = threading.Event(), topology.federation
    watch = Watch(DashboardSettings(federation=federation, broker_url=managed_node.amqp_url), stop)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        wait_until(lambda: shown_version(watch) == (1, 3), "the page to show the version")

        done = fluffle("federation", "reset", federation, "--yes")
        commit(broker, topology, replace(a_version(0, term=1002), federation=federation))

        def tells() -> bool:
            refusal = Happened(time.time(), Rejected("", "w1", "layout", "another layout"))
            report = encode_report(Report(federation, "aggregator", "next", (refusal,)))
            broker.publish_unconfirmed(topology.events.name, "aggregator.next", report)
            return bool(watch.view().refusals)

        assert done.exit_code == 0, done.output
        wait_until(tells, "the page to hear of the new federation", every_s=0.5)
        wait_until(lambda: shown_version(watch) == (1002, 0), "the page to show the new version")
        assert watch.view().trouble == ""
    finally:
        stop.set()
        thread.join()


def shown_version(watch: Watch) -> tuple[int, int] | None:
    newest = watch.view().newest
    return (newest.rank.term, newest.rank.version) if newest else None


@pytest.mark.usefixtures("broker")
def test_without_a_terminal_and_without_yes_nothing_is_deleted(
    fluffle: Fluffle, topology: Topology, management: Management
) -> None:
    before = names_on_broker(management, topology.federation)

    refused = fluffle("federation", "delete", topology.federation)

    assert refused.exit_code == 2
    assert "give --yes to delete" in refused.output
    assert names_on_broker(management, topology.federation) == before


@pytest.mark.usefixtures("broker")
def test_on_a_terminal_the_name_must_be_typed(
    topology: Topology, managed_node: BrokerNode, management: Management, tmp_path: Path
) -> None:
    before = names_on_broker(management, topology.federation)

    wrong = typed("yes", "federation", "delete", topology.federation, node=managed_node, folder=tmp_path)
    after_wrong = names_on_broker(management, topology.federation)
    right = typed(
        topology.federation, "federation", "delete", topology.federation, node=managed_node, folder=tmp_path
    )

    assert after_wrong == before
    assert "nothing was changed" in wrong
    assert f"Type {topology.federation} to delete this federation" in right
    assert names_on_broker(management, topology.federation) == []


def typed(answer: str, *arguments: str, node: BrokerNode, folder: Path) -> str:
    """Run a command at whose terminal somebody types an answer; return what it says."""
    ours, its = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "fluffle_cli.main", *arguments],
            env=os.environ
            | {"FLUFFLE_BROKER_URL": node.amqp_url, "FLUFFLE_MANAGEMENT_URL": str(node.management_url)},
            cwd=folder,
            stdin=its,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(its)
        os.close(ours)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("deed", ["show", "delete", "reset"])
def test_an_error_about_a_missing_federation_names_the_existing_ones(
    fluffle: Fluffle, broker: RabbitBroker, topology: Topology, deed: str
) -> None:
    refused = fluffle("federation", deed, "not-there", *(["--yes"] if deed != "show" else []))

    assert refused.exit_code == 2
    assert "there is no federation 'not-there' on the virtual host '/'" in refused.output
    assert topology.federation in refused.output
    assert broker.state(topology.updates.name).messages == 2
