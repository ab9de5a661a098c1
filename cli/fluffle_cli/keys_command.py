"""`fluffle keys`: the keys of secure aggregation and its registry, and the key of a sealed federation."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fluffle.command_line import new_app, plain_command
from fluffle.consoles import print_table
from fluffle.settings import SharedSettings, load_settings

Folder = Annotated[Path, typer.Option(help="The operator's folder of keys.", metavar="PATH")]
Federation = Annotated[
    str | None,
    typer.Option(
        help=escape("Name of the federation. [env: FLUFFLE_FEDERATION] [default: digits]"), metavar="TEXT"
    ),
]

app = new_app(
    "Make the keys of secure aggregation with the registry of who takes part, or the key of a sealed "
    "federation.\n\n"
    "For secure aggregation, the operator runs `init`, `helpers` and `registry` on a machine that is not the "
    "aggregator's. Each worker runs `worker` where it works, and sends the file that ends with .pub to the "
    "operator. For a sealed federation, one person runs `sealed`. No private key is ever overwritten, and "
    "only its owner may read it."
)


def _federation_of(flag: str | None) -> str:
    """Return the federation of the flag, or else of the environment or fluffle.toml, as all commands do."""
    return load_settings(SharedSettings, {} if flag is None else {"federation": flag}).federation


@plain_command
def init(folder: Folder = Path("keys")) -> None:
    """Make the operator's key, with which the registry is signed.

    Whoever takes part gets operator.pub from you, in a way in which nobody can replace it. Keep operator.key
    to yourself: whoever has it can register workers that do not exist, and learn what the others send.
    """
    # Only here: --help does not wait for the library of ciphers.
    from fluffle_cli import making_keys

    typer.echo(making_keys.make_operator(folder))


@plain_command
def helpers(
    names: Annotated[list[str], typer.Argument(help="A name for each helper.", metavar="NAME...")],
    federation: Federation = None,
    colluding: Annotated[
        int,
        typer.Option(
            help="How many helpers may collude with the aggregator and still learn no single update. So many "
            "and one more are needed to open a sum.",
            min=1,
        ),
    ] = 1,
    folder: Folder = Path("keys"),
) -> None:
    """Make the keys of the helpers, for a new epoch.

    Example: `fluffle keys helpers helper-1 helper-2 helper-3`. Move NAME.key and NAME.ledger to
    each helper; no helper may have another one's. A helper writes into its ledger which updates it has
    opened: never give it an older copy.
    """
    from fluffle_cli import making_keys

    typer.echo(making_keys.make_helpers(folder, names, _federation_of(federation), colluding))


@plain_command
def worker(
    name: Annotated[str, typer.Argument(help="Name of the worker.", metavar="NAME")],
    federation: Federation = None,
    folder: Annotated[Path, typer.Option(help="Folder for the two files.", metavar="PATH")] = Path(),
) -> None:
    """Make a worker's key. Send the file NAME.pub to the operator, and keep NAME.key."""
    from fluffle_cli import making_keys

    typer.echo(making_keys.make_worker(folder, name, _federation_of(federation)))


@plain_command
def registry(
    workers: Annotated[
        list[Path] | None, typer.Argument(help="A worker's public key to add.", metavar="[NAME.pub]...")
    ] = None,
    revoke: Annotated[
        list[str] | None,
        typer.Option(help="A worker that may no longer take part; can be repeated.", metavar="NAME"),
    ] = None,
    folder: Folder = Path("keys"),
) -> None:
    """Sign the registry of the newest epoch: its helpers, and the workers of the registry before with these.

    Example: `fluffle keys registry hospital-1.pub hospital-2.pub`. Send registry.json to everybody who takes
    part, with the aggregator and the helpers: it holds no secret. A worker's key stays the same in an epoch.
    """
    from fluffle_cli import making_keys

    typer.echo(making_keys.sign(folder, workers or [], revoke or []))


@plain_command
def rotate(
    workers: Annotated[
        list[Path] | None,
        typer.Argument(help="A worker's public key, in place of its old one.", metavar="[NAME.pub]..."),
    ] = None,
    folder: Folder = Path("keys"),
) -> None:
    """Make the same helpers keys for the next epoch, and sign the registry with them.

    Move NAME.key and NAME.ledger to each helper, in place of its old ones, and send registry.json to
    everybody. What was masked for the epoch before is refused from then on, and trained anew; nobody can open
    it once the old keys are gone. Those that are still in this folder are deleted last.
    """
    from fluffle_cli import making_keys

    typer.echo(making_keys.rotate_keys(folder, workers or []))


@plain_command
def show(
    file: Annotated[Path, typer.Argument(help="The registry.", metavar="registry.json")],
    operator: Annotated[
        Path | None,
        typer.Option(
            help="File with the operator's public key; by default operator.pub beside the registry.",
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Check that the operator has signed a registry, and show who takes part."""
    from fluffle_cli import making_keys

    said, rows = making_keys.verified(file, operator or file.with_name(making_keys.OPERATOR_PUBLIC))
    typer.echo(f"{said}; the operator has signed it\n")
    print_table(["name", "part", "public key"], rows)


@plain_command
def sealed(
    folder: Annotated[Path, typer.Argument(help="Folder for the two files.", metavar="FOLDER")],
) -> None:
    """Make the key of a sealed federation, whose aggregator and broker see neither updates nor the model.

    Give sealed.secret to each worker and evaluator, in a way in which nobody else can read it: whoever has it
    can read every update and the model. The aggregator gets sealed.public, which is no secret.
    """
    from fluffle_cli import making_sealed_key

    typer.echo(making_sealed_key.make_key(folder))


for command in (init, helpers, worker, registry, rotate, show, sealed):
    app.command(command.__name__)(command)
