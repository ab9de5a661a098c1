"""Certificates for development: what is made, kept and refused."""

import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from handshake import shake_hands

from fluffle.errors import ConfigError
from fluffle.tls import TlsFiles, user_of
from fluffle_cli.certificates import Pair, make_certificates, pair_at


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(made: list[Path]) -> list[str]:
    return [path.name for path in made]


def server_context(pair: Pair, *, trusting: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=trusting)
    context.load_cert_chain(pair.certificate, pair.key)
    if trusting is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path, user: str = "alice") -> ssl.SSLContext:
    own = pair_at(folder / "users" / user)
    files = TlsFiles(pair_at(folder / "ca").certificate, own.certificate, own.key)
    context = files.context()
    # Python 3.13 sets it by itself.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "rabbit.example", "10.1.2.3", "::1"])
def test_server_and_client_trust_each_other_under_every_name(tmp_path: Path, host: str) -> None:
    make_certificates(tmp_path, hosts=["rabbit.example", "10.1.2.3", "::1"], users=["alice"])
    server = server_context(pair_at(tmp_path / "server"), trusting=pair_at(tmp_path / "ca").certificate)
    server.verify_flags |= ssl.VERIFY_X509_STRICT

    assert shake_hands(server, client_context(tmp_path), host=host) == "TLSv1.3"


def test_a_server_of_another_name_or_another_authority_is_not_trusted(tmp_path: Path) -> None:
    make_certificates(tmp_path / "ours", users=["alice"])
    make_certificates(tmp_path / "theirs")
    client = client_context(tmp_path / "ours")

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server_context(pair_at(tmp_path / "ours" / "server")), client, host="elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server_context(pair_at(tmp_path / "theirs" / "server")), client, host="localhost")


def test_a_users_certificate_is_for_no_host_even_if_the_user_is_called_like_one(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["localhost"])

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(
            server_context(pair_at(tmp_path / "users" / "localhost")),
            client_context(tmp_path, "localhost"),
            host="localhost",
        )


def test_a_certificate_names_its_user(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["alice", "server"])

    for user in ("alice", "server"):
        assert user_of(pair_at(tmp_path / "users" / user).certificate) == user


def test_only_their_owner_can_read_the_keys(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["alice"])

    keys = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.key")}
    assert keys == {"ca.key": 0o600, "server.key": 0o600, "alice.key": 0o600}


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    first = names(make_certificates(tmp_path, users=["alice"]))
    before = contents(tmp_path)

    again = names(make_certificates(tmp_path, users=["alice", "bob"]))

    assert first == ["ca.pem", "server.pem", "alice.pem"]
    assert again == ["bob.pem"]
    assert before.items() <= contents(tmp_path).items()


def test_what_was_deleted_is_made_anew_by_the_same_authority(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["alice"])
    for path in (pair_at(tmp_path / "server").certificate, pair_at(tmp_path / "server").key):
        path.unlink()

    made = names(make_certificates(tmp_path, hosts=["Rabbit.example"]))

    assert made == ["server.pem"]
    assert shake_hands(
        server_context(pair_at(tmp_path / "server")), client_context(tmp_path), host="rabbit.example"
    )


@pytest.mark.parametrize("lost", ["ca.pem", "ca.key", "server.key", "users/alice.pem"])
def test_half_a_pair_is_refused_and_not_overwritten(tmp_path: Path, lost: str) -> None:
    make_certificates(tmp_path, users=["alice"])
    (tmp_path / lost).unlink()
    before = contents(tmp_path)

    with pytest.raises(ConfigError, match="without its other half: delete it"):
        make_certificates(tmp_path, users=["alice"])

    assert contents(tmp_path) == before


def test_what_a_lost_authority_has_signed_is_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    pair_at(tmp_path / "ca").key.unlink()
    pair_at(tmp_path / "ca").certificate.unlink()

    with pytest.raises(ConfigError, match=r"server\.pem was signed by an authority that is not there"):
        make_certificates(tmp_path)


def test_a_host_that_the_kept_certificate_does_not_name_is_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path)

    with pytest.raises(ConfigError, match=r"is not for rabbit\.example: delete it and .*server\.key"):
        make_certificates(tmp_path, hosts=["localhost", "rabbit.example"])


@pytest.mark.parametrize(
    ("hosts", "users", "words"),
    [
        (["two words"], [], "--host must be a host name"),
        (["-"], [], "--host must be a host name"),
        ([], ["../alice"], "--user must be 1 to 64 letters"),
        ([], ["a" * 65], "--user must be 1 to 64 letters"),
    ],
)
def test_what_no_certificate_can_name_is_refused(
    tmp_path: Path, hosts: list[str], users: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_certificates(tmp_path, hosts=hosts, users=users)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"taken cannot be used: .*File exists"):
        make_certificates(tmp_path / "taken")

    make_certificates(tmp_path / "certs")
    pair_at(tmp_path / "certs" / "server").certificate.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"certs cannot be used: Unable to load PEM file"):
        make_certificates(tmp_path / "certs")

    pair_at(tmp_path / "certs" / "ca").key.write_text("no key")
    with pytest.raises(ConfigError, match="certs cannot be used: "):
        make_certificates(tmp_path / "certs")


def test_the_command_says_what_to_set_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fluffle_cli.main", "broker", "certs"]
    flags = ["--folder", str(tmp_path / "certs"), "--host", "rabbit.example", "--user", "site-1"]

    result = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    wrong = subprocess.run([*command, "--user", "a b"], capture_output=True, text=True, check=False)

    for line in (
        f"ssl_options.cacertfile = {tmp_path}/certs/ca.pem",
        f"ssl_options.keyfile = {tmp_path}/certs/server.key",
        "export FLUFFLE_BROKER_URL=amqps://rabbit.example:5671/%2F",
        f"export FLUFFLE_BROKER_CA_FILE={tmp_path}/certs/ca.pem",
        "export FLUFFLE_NAME=site-1",
        f"export FLUFFLE_BROKER_CERT_FILE={tmp_path}/certs/users/site-1.pem",
        f"export FLUFFLE_BROKER_KEY_FILE={tmp_path}/certs/users/site-1.key",
    ):
        assert line in result.stdout
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --user must be")


def without(*packages: str) -> list[str]:
    """The start of a command of Fluffle where these packages are not installed."""
    hide = "; ".join(f"sys.modules[{each!r}] = None" for each in packages)
    return [sys.executable, "-c", f"import sys; {hide}; from fluffle_cli.main import run; run()", "broker"]


def test_help_does_not_wait_for_cryptography() -> None:
    command = [*without("cryptography", "trustme"), "certs", "--help"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "for development" in result.stdout


@pytest.mark.parametrize("command", [["certs"], ["up", "--tls"]], ids=" ".join)
def test_without_trustme_a_sentence_names_the_extra(command: list[str], tmp_path: Path) -> None:
    flags = ["--folder", str(tmp_path)]

    result = subprocess.run(
        [*without("trustme"), *command, *flags], capture_output=True, text=True, check=False
    )

    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "extra `certs`" in result.stderr
    assert contents(tmp_path) == {}
