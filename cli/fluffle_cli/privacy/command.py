"""`fluffle privacy`: makes the secret of the noise."""

from pathlib import Path
from typing import Annotated

import typer

from fluffle.command_line import new_app, plain_command

app = new_app(
    "Make the secret from which the noise of differential privacy follows.\n\n"
    "Differential privacy adds noise, so that the models tell next to nothing about any one worker."
)


@plain_command
def secret(file: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE")]) -> None:
    """Draw the secret from which an aggregator makes its noise: 32 random bytes of the operating system.

    Give the file to each aggregator of the federation, so that a standby goes on with the same noise, and to
    nobody else: whoever has it can take the noise off the models. Make one for each federation, and keep a
    copy: without it no aggregator can go on. Only the file's owner may read it, and it is never overwritten.
    """
    # Only here: --help does not wait for the library of ciphers.
    from fluffle.privacy.secret_file import write_new_secret

    write_new_secret(file)
    typer.echo(
        f"made {file}: give it to each aggregator of the federation and to nobody else, since whoever has it "
        "can take the noise off"
    )


app.command("secret")(secret)
