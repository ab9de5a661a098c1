"""TLS for real: our own authority, a RabbitMQ that speaks nothing but TLS, and real processes."""

import json
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from brokers import send
from expired import issue_expired
from federation import Federation, Part, assert_refused, wait_until
from rabbitmqctl import rabbitmqctl

from fluffle.address import parse_address
from fluffle.errors import BrokerError, LoginRefused
from fluffle.management import Management, ManagementSettings
from fluffle.rabbit import RabbitBroker
from fluffle.tls import TlsFiles
from fluffle.topology import Topology
from fluffle_cli.certificates import Pair, make_certificates, pair_at
from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import EXTRA_CONFIGURATION
from fluffle_cli.users import create_user

# A way to write 127.0.0.1 that the server's certificate does not name.
OTHER_NAME = "127.1"


@dataclass(frozen=True)
class Broker:
    """A node, the folder of the authority that it trusts, and that of one with a user of the same name."""

    node: BrokerNode
    certificates: Path
    foreign: Path

    @property
    def url(self) -> str:
        """With the password of the node's own user."""
        return self.node.amqp_url

    def management(self) -> Management:
        """A login to the management interface."""
        settings = ManagementSettings(
            broker_url=self.url,
            broker_ca_file=self.node.authority,
            management_url=self.node.management_url,
        )
        return settings.management()

    def add_worker(self, name: str, federation: str) -> None:
        """Make a user who has no password."""
        with self.management() as management:
            create_user(management, federation, name, "worker", None)

    @property
    def url_without_login(self) -> str:
        """For whoever has a certificate."""
        return without_login(self.node)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority, with certificates of users."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, users=["site-0", "site-1"])
    issue_expired(pair_at(folder / "users" / "late"), pair_at(folder / "ca"), "user.invalid", user="site-0")
    return folder


@pytest.fixture(scope="module")
def broker(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that speaks TLS, and takes passwords too."""
    foreign = tmp_path_factory.mktemp("foreign")
    make_certificates(foreign, users=["site-0"])
    with BrokerNode.start(tmp_path_factory.mktemp("node"), certificates=certificates) as node:
        yield Broker(node, certificates, foreign)


def certificate_flags(pair: Pair) -> list[str]:
    return ["--broker-cert-file", str(pair.certificate), "--broker-key-file", str(pair.key)]


def without_login(node: BrokerNode) -> str:
    """The node's URL for whoever has a certificate."""
    return f"amqps://127.0.0.1:{node.amqp_port}/%2F"


def connect(url: str, trusted: Path, *, shown: Pair | None = None) -> RabbitBroker:
    own = () if shown is None else (shown.certificate, shown.key)
    files = TlsFiles(pair_at(trusted / "ca").certificate, *own)
    return RabbitBroker(parse_address(url, files=files), name="tls", heartbeat_s=10)


def test_a_federation_works_over_tls_with_passwords_and_with_certificates(
    broker: Broker, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUFFLE_BROKER_CA_FILE", str(pair_at(broker.certificates / "ca").certificate))
    own = pair_at(broker.certificates / "users" / "site-0")
    broker.add_worker("site-0", federation)
    with Federation(federation, broker.url, tmp_path, task="numpy_task:task") as running:
        # A round needs both workers: one with a password, and one without.
        leader = running.aggregator(
            "leader", "--strategy", "fedavg", "--buffer-size", "2", "--max-versions", "3"
        )
        with_password = running.worker(1)
        with_certificate = running.worker(
            0, "--broker-url", broker.url_without_login, *certificate_flags(own)
        )

        codes = [part.wait_for_exit() for part in (leader, with_password, with_certificate)]

        assert codes == [0, 0, 0]
        assert len(with_password.events("update published")) >= 3
        assert len(with_certificate.events("update published")) >= 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("an unknown authority", ("issued by an authority that is not trusted", "broker_ca_file")),
        ("a wrong host name", ("is for another host", OTHER_NAME)),
        ("plain text on the TLS port", ("speaks TLS", "amqps://")),
        ("a revoked user", ("login by certificate", "no user 'leaver'")),
    ],
)
def test_a_process_that_does_not_fit_ends_with_one_sentence(
    broker: Broker, tmp_path: Path, federation: str, wrong: str, words: tuple[str, ...]
) -> None:
    url, trusted, flags = broker.url, broker.certificates, list[str]()
    match wrong:
        case "an unknown authority":
            trusted = broker.foreign
        case "a wrong host name":
            url = url.replace("@127.0.0.1:", f"@{OTHER_NAME}:")
        case "plain text on the TLS port":
            url = url.replace("amqps://", "amqp://")
        case "a revoked user":
            url, flags = broker.url_without_login, certificate_of_a_leaver(broker, federation)
    if url.startswith("amqps://"):
        flags += ["--broker-ca-file", str(pair_at(trusted / "ca").certificate)]
    with Federation(federation, url, tmp_path) as running:
        aggregator = running.aggregator("leader", "--initial-model", "none.safetensors", *flags)

        assert_refused(aggregator, *words)
        assert broker.node.password not in aggregator.log.read_text()


