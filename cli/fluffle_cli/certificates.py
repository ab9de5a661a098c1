"""`fluffle broker certs`: certificates for development, from an authority in a folder, and what to set where.

trustme makes them: they last until the year 3000, and a key of a user would also do for a server.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from fluffle.command_line import plain_command
from fluffle.errors import ConfigError
from fluffle.fields import is_name
from fluffle_cli.rabbitmq_server import write_private

if TYPE_CHECKING:
    import trustme

ALWAYS_HOSTS = ("localhost", "127.0.0.1")
ORGANIZATION = "Fluffle, for development"
# Without a host name of its own, a client would take the common name of a user's certificate for one.
NO_HOST = "user.invalid"
# What X.509 allows for a common name.
MAX_USER_LENGTH = 64


class Pair(NamedTuple):
    """The files of a certificate and of its private key."""

    certificate: Path
    key: Path


def pair_at(place: Path) -> Pair:
    """Return the files of `ca`, `server` or `users/NAME` in a folder of certificates."""
    return Pair(Path(f"{place}.pem"), Path(f"{place}.key"))


def make_certificates(folder: Path, *, hosts: Iterable[str] = (), users: Iterable[str] = ()) -> list[Path]:
    """Make the certificates that a folder lacks, overwrite nothing, and return what was made.

    The server's certificate is for localhost and for `hosts`; a user's has the user as its common name.
    Raises ConfigError for a host or user that no certificate can name, for files that do not fit together,
    and for a folder that cannot be used.
    """
    for user in users:
        if not is_name(user) or len(user) > MAX_USER_LENGTH:
            raise ConfigError(
                f"--user must be 1 to {MAX_USER_LENGTH} letters, digits and _ . @ : -, not {user!r}"
            )
    server, server_hosts = pair_at(folder / "server"), {*ALWAYS_HOSTS, *(host.lower() for host in hosts)}
    before = set(folder.rglob("*.pem"))
    try:
        signer = _signer(folder)
        for pair, name, names in [
            (server, None, sorted(server_hosts)),
            *((pair_at(folder / "users" / user), user, [NO_HOST]) for user in users),
        ]:
            if not _exists(pair):
                leaf = signer.issue_cert(*names, common_name=name, organization_name=ORGANIZATION)
                _write(pair, leaf.cert_chain_pems[0], leaf.private_key_pem)
        missing = server_hosts - _hosts_of(server)
    except UnicodeError as error:
        raise ConfigError(f"--host must be a host name or an IP address: {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"the certificates in {folder} cannot be used: {error}") from error
    if missing:
        raise ConfigError(
            f"{server.certificate} is not for {', '.join(sorted(missing))}: delete it and {server.key}, and "
            "name every --host"
        )
    return sorted(set(folder.rglob("*.pem")) - before)


@plain_command
def command(
    folder: Annotated[
        Path, typer.Option(help="Folder of the certificates and keys.", metavar="PATH", resolve_path=True)
    ] = Path("certs"),
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or address of the broker, beside localhost and 127.0.0.1; can be repeated.",
            metavar="HOST",
        ),
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option(help="A RabbitMQ user who logs in by certificate; can be repeated.", metavar="NAME"),
    ] = None,
) -> None:
    """Make certificates for development: an authority, the broker's certificate, one for each user.

    Files that exist are kept: to replace a certificate, delete it and its key first. The certificates do not
    expire. In production let your own authority sign: whoever has ca.key can log in as anybody.
    """
    made = make_certificates(folder, hosts=host or (), users=user or ())
    typer.echo("\n".join(f"made {path}" for path in made) or f"all certificates exist in {folder}")
    place = host[0] if host else "localhost"
    typer.echo(f"""
The broker's rabbitmq.conf, beside the other lines of broker_config/tls.conf:
  ssl_options.cacertfile = {folder}/ca.pem
  ssl_options.certfile = {folder}/server.pem
  ssl_options.keyfile = {folder}/server.key

Every part:
  export FLUFFLE_BROKER_CA_FILE={folder}/ca.pem

A part whose user has a password:
  export FLUFFLE_BROKER_URL=amqps://USER:PASSWORD@{place}:5671/%2F""")
    for name in user or ():
        typer.echo(f"""
The part that is the user {name}, without a password:
  export FLUFFLE_BROKER_URL=amqps://{place}:5671/%2F
  export FLUFFLE_NAME={name}
  export FLUFFLE_BROKER_CERT_FILE={folder}/users/{name}.pem
  export FLUFFLE_BROKER_KEY_FILE={folder}/users/{name}.key""")


def _signer(folder: Path) -> "trustme.CA":
    try:
        import trustme
    except ImportError as error:
        raise ConfigError(
            "trustme makes the certificates, and is not installed: install Fluffle with its extra `certs`"
        ) from error
    pair = pair_at(folder / "ca")
    if _exists(pair):
        return trustme.CA.from_pem(pair.certificate.read_bytes(), pair.key.read_bytes())
    if orphan := next(folder.rglob("*.pem"), None):
        raise ConfigError(f"{orphan} was signed by an authority that is not there any more: delete {folder}")
    signer = trustme.CA(organization_name=ORGANIZATION)
    _write(pair, signer.cert_pem, signer.private_key_pem)
    return signer


def _exists(pair: Pair) -> bool:
    found = [path for path in pair if path.exists()]
    if len(found) == 1:
        raise ConfigError(f"{found[0]} is there without its other half: delete it")
    return bool(found)


def _write(pair: Pair, certificate: "trustme.Blob", key: "trustme.Blob") -> None:
    pair.key.parent.mkdir(parents=True, exist_ok=True)
    write_private(pair.key, key.bytes().decode())
    certificate.write_to_path(pair.certificate)


def _hosts_of(server: Pair) -> set[str]:
    from cryptography import x509  # slow to load

    certificate = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}
