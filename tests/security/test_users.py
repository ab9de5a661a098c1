"""`fluffle user` on a real node: who is made, what is never touched, who is thrown out."""

import re
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pika
import pika.exceptions
import pytest
from federation import wait_until
from fluffle_command import Fluffle, ask_management, gets_in, listed, url_of
from rabbitmqctl import rabbitmqctl

from fluffle.management import Management
from fluffle.rights import Rights, rights_of
from fluffle_cli.node import BrokerNode
from fluffle_cli.users import hash_of


def test_a_user_is_made_with_a_password_that_is_shown_once(
    fluffle: Fluffle, managed_node: BrokerNode
) -> None:
    made = fluffle("user", "add", "site-a", "--role", "worker")
    again = fluffle("user", "add", "site-a", "--role", "worker")

    password = re.findall(r"password +(\S+) ", made.output)[0]
    assert len(password) >= 32
    assert gets_in(managed_node, "site-a", password)
    assert (made.exit_code, again.exit_code) == (0, 0)
    assert "nothing was changed" in again.output
    assert "password" not in again.output


def test_a_password_goes_into_a_file_that_only_its_owner_reads(
    fluffle: Fluffle, managed_node: BrokerNode, tmp_path: Path
) -> None:
    file = tmp_path / "site-f.password"

    made = fluffle("user", "add", "site-f", "--role", "worker", "--password-file", str(file))

    password = file.read_text().strip()
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert password not in made.output
    assert gets_in(managed_node, "site-f", password)


def test_a_password_file_that_is_there_is_used_and_never_overwritten(
    fluffle: Fluffle, managed_node: BrokerNode, tmp_path: Path
) -> None:
    file = tmp_path / "mine"
    file.write_text("my-own-password\n")
    file.chmod(0o644)
    arguments = ("user", "add", "site-g", "--role", "worker", "--password-file", str(file))

    readable = fluffle(*arguments)
    file.chmod(0o600)
    made = fluffle(*arguments)

    assert readable.exit_code == 2
    assert "can be read by others" in readable.output
    assert made.exit_code == 0, made.output
    assert file.read_text() == "my-own-password\n"
    assert gets_in(managed_node, "site-g", "my-own-password")


def test_a_user_that_logs_in_with_a_certificate_has_no_password(
    fluffle: Fluffle, managed_node: BrokerNode
) -> None:
    made = fluffle("user", "add", "site-c", "--role", "worker", "--no-password")

    assert "certificate whose common name is site-c" in made.output
    assert not gets_in(managed_node, "site-c", "")


@pytest.mark.parametrize("role", ["worker", "evaluator", "helper", "aggregator", "monitor", "operator"])
def test_each_role_gets_its_rights_and_no_more(fluffle: Fluffle, management: Management, role: str) -> None:
    made = fluffle("user", "add", f"the-{role}", "--role", role, "--federation", "faces")

    account = management.account(f"the-{role}")
    assert made.exit_code == 0, made.output
    assert account is not None
    assert account.rights.keys() == {"/"}
    assert account.rights["/"] == rights_of(role, "faces", f"the-{role}")


@pytest.mark.parametrize(
    ("role", "federation", "says"),
    [
        ("evaluator", "digits", r"write ^digits\.(updates|member-events)$"),
        ("worker", "faces", "`fluffle user change site-o --federation 'digits,faces'`"),
        ("operator", "digits", "a user has one role"),
    ],
)
def test_a_user_with_other_rights_is_not_changed_and_the_command_fails(
    fluffle: Fluffle, management: Management, role: str, federation: str, says: str
) -> None:
    fluffle("user", "add", "site-o", "--role", "worker", "--federation", "digits")

    refused = fluffle("user", "add", "site-o", "--role", role, "--federation", federation)

    account = management.account("site-o")
    assert refused.exit_code == 2
    assert says in refused.output
    assert account is not None
    assert account.rights["/"] == rights_of("worker", "digits", account.name)


def test_the_tag_management_leaves_an_aggregator_its_role_but_not_a_worker(
    fluffle: Fluffle, managed_node: BrokerNode, federation: str
) -> None:
    for role in ("aggregator", "worker"):
        name = f"{role}-{federation}"
        arguments = ("user", "add", name, "--role", role, "--federation", federation)
        assert fluffle(*arguments).exit_code == 0
        rabbitmqctl(managed_node, "set_user_tags", name, "management")
        again = fluffle(*arguments)

        if role == "aggregator":
            assert "nothing was changed" in again.output
            assert listed(fluffle, federation)[name][0] == "aggregator"
        else:
            assert (again.exit_code, "other rights" in again.output) == (2, True)
            assert "none: " in fluffle("user", "list", "--federation", federation).output


def test_an_interrupted_add_is_finished_by_the_next_one(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management
) -> None:
    management.put_user("site-i", Rights(), hash_of("first"))
    ask_management(managed_node, "DELETE", "permissions/%2F/site-i")

    made = fluffle("user", "add", "site-i", "--role", "worker")

    account = management.account("site-i")
    assert made.exit_code == 0, made.output
    assert account is not None
    assert account.rights["/"] == rights_of("worker", "digits", account.name)