def certificate_of_a_leaver(broker: Broker, federation: str) -> list[str]:
    """The flags for a certificate that is still valid, of a user who could log in and was then deleted."""
    make_certificates(broker.certificates, users=["leaver"])
    broker.add_worker("leaver", federation)
    own = pair_at(broker.certificates / "users" / "leaver")
    connect(broker.url_without_login, broker.certificates, shown=own).close()
    with broker.management() as management:
        management.delete_user("leaver")
    return certificate_flags(own)


@pytest.mark.long
def test_a_certificate_can_be_replaced_while_its_worker_is_at_work(
    broker: Broker, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile nothing fits: first the key is missing, then the certificate is one that has expired."""
    monkeypatch.setenv("FLUFFLE_BROKER_CA_FILE", str(pair_at(broker.certificates / "ca").certificate))
    make_certificates(broker.certificates, users=["site-2"])
    good, expired = (
        pair_at(broker.certificates / "users" / "site-2"),
        Pair(tmp_path / "late.pem", tmp_path / "late.key"),
    )
    issue_expired(expired, pair_at(broker.certificates / "ca"), "user.invalid", user="site-2")
    in_use = Pair(tmp_path / "own.pem", tmp_path / "own.key")
    broker.add_worker("site-2", federation)
    with Federation(federation, broker.url, tmp_path, task="numpy_task:task") as running:
        running.aggregator("leader", "--buffer-size", "1").wait_for("leading")
        copy(good, in_use)
        flags = ["--broker-url", broker.url_without_login, *certificate_flags(in_use), "--delay", "0.2"]
        worker = running.worker(2, *flags)
        worker.wait_for("update published")

        in_use.key.unlink()
        rabbitmqctl(broker.node, "close_all_user_connections", "site-2", "a new certificate")
        wait_until(lambda: "broker_key_file" in refusals_of(worker), "the missing key to be noticed")
        copy(expired, in_use)
        wait_until(lambda: "expired" in refusals_of(worker), "the expired certificate to be refused")
        published = len(worker.events("update published"))
        copy(good, in_use)

        worker.wait_for("update published", published + 2)


def copy(pair: Pair, to: Pair) -> None:
    shutil.copy(pair.certificate, to.certificate)
    shutil.copy(pair.key, to.key)


def refusals_of(part: Part) -> str:
    """What a part has logged about being refused, in one text."""
    event = "the broker refuses this process now, which it accepted before; trying again"
    return "\n".join(str(line["because"]) for line in part.events(event))


def test_a_certificate_speaks_for_its_own_user_alone(broker: Broker, topology: Topology) -> None:
    broker.add_worker("site-1", topology.federation)
    with connect(broker.url, broker.certificates) as operator:
        operator.declare(topology)
    claims_to_be_another = broker.url_without_login.replace("amqps://", "amqps://site-0@")
    shown = pair_at(broker.certificates / "users" / "site-1")

    with (
        connect(claims_to_be_another, broker.certificates, shown=shown) as claimant,
        pytest.raises(BrokerError, match="authenticated user was 'site-1'"),
    ):
        send(claimant, topology, b"update")


def test_a_certificate_of_another_authority_does_not_log_in(broker: Broker) -> None:
    own = pair_at(broker.foreign / "users" / "site-0")
    with pytest.raises(LoginRefused, match=r"issuer is not in the server's ssl_options\.cacertfile"):
        connect(broker.url_without_login, broker.certificates, shown=own)


def test_an_expired_certificate_of_a_client_does_not_log_in(broker: Broker) -> None:
    own = pair_at(broker.certificates / "users" / "late")
    with pytest.raises(LoginRefused, match=r"late\.pem, which expired on [0-9-]+: renew it"):
        connect(broker.url_without_login, broker.certificates, shown=own)


def test_tls_older_than_1_2_is_refused(broker: Broker) -> None:
    old = ssl.create_default_context(cafile=broker.node.authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    # OpenSSL itself would not speak it otherwise.
    old.set_ciphers("ALL:@SECLEVEL=0")

    with (
        socket.create_connection(("127.0.0.1", broker.node.amqp_port), timeout=10) as plain,
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_wrong_password_is_refused_over_tls_too(broker: Broker) -> None:
    with pytest.raises(LoginRefused, match="or its password"):
        connect(broker.url.replace("@", "-wrong@"), broker.certificates)


def test_tls_on_a_port_for_plain_text_is_named(node: BrokerNode, certificates: Path) -> None:
    with pytest.raises(LoginRefused, match="does not speak TLS on this port"):
        connect(node.amqp_url.replace("amqp://", "amqps://"), certificates)


def test_an_expired_server_is_refused(certificates: Path, tmp_path: Path, federation: str) -> None:
    issue_expired(pair_at(tmp_path / "server"), pair_at(certificates / "ca"), "127.0.0.1")
    shutil.copy(pair_at(certificates / "ca").certificate, pair_at(tmp_path / "ca").certificate)
    with (
        BrokerNode.start(tmp_path / "node", management=False, certificates=tmp_path) as node,
        Federation(federation, node.amqp_url, tmp_path) as running,
    ):
        trust = ["--broker-ca-file", str(node.authority)]
        aggregator = running.aggregator("leader", "--initial-model", "none.safetensors", *trust)

        assert_refused(aggregator, "the certificate of RabbitMQ", "has expired")


@pytest.mark.long
def test_a_private_broker_is_started_with_tls_and_keeps_it_and_its_certificates(tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path)]

    said = broker_command("up", "--tls", "--no-management", *folder)
    try:
        facts = json.loads(broker_command("status", "--json", *folder))
        authority = Path(facts["broker_ca_file"])
        before = authority.read_bytes()

        connect(facts["amqp_url"], authority.parent).close()
        assert f"export FLUFFLE_BROKER_URL={facts['amqp_url']}" in said
        assert f"export FLUFFLE_BROKER_CA_FILE={authority}" in said
    finally:
        broker_command("down", *folder)

    again = broker_command("up", "--no-management", *folder)
    broker_command("down", *folder)
    without = broker_command("up", "--no-tls", "--no-management", *folder)
    broker_command("down", *folder)
    assert authority.read_bytes() == before
    assert "export FLUFFLE_BROKER_URL=amqps://" in again
    assert f"export FLUFFLE_BROKER_CA_FILE={authority}" in again
    assert "export FLUFFLE_BROKER_URL=amqp://" in without
    assert "FLUFFLE_BROKER_CA_FILE" not in without


def broker_command(*arguments: str) -> str:
    """Run `fluffle broker ...` and return what it prints."""
    command = [sys.executable, "-m", "fluffle_cli.main", "broker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_as_recommended_nobody_enters_without_a_certificate(
    certificates: Path, tmp_path: Path, federation: str
) -> None:
    extra = tmp_path / "node" / EXTRA_CONFIGURATION
    extra.mkdir(parents=True)
    # What `fluffle broker up` has changed in broker_config/tls.conf for its passwords is as it was.
    (extra / "recommended.conf").write_text(
        "ssl_options.fail_if_no_peer_cert = true\nauth_mechanisms.2 = EXTERNAL\n"
    )
    with BrokerNode.start(tmp_path / "node", management=False, certificates=certificates) as node:
        make_certificates(certificates, users=[node.user])

        own = pair_at(certificates / "users" / node.user)
        connect(without_login(node), certificates, shown=own).close()
        with pytest.raises(LoginRefused, match="takes no passwords"):
            connect(node.amqp_url, certificates, shown=own)
        with Federation(federation, node.amqp_url, tmp_path) as running:
            trust = ["--broker-ca-file", str(node.authority)]
            aggregator = running.aggregator("leader", "--initial-model", "none.safetensors", *trust)

            assert_refused(aggregator, "asks for a client's certificate", "broker_cert_file")
