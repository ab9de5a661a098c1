"""The files that TLS needs: what is made of them, and what is said when one cannot be used."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from expired import ENDED, issue_expired

from fluffle.errors import ConfigError
from fluffle.tls import TlsFiles, expired_on
from fluffle_cli.certificates import make_certificates, pair_at


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """The files of alice, beside whom there is bob."""
    make_certificates(tmp_path, users=["alice", "bob"])
    alice = pair_at(tmp_path / "users" / "alice")
    return TlsFiles(pair_at(tmp_path / "ca").certificate, alice.certificate, alice.key)


@pytest.mark.parametrize("given", [False, True], ids=["the system's authorities", "authorities of one's own"])
def test_the_server_is_always_verified_and_old_tls_is_off(files: TlsFiles, given: bool) -> None:
    context = files.context() if given else TlsFiles().context()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_authorities_that_are_given_are_trusted_instead_of_the_systems(files: TlsFiles) -> None:
    assert len(files.context().get_ca_certs()) == 1


def encrypt(key: Path) -> None:
    clear = load_pem_private_key(key.read_bytes(), password=None)
    secret = BestAvailableEncryption(b"secret")
    key.write_bytes(clear.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda folder: (folder / "ca.pem").unlink(),
            "broker_ca_file {}/ca.pem cannot be read: No such file",
        ),
        (
            lambda folder: (folder / "ca.pem").write_text("x"),
            "broker_ca_file {}/ca.pem holds no certificate in PEM",
        ),
        (
            lambda folder: (folder / "users/alice.pem").unlink(),
            "broker_cert_file {}/users/alice.pem cannot be read: No such file",
        ),
        (
            lambda folder: (folder / "users/alice.pem").write_text("x"),
            "broker_cert_file {}/users/alice.pem holds no certificate in PEM",
        ),
        (
            lambda folder: (folder / "users/alice.key").unlink(),
            "broker_key_file {}/users/alice.key cannot be read: No such file",
        ),
        (
            lambda folder: (folder / "users/alice.key").write_text("x"),
            "broker_key_file {}/users/alice.key holds no private key in PEM",
        ),
        (
            lambda folder: (folder / "users/bob.key").replace(folder / "users/alice.key"),
            "broker_key_file {0}/users/alice.key is not the key of broker_cert_file {0}/users/alice.pem",
        ),
        (
            lambda folder: encrypt(folder / "users/alice.key"),
            "broker_key_file {}/users/alice.key is encrypted: use a key without a password",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_by_its_setting(
    files: TlsFiles, tmp_path: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(tmp_path)

    with pytest.raises(ConfigError) as raised:
        files.context()

    assert str(raised.value).startswith(sentence.format(tmp_path))


def test_a_certificate_says_when_it_has_expired(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    late = pair_at(tmp_path / "users" / "late")
    issue_expired(late, pair_at(tmp_path / "ca"), "user.invalid", user="alice")

    assert expired_on(late.certificate, ENDED - timedelta(seconds=1)) is None
    assert expired_on(late.certificate, datetime.now(UTC)) == f"{ENDED:%Y-%m-%d}"
