"""`fluffle privacy`: the numbers of a promise before it is made, and the secret of the noise."""

from pathlib import Path
from typing import Annotated, Final

import typer

from fluffle.command_line import new_app, plain_command, settings_command
from fluffle.consoles import print_table
from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings
from fluffle.whole_file import write_whole
from fluffle_cli.plain_json import as_text
from fluffle_cli.privacy.page import page, picture_file
from fluffle_cli.privacy.settings import PrivacyPlanSettings
from fluffle_cli.privacy.status import PrivacyStatusSettings, status
from fluffle_cli.privacy.terminal import (
    EXPLAINED,
    aggregator_command,
    as_plain,
    buffer_rows,
    compared_rows,
    course,
    epsilon_rows,
    short,
)

DRAWERS: Final = {".html": page, ".svg": picture_file}
MEANINGLESS: Final = frozenset(SharedSettings.model_fields) - {"verbose", "config", "log_format"}

app = new_app(
    "Find the numbers of differential privacy, and make the secret from which its noise follows.\n\n"
    "Differential privacy adds noise, so that the models tell next to nothing about any one worker. Before "
    "a federation begins, `plan` says how much noise a promise needs, and whether anything can be learnt "
    "through it. It needs no broker."
)


def plan(settings: PrivacyPlanSettings) -> None:
    """Say what a promise to each worker costs, before a federation begins: how much noise, how many versions.

    Example: `fluffle privacy plan --workers 1000 --buffer-size 50 --parameters 100000 --epsilon 8`

    The tables compare other epsilons and buffer sizes. What helps is more workers, larger buffers, fewer
    parameters, and a separation. With --noise it goes the other way round, and says which epsilon a noise
    multiplier gives.
    """
    if settings.out is not None and settings.out.suffix not in DRAWERS:
        raise ConfigError(f"out must end with {' or '.join(DRAWERS)}, not {settings.out.name!r}")
    found = settings.numbers()
    if settings.out is not None:
        write_whole(settings.out, [DRAWERS[settings.out.suffix](found).encode()])
    if settings.as_json:
        typer.echo(as_text(as_plain(found)))
        return
    if settings.noise is not None:
        typer.echo(f"epsilon {short(found.epsilon)} with a noise multiplier of {settings.noise:g}.")
    typer.echo(f"{found.promise}\n\n{course(found)}\n")
    print_table(*compared_rows(found))
    typer.echo(f"\n{EXPLAINED}\n")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}\n")
    print_table(*epsilon_rows(found))
    typer.echo("")
    print_table(*buffer_rows(found))
    if command := aggregator_command(found):
        typer.echo(f"\nTo begin with it:\n{command}")
    if settings.out is not None:
        typer.echo(f"\nthe pictures are {settings.out}")


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


app.command("plan")(settings_command(PrivacyPlanSettings, plan, without=MEANINGLESS))
app.command("secret")(secret)
app.command("status")(settings_command(PrivacyStatusSettings, status))
