"""Certificates for development: what is made, kept, renewed and refused."""

from __future__ import annotations

import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from handshake import shake_hands

from fluffle.errors import ConfigError
from fluffle.tls import ClientCertificate, TlsFiles
from fluffle_cli.certificates import (
    AUTHORITY_LIFE,
    LIFE,
    Pair,
    authority_in,
    make_certificates,
    server_in,
    user_in,
)

NOW = datetime.now(UTC)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def done(
    folder: Path, *, now: datetime = NOW, users: tuple[str, ...] = ("alice",), renew: bool = False
) -> list[str]:
    return [outcome.done for outcome in make_certificates(folder, users=users, renew=renew, now=now)]


def server_context(pair: Pair, *, trusting: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=trusting)
    context.load_cert_chain(pair.certificate, pair.key)
    if trusting is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path, user: str = "alice") -> ssl.SSLContext:
    own = user_in(folder, user)
    files = TlsFiles(authority_in(folder).certificate, ClientCertificate(own.certificate, own.key))
    context = files.context()
    # Python 3.13 sets it by itself.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "rabbit.example", "10.1.2.3", "::1"])
def test_server_and_client_trust_each_other_under_every_name(tmp_path: Path, host: str) -> None:
    make_certificates(tmp_path, hosts=["rabbit.example", "10.1.2.3", "::1"], users=["alice"], now=NOW)
    server = server_context(server_in(tmp_path), trusting=authority_in(tmp_path).certificate)
    server.verify_flags |= ssl.VERIFY_X509_STRICT

    assert shake_hands(server, client_context(tmp_path), host=host) == "TLSv1.3"


def test_a_server_of_another_name_or_another_authority_is_not_trusted(tmp_path: Path) -> None:
    make_certificates(tmp_path / "ours", users=["alice"], now=NOW)
    make_certificates(tmp_path / "theirs", now=NOW)
    client = client_context(tmp_path / "ours")

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server_context(server_in(tmp_path / "ours")), client, host="elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server_context(server_in(tmp_path / "theirs")), client, host="localhost")


def test_a_users_certificate_is_no_servers(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["localhost"], now=NOW)

    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake_hands(
            server_context(user_in(tmp_path, "localhost")),
            client_context(tmp_path, "localhost"),
            host="localhost",
        )


def test_a_certificate_names_its_user(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["alice", "server"], now=NOW)

    for user in ("alice", "server"):
        assert ClientCertificate(user_in(tmp_path, user).certificate, Path("unused")).user() == user


def test_only_their_owner_can_read_the_keys(tmp_path: Path) -> None:
    make_certificates(tmp_path, users=["alice"], now=NOW)

    keys = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.key")}
    assert keys == {"ca.key": 0o600, "server.key": 0o600, "alice.key": 0o600}


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    first = done(tmp_path)
    before = contents(tmp_path)

    again = done(tmp_path, users=("alice", "bob"))

    assert first == ["made", "made", "made"]
    assert again == ["kept", "kept", "kept", "made"]
    assert before.items() <= contents(tmp_path).items()


def test_a_renewal_keeps_the_authority_and_the_servers_names(tmp_path: Path) -> None:
    make_certificates(tmp_path, hosts=["rabbit.example"], users=["alice"], now=NOW)
    before = contents(tmp_path)

    again = done(tmp_path, renew=True)

    after = contents(tmp_path)
    assert again == ["kept", "renewed", "renewed"]
    assert {name for name in after if after[name] == before[name]} == {"ca.pem", "ca.key"}
    server = server_context(server_in(tmp_path))
    assert shake_hands(server, client_context(tmp_path), host="rabbit.example")


def test_what_has_expired_is_renewed(tmp_path: Path) -> None:
    done(tmp_path)

    assert done(tmp_path, now=NOW + LIFE - timedelta(days=1)) == ["kept", "kept", "kept"]
    assert done(tmp_path, now=NOW + LIFE) == ["kept", "renewed", "renewed"]
    assert done(tmp_path, now=NOW + AUTHORITY_LIFE) == ["renewed", "renewed", "renewed"]


def test_what_a_lost_authority_has_signed_is_renewed(tmp_path: Path) -> None:
    done(tmp_path)
    authority_in(tmp_path).key.unlink()

    assert done(tmp_path) == ["made", "renewed", "renewed"]


def test_a_host_that_the_kept_certificate_does_not_name_is_refused(tmp_path: Path) -> None:
    done(tmp_path)

    with pytest.raises(ConfigError, match=r"is not for rabbit\.example: with --renew"):
        make_certificates(tmp_path, hosts=["localhost", "rabbit.example"], now=NOW)


@pytest.mark.parametrize(
    ("hosts", "users", "words"),
    [
        (["two words"], [], "--host must be a host name"),
        (["-"], [], "--host must be a host name"),
        ([], ["../alice"], "--user must be 1 to 100 letters"),
        ([], ["a" * 65], "at most 64"),
    ],
)
def test_what_no_certificate_can_name_is_refused(
    tmp_path: Path, hosts: list[str], users: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_certificates(tmp_path, hosts=hosts, users=users, now=NOW)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="taken cannot be used"):
        make_certificates(tmp_path / "taken", now=NOW)

    done(tmp_path)
    authority_in(tmp_path).key.write_text("no key")
    with pytest.raises(ConfigError, match=r"ca\.key holds no key"):
        done(tmp_path, renew=True)

    server_in(tmp_path).certificate.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"server\.pem holds no certificate"):
        done(tmp_path)


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


def test_help_does_not_wait_for_cryptography() -> None:
    without = "import sys; sys.modules['cryptography'] = None; from fluffle_cli.main import run; run()"

    result = subprocess.run(
        [sys.executable, "-c", without, "broker", "certs", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "for development" in result.stdout
