"""A private RabbitMQ node: reachable with its login, on loopback, and gone when it is stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from fluffle.errors import BrokerError, ConfigError, LoginRefused
from fluffle.rabbit import RabbitBroker
from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import comes_true, find_server, is_free


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerNode, BrokerNode]]:
    """Start one for most tests, with management, and at the same moment one that is there to crash."""
    folder = tmp_path_factory.mktemp("brokers")
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(BrokerNode.start, folder / "whole")
        bare = pool.submit(BrokerNode.start, folder / "bare", management=False)
    with whole.result() as one, bare.result() as other:
        yield one, other


@pytest.fixture
def node(two_nodes: tuple[BrokerNode, BrokerNode]) -> BrokerNode:
    if not two_nodes[0].is_running:
        two_nodes[0].restart()
    return two_nodes[0]


def name_of_login(node: BrokerNode) -> str:
    account = ask(node, "whoami")
    assert isinstance(account, dict)
    return str(account["name"])


def ask(node: BrokerNode, path: str, *, login: tuple[str, str] | None = None) -> object:
    user, password = login or (node.user, node.password)
    token = b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(f"{node.management_url}api/{path}")
    request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `fluffle broker ...` in a process of its own."""
    program = [sys.executable, "-c", "from fluffle_cli.broker_command import app; app()"]
    return subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)


def all_ports(node: BrokerNode) -> set[int]:
    """Return the node's own ports and its port mapper's."""
    return {*node.ports, node.epmd_port}


def listening_addresses() -> dict[str, tuple[str, int]]:
    """List this machine's listening TCP sockets by inode: address (hexadecimal, as Linux has it) and port."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            address, port = columns[1].split(":")
            if columns[3] == "0A":
                found[columns[9]] = (address, int(port, 16))
    return found


def open_files(pid: int) -> set[str]:
    """List what a process has open; a file that it closes while this reads is not among them."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def test_a_node_serves_amqp_and_its_management_login_works_from_the_start(node: BrokerNode) -> None:
    overview = ask(node, "overview")

    assert node.serves()
    assert isinstance(overview, dict)
    assert overview["node"] == "fluffle@localhost"


def test_its_one_user_may_do_everything_and_guest_is_refused(node: BrokerNode) -> None:
    users = ask(node, "users")
    rights = ask(node, "permissions")

    assert isinstance(users, list)
    assert [(user["name"], sorted(user["tags"])) for user in users] == [
        (node.user, ["administrator", "impersonator"])
    ]
    assert rights == [{"user": node.user, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}]
    with pytest.raises(HTTPError) as refusal:
        ask(node, "whoami", login=("guest", "guest"))
    refusal.value.close()
    assert refusal.value.code == 401


def test_guest_is_refused_over_amqp_too(node: BrokerNode) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{node.amqp_port}/%2F"

    with pytest.raises(LoginRefused, match="'guest' or its password"):
        RabbitBroker(url, name="guest", heartbeat_s=10)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's tables of sockets")
def test_everything_it_listens_on_is_loopback(node: BrokerNode) -> None:
    sockets = listening_addresses()
    links = open_files(node.pid)
    of_server = {place for inode, place in sockets.items() if f"socket:[{inode}]" in links}
    ports = all_ports(node)
    of_node = {place for place in sockets.values() if place[1] in ports}

    assert {port for _, port in of_server} == set(node.ports)
    assert of_server <= of_node
    assert {port for _, port in of_node} == ports
    assert {address for address, _ in of_node} <= {"0100007F", "00000000000000000000000001000000"}


def test_only_its_owner_can_read_its_password(node: BrokerNode) -> None:
    modes = {
        path.relative_to(node.folder).as_posix(): path.stat().st_mode & 0o077
        for path in node.folder.rglob("*")
        if path.is_file() and path.parent in {node.folder, node.folder / "home"}
    }

    assert {"node.json", "rabbitmq.conf", "home/.erlang.cookie"} <= modes.keys()
    assert set(modes.values()) == {0}


def test_ctrl_c_in_a_terminal_does_not_reach_it(node: BrokerNode) -> None:
    assert os.getsid(node.pid) == node.pid != os.getsid(0)


def test_a_killed_node_is_gone_at_once_and_comes_back_with_its_ports_and_users(node: BrokerNode) -> None:
    ports, login, pid = all_ports(node), (node.user, node.password), node.pid

    node.kill()
    assert not node.is_running
    assert all(map(is_free, ports))
    node.restart()

    assert (all_ports(node), (node.user, node.password)) == (ports, login)
    assert node.pid != pid
    assert name_of_login(node) == node.user


