"""A certificate authority for development, and what it signs: one server's certificate and one for each user.

Import it where it is used: `cryptography` is slow to load, and most commands do without.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fluffle.errors import ConfigError
from fluffle.settings import require_name
from fluffle_cli.rabbitmq_server import write_private

ALWAYS_HOSTS = ("localhost", "127.0.0.1")
AUTHORITY_LIFE = timedelta(days=3650)
# Some TLS libraries trust no server for longer than 398 days.
LIFE = timedelta(days=397)
# The clocks of other machines may be behind.
ALREADY_VALID = timedelta(hours=1)
# What X.509 allows for a common name.
MAX_COMMON_NAME = 64
HOST_NAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate and its private key are, or are to be."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done about one pair, and when its certificate expires."""

    pair: Pair
    done: Literal["made", "kept", "renewed"]
    expires: datetime


def authority_in(folder: Path) -> Pair:
    """Say where the authority of a folder is."""
    return Pair(folder / "ca.pem", folder / "ca.key")


def server_in(folder: Path) -> Pair:
    """Say where the server's certificate of a folder is."""
    return Pair(folder / "server.pem", folder / "server.key")


def user_in(folder: Path, user: str) -> Pair:
    """Say where a user's certificate is: in a folder of the users, one of whom may be called `server`."""
    return Pair(folder / "users" / f"{user}.pem", folder / "users" / f"{user}.key")


def make_certificates(
    folder: Path, *, hosts: Iterable[str] = (), users: Iterable[str] = (), renew: bool = False, now: datetime
) -> list[Outcome]:
    """Make what is missing, has expired or was signed by another authority; with `renew` what is there, too.

    The authority is kept as long as it lasts, even then. The server's certificate is for localhost, for
    `hosts`, and for whatever it was for before; a user's has the user as its common name. Raises ConfigError
    for a host or user that no certificate can name, for a server's certificate that is kept but not for all
    of `hosts`, and for a folder that cannot be used.
    """
    authority, server = authority_in(folder), server_in(folder)
    users = [_require_user(user) for user in users]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        first = _ensure(
            authority, authority, lambda: _make_authority(authority, now=now), renew=False, now=now
        )
        before = _hosts_of(server)
        wanted = list(dict.fromkeys([*ALWAYS_HOSTS, *before, *map(_require_host, hosts)]))
        issue_to_server = functools.partial(issue, server, authority, "server", hosts=wanted, now=now)
        second = _ensure(server, authority, issue_to_server, renew=renew, now=now)
        if second.done == "kept" and set(wanted) > set(before):
            missing = ", ".join(host for host in wanted if host not in before)
            raise ConfigError(
                f"{server.certificate} is not for {missing}: with --renew it is made anew for that too"
            )
        outcomes = [first, second]
        for user in users:
            pair = user_in(folder, user)
            pair.certificate.parent.mkdir(exist_ok=True)
            issue_to_user = functools.partial(issue, pair, authority, user, now=now)
            outcomes.append(_ensure(pair, authority, issue_to_user, renew=renew, now=now))
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be used: {error.strerror}") from error
    return outcomes


def issue(
    pair: Pair,
    authority: Pair,
    name: str,
    *,
    hosts: Sequence[str] = (),
    now: datetime,
    life: timedelta = LIFE,
) -> datetime:
    """Write a new key and its certificate: a server's if there are `hosts`, else that of the user `name`.

    It is valid from shortly before `now` on, for `life`; returns its end.
    """
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    extensions: list[x509.ExtensionType] = [x509.ExtendedKeyUsage([usage])]
    if hosts:
        extensions.append(x509.SubjectAlternativeName([_general_name(host) for host in hosts]))
    signer = (_read_certificate(authority.certificate), _read_key(authority.key))
    return _write(pair, name, extensions, signer=signer, valid=(now - ALREADY_VALID, now + life))


def _ensure(
    pair: Pair, authority: Pair, make: Callable[[], datetime], *, renew: bool, now: datetime
) -> Outcome:
    if not (pair.certificate.exists() and pair.key.exists()):
        return Outcome(pair, "made", make())
    certificate = _read_certificate(pair.certificate)
    expires = certificate.not_valid_after_utc
    try:
        certificate.verify_directly_issued_by(_read_certificate(authority.certificate))
    except (ValueError, InvalidSignature):
        # Of an authority that expired or was deleted: nobody trusts it any more.
        renew = True
    if renew or expires <= now:
        return Outcome(pair, "renewed", make())
    return Outcome(pair, "kept", expires)


def _make_authority(pair: Pair, *, now: datetime) -> datetime:
    # A name of its own: else a client with the certificate of another folder would see a wrong signature,
    # and not an authority that it does not know.
    name = f"Fluffle development CA {token_hex(4)}"
    return _write(pair, name, [], signer=None, valid=(now - ALREADY_VALID, now + AUTHORITY_LIFE))


def _write(
    pair: Pair,
    name: str,
    extensions: Sequence[x509.ExtensionType],
    *,
    signer: tuple[x509.Certificate, EllipticCurvePrivateKey] | None,
    valid: tuple[datetime, datetime],
) -> datetime:
    """Write a key and its certificate, as OpenSSL's strict mode wants it; an authority's without `signer`."""
    is_authority = signer is None
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing_key = (subject, key) if signer is None else (signer[0].subject, signer[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(_key_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign(signing_key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(pair.key, secret.decode())
    write_private(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM).decode())
    pair.certificate.chmod(0o644)
    return certificate.not_valid_after_utc


def _key_usage(is_authority: bool) -> x509.KeyUsage:

    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read_certificate(path: Path) -> x509.Certificate:

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate: delete it, and it is made anew") from error


def _read_key(path: Path) -> EllipticCurvePrivateKey:

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (TypeError, ValueError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no key that was made here: delete it, and it is made anew")
    return key


def _hosts_of(server: Pair) -> list[str]:

    if not server.certificate.exists():
        return []
    certificate = _read_certificate(server.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _general_name(host: str) -> x509.GeneralName:

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _require_host(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    if not HOST_NAME.fullmatch(host):
        raise ConfigError(f"--host must be a host name or an IP address, not {host!r}")
    return host.lower()


def _require_user(user: str) -> str:
    try:
        require_name(user)
    except ValueError as error:
        raise ConfigError(f"--user {error}") from error
    if len(user) > MAX_COMMON_NAME:
        raise ConfigError(
            f"--user {user!r} has {len(user)} characters, but a certificate's common name at most "
            f"{MAX_COMMON_NAME}"
        )
    return user