def test_a_removed_user_is_thrown_out_at_once_and_cannot_come_back(
    fluffle: Fluffle, managed_node: BrokerNode, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    fluffle("user", "add", "site-r", "--role", "worker", "--password-file", str(file))
    url = url_of(managed_node, "site-r", file.read_text().strip())
    # No heartbeats: nobody answers them meanwhile, and RabbitMQ would close the connection.
    with pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0")) as connection:
        wait_until(
            lambda: listed(fluffle, "digits")["site-r"] == ["worker", "digits", "1"],
            "the connection",
            deadline_s=30,
        )

        removed = fluffle("user", "remove", "site-r")

        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="deleted"):
            connection.process_data_events(time_limit=30)
    again = fluffle("user", "remove", "site-r")
    assert (removed.exit_code, again.exit_code) == (0, 0)
    assert "There is no user site-r" in again.output
    assert "site-r" not in listed(fluffle, "digits")
    assert not gets_in(managed_node, "site-r", file.read_text().strip())


def test_a_user_of_another_federation_and_ones_own_user_are_not_removed(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management
) -> None:
    fluffle("user", "add", "site-n", "--role", "worker", "--federation", "north")

    foreign = fluffle("user", "remove", "site-n", "--federation", "south")
    oneself = fluffle("user", "remove", managed_node.user)

    assert (foreign.exit_code, oneself.exit_code) == (2, 2)
    assert "not of the federation 'south'" in foreign.output
    assert "logged in as" in oneself.output
    assert {"site-n", managed_node.user} <= {account.name for account in management.accounts()}


def test_the_list_has_everybody_who_can_reach_the_federation(
    fluffle: Fluffle, management: Management, managed_node: BrokerNode
) -> None:
    for name, role in (("site-l", "worker"), ("judge-l", "evaluator"), ("lead-l", "aggregator")):
        fluffle("user", "add", name, "--role", role, "--federation", "list")
    fluffle("user", "add", "site-m", "--role", "worker", "--federation", "list-2")
    management.put_user("by-hand", Rights(read=r"^list\.head$"), hash_of("x"))

    roles = {name: row[0] for name, row in listed(fluffle, "list").items()}

    assert roles["site-l"] == "worker"
    assert roles["judge-l"] == "evaluator"
    assert roles["lead-l"] == "aggregator"
    assert roles[managed_node.user] == "operator"
    assert r"read ^list\.head$" in roles["by-hand"]
    assert "site-m" not in roles


@pytest.mark.parametrize("name", ["-x", "a b", "a/b", "x" * 101, ""])
def test_a_user_name_that_a_message_cannot_carry_is_refused(fluffle: Fluffle, name: str) -> None:
    refused = fluffle("user", "add", "--role", "worker", "--", name)

    assert refused.exit_code == 2
    assert "NAME must be 1 to 100 letters" in refused.output


class NotRabbit(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@pytest.fixture
def something_else() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), NotRabbit) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_not_rabbitmq_is_an_error_of_its_own(fluffle: Fluffle, something_else: str) -> None:
    refused = fluffle("user", "list", FLUFFLE_MANAGEMENT_URL=something_else)

    assert refused.exit_code == 2
    assert "something else answers" in refused.output
    assert "FLUFFLE_MANAGEMENT_URL" in refused.output


def test_an_error_names_the_plugin_when_nothing_answers(fluffle: Fluffle) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        refused = fluffle("user", "list", FLUFFLE_MANAGEMENT_URL=url)

    assert refused.exit_code == 2
    assert "rabbitmq-plugins enable rabbitmq_management" in refused.output
    assert refused.output.count("\n") == 1


def test_a_wrong_password_and_a_missing_tag_are_different_errors(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management
) -> None:
    management.put_user("only-worker", rights_of("worker", "digits", "only-worker"), hash_of("pw"))
    management.put_user("only-monitor", rights_of("monitor", "digits", "only-monitor"), hash_of("pw"))

    wrong, worker, monitor = (
        fluffle("user", "list", FLUFFLE_BROKER_URL=url_of(managed_node, user, password))
        for user, password in (("only-worker", "no"), ("only-worker", "pw"), ("only-monitor", "pw"))
    )

    assert "refused the user 'only-worker' or its password" in wrong.output
    assert "'only-worker' needs the tag administrator" in worker.output
    assert "'only-monitor' needs the tag administrator" in monitor.output


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://broker", "must look like http://host:15672, not 'ftp://broker'"),
        ("http://me:secret@broker:15672", "must have no user and password"),
        ("http://broker:no", "must look like"),
    ],
)
def test_a_wrong_management_url_is_one_sentence_without_a_password(
    fluffle: Fluffle, url: str, says: str
) -> None:
    refused = fluffle("user", "list", FLUFFLE_MANAGEMENT_URL=url)

    assert refused.exit_code == 2
    assert f"FLUFFLE_MANAGEMENT_URL {says}" in refused.output
    assert "secret" not in refused.output


def test_a_virtual_host_that_is_missing_is_named(fluffle: Fluffle, managed_node: BrokerNode) -> None:
    url = managed_node.amqp_url.replace("/%2F", "/nowhere")

    refused = fluffle("user", "add", "site-v", "--role", "worker", FLUFFLE_BROKER_URL=url)

    assert refused.exit_code == 2
    assert "no virtual host 'nowhere'" in refused.output