def test_a_folder_holds_one_node_at_a_time(node: BrokerNode) -> None:
    with pytest.raises(BrokerError, match="already"):
        BrokerNode.start(node.folder)

    assert name_of_login(node) == node.user


def test_nodes_started_at_once_share_nothing_and_a_crash_of_one_leaves_the_other(
    node: BrokerNode, two_nodes: tuple[BrokerNode, BrokerNode]
) -> None:
    crashing = two_nodes[1]
    assert crashing.management_url is None
    assert not all_ports(crashing) & all_ports(node)

    os.kill(crashing.pid, signal.SIGKILL)  # not by kill(), which would tidy up

    assert comes_true(lambda: not crashing.is_running, timeout_s=5)
    crashing.stop()
    assert all(map(is_free, all_ports(crashing)))
    assert node.is_running
    assert name_of_login(node) == node.user


def test_another_process_sees_the_node_and_stops_it(node: BrokerNode) -> None:
    folder = ("--folder", str(node.folder))

    seen = run_command("status", "--json", *folder)
    again = run_command("up", *folder)
    down = run_command("down", *folder)
    unseen = run_command("status", "--json", *folder)

    assert json.loads(seen.stdout)["amqp_url"] == node.amqp_url
    assert f"already running in {node.folder} (process {node.pid})" in again.stdout
    assert "has stopped" in down.stdout
    assert (seen.returncode, again.returncode, down.returncode) == (0, 0, 0)
    assert (json.loads(unseen.stdout)["running"], unseen.returncode) == (False, 1)
    assert not node.is_running
    assert all(map(is_free, all_ports(node)))


def test_a_node_ends_with_the_process_that_started_it_and_its_port_mapper_too(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fluffle_cli.node import BrokerNode\n"
        "BrokerNode.start(Path(sys.argv[1]), management=False); print('serves', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "serves\n"
        node = BrokerNode.load(tmp_path)
        assert node.is_running

        starter.kill()

    assert comes_true(lambda: not node.is_running, timeout_s=10)
    assert comes_true(lambda: all(map(is_free, all_ports(node))), timeout_s=10)


def test_a_node_of_broker_up_stays_when_the_command_has_ended(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "broker"))

    up = run_command("up", "--no-management", *folder)
    status = run_command("status", *folder)
    down = run_command("down", *folder)
    after = run_command("status", *folder)

    assert (up.returncode, status.returncode, down.returncode) == (0, 0, 0), up.stderr
    assert status.stdout.splitlines()[0].split() == ["running", "yes"]
    assert after.stdout.splitlines()[0].split() == ["running", "no"]


def test_a_node_whose_port_was_taken_by_another_program_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUFFLE_RABBITMQ_BIN", str(a_server_that_says("", folder=tmp_path)))
    with pytest.raises(BrokerError):
        BrokerNode.start(tmp_path / "broker")
    node = BrokerNode.load(tmp_path / "broker")

    with socket.socket() as other:
        other.bind(("127.0.0.1", node.amqp_port))
        other.listen()

        with pytest.raises(BrokerError, match=f"port {node.amqp_port} .* taken"):
            node.restart()


def test_a_server_that_does_not_come_up_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = a_server_that_says("the disk is on fire", folder=tmp_path)
    monkeypatch.setenv("FLUFFLE_RABBITMQ_BIN", str(server))

    with pytest.raises(BrokerError, match=r"ended while it started(.|\n)*the disk is on fire"):
        BrokerNode.start(tmp_path / "broker")

    assert not BrokerNode.load(tmp_path / "broker").is_running


def test_a_machine_without_rabbitmq_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluffle_cli.rabbitmq_server.USUAL_SERVER_FOLDERS", ())

    with pytest.raises(ConfigError) as refusal:
        find_server({"PATH": str(tmp_path)})

    for command in ("apt-get install rabbitmq-server", "brew install rabbitmq", "docker compose up"):
        assert command in str(refusal.value)
    with pytest.raises(ConfigError, match="no rabbitmq-server in that folder"):
        find_server({"FLUFFLE_RABBITMQ_BIN": str(tmp_path)})


def test_a_folder_without_a_node_is_told_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="fluffle broker up"):
        BrokerNode.load(tmp_path)


def a_server_that_says(text: str, *, folder: Path) -> Path:
    """A folder with a `rabbitmq-server` that only says something and ends."""
    program = folder / "rabbitmq-server"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return folder
