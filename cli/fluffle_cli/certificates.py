"""Certificates for development: an authority, and what it signs for the server and for users.

trustme makes them: they last until the year 3000, and a key of a user would also do for a server. Import this
where it is used: `cryptography` is slow to load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from fluffle.errors import ConfigError
from fluffle.settings import require_name
from fluffle_cli.rabbitmq_server import write_private

try:
    import trustme
except ImportError as error:
    raise ConfigError(
        "trustme makes the certificates, and is not installed: install Fluffle with its extra `certs`"
    ) from error

ALWAYS_HOSTS = ("localhost", "127.0.0.1")
ORGANIZATION = "Fluffle, for development"
# Without a host name of its own, a client would take the common name of a user's certificate for one.
NO_HOST = "user.invalid"
# What X.509 allows for a common name.
MAX_COMMON_NAME = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate and its private key are, or are to be."""

    certificate: Path
    key: Path


def authority_in(folder: Path) -> Pair:
    """Say where the authority of a folder is."""
    return Pair(folder / "ca.pem", folder / "ca.key")


def server_in(folder: Path) -> Pair:
    """Say where the server's certificate of a folder is."""
    return Pair(folder / "server.pem", folder / "server.key")


def user_in(folder: Path, user: str) -> Pair:
    """Say where a user's certificate is: in a folder of the users, one of whom may be called `server`."""
    return Pair(folder / "users" / f"{user}.pem", folder / "users" / f"{user}.key")


def make_certificates(folder: Path, *, hosts: Iterable[str] = (), users: Iterable[str] = ()) -> list[Path]:
    """Make the certificates that a folder lacks, overwrite nothing, and return what was made.

    The server's certificate is for localhost and for `hosts`; a user's has the user as its common name.
    Raises ConfigError for a host or user that no certificate can name, for files that do not fit together,
    and for a folder that cannot be used.
    """
    wanted = list(dict.fromkeys([*ALWAYS_HOSTS, *map(_normal_host, hosts)]))
    users = [_require_user(user) for user in users]
    made: list[Path] = []
    try:
        authority = _authority(folder, made)
        server = server_in(folder)
        if not _exists(server):
            _write(server, authority.issue_cert(*wanted, organization_name=ORGANIZATION), made)
        elif missing := set(wanted).difference(_hosts_of(server)):
            raise ConfigError(
                f"{server.certificate} is not for {', '.join(sorted(missing))}: delete it and {server.key}, "
                "and name every --host"
            )
        for user in users:
            pair = user_in(folder, user)
            if not _exists(pair):
                leaf = authority.issue_cert(NO_HOST, common_name=user, organization_name=ORGANIZATION)
                _write(pair, leaf, made)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be used: {error.strerror}") from error
    except UnicodeError as error:
        raise ConfigError(f"--host must be a host name or an IP address: {error}") from error
    return made


def _authority(folder: Path, made: list[Path]) -> trustme.CA:
    pair = authority_in(folder)
    if _exists(pair):
        try:
            return trustme.CA.from_pem(pair.certificate.read_bytes(), pair.key.read_bytes())
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{pair.key} holds no key, or {pair.certificate} no certificate: delete {folder}"
            ) from error
    if orphan := next(folder.rglob("*.pem"), None):
        raise ConfigError(f"{orphan} was signed by an authority that is not there any more: delete {folder}")
    authority = trustme.CA(organization_name=ORGANIZATION)
    _write(pair, authority, made)
    return authority


def _exists(pair: Pair) -> bool:
    there = [path for path in (pair.certificate, pair.key) if path.exists()]
    if len(there) == 1:
        raise ConfigError(f"{there[0]} is there without its other half: delete it")
    return bool(there)


def _write(pair: Pair, signed: trustme.CA | trustme.LeafCert, made: list[Path]) -> None:
    certificate = signed.cert_pem if isinstance(signed, trustme.CA) else signed.cert_chain_pems[0]
    pair.key.parent.mkdir(parents=True, exist_ok=True)
    write_private(pair.key, signed.private_key_pem.bytes().decode())
    pair.certificate.write_bytes(certificate.bytes())
    made.append(pair.certificate)


def _hosts_of(server: Pair) -> set[str]:
    try:
        certificate = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{server.certificate} holds no certificate: delete it and {server.key}") from error
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _normal_host(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()


def _require_user(user: str) -> str:
    try:
        require_name(user)
    except ValueError as error:
        raise ConfigError(f"--user {error}") from error
    if len(user) > MAX_COMMON_NAME:
        raise ConfigError(
            f"--user {user!r} has {len(user)} characters; a certificate's common name has at most "
            f"{MAX_COMMON_NAME}"
        )
    return user
