"""`fluffle broker certs`: certificates for development with TLS, and what to set where."""

from pathlib import Path
from typing import Annotated

import typer

from fluffle.settings import env_name

DEFAULT_FOLDER = Path("certs")


def command(
    folder: Annotated[
        Path, typer.Option(help="Folder of the certificates and keys.", metavar="PATH")
    ] = DEFAULT_FOLDER,
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
    # Here, so that --help is quick and needs no trustme.
    from fluffle_cli.certificates import authority_in, make_certificates, server_in, user_in

    made = make_certificates(folder, hosts=host or (), users=user or ())
    for path in made:
        typer.echo(f"made {path}")
    if not made:
        typer.echo(f"all certificates exist in {folder}")
    place = host[0] if host else "localhost"
    authority, server = authority_in(folder).certificate.resolve(), server_in(folder)
    typer.echo("\nThe broker's rabbitmq.conf, beside the other lines of broker_config/tls.conf:")
    typer.echo(f"  ssl_options.cacertfile = {authority}")
    typer.echo(f"  ssl_options.certfile = {server.certificate.resolve()}")
    typer.echo(f"  ssl_options.keyfile = {server.key.resolve()}")
    typer.echo("\nEvery part:")
    typer.echo(f"  export {env_name('broker_ca_file')}={authority}")
    typer.echo("\nA part whose user has a password:")
    typer.echo(f"  export {env_name('broker_url')}=amqps://USER:PASSWORD@{place}:5671/%2F")
    for name in user or ():
        pair = user_in(folder, name)
        typer.echo(f"\nThe part that is the user {name}, without a password:")
        typer.echo(f"  export {env_name('broker_url')}=amqps://{place}:5671/%2F")
        typer.echo(f"  export {env_name('name')}={name}")
        typer.echo(f"  export {env_name('broker_cert_file')}={pair.certificate.resolve()}")
        typer.echo(f"  export {env_name('broker_key_file')}={pair.key.resolve()}")
