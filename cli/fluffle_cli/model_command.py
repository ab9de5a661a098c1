"""`fluffle model`: lists, exports and restores versions of the model, and builds version 0 of a task."""

import threading
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table

from fluffle import logs
from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.command_line import new_app, settings_command
from fluffle.connection import connect, found_federation
from fluffle.consoles import PlainConsole, table_console
from fluffle.errors import ConfigError, LayoutError, TopologyMissing
from fluffle.initial_model import write_initial_model
from fluffle.model import Weights
from fluffle.model_stream import MissingRecords, StoredVersion, all_records, all_stored, stored_at_hand
from fluffle.record_file import read_record, write_record
from fluffle.safetensors_file import write_model
from fluffle.task import load_task
from fluffle.topology import STREAM_MAX_BYTES, Topology, topology_of
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.restoring import TERMS_AHEAD, put_back
from fluffle_worker.site_state import LOCAL, read_local_weights

app = new_app("List, export and restore versions of the model, or build version 0.")


class ListSettings(QuerySettings):
    """Flags of `fluffle model list`."""

    part: ClassVar[str] = "model"


class ExportSettings(ListSettings):
    """Flags of `fluffle model export`."""

    out: Path = Field(
        Path("model.safetensors"),
        description="File to write: .safetensors, .keras (needs the task), or .fluffle for `model restore`.",
    )
    version: str = Field("newest", description="Which version: newest, best, or a number from `model list`.")
    task: str | None = Field(None, description="Task that knows how to write a .keras file.")
    worker: str | None = Field(
        None,
        description="Worker of this machine whose own model is written: with its local weights, as .keras.",
    )
    spool: Path = Field(
        Path(".fluffle/spool"), description="That worker's --spool, where its local weights lie."
    )


class RestoreSettings(ListSettings):
    """Flags of `fluffle model restore`."""

    file: Path = Field(
        description="File of `fluffle model export --out NAME.fluffle`.",
        json_schema_extra={"argument": True},
    )


class InitSettings(ListSettings):
    """Flags of `fluffle model init`."""

    task: str = Field(description="Task whose seeded weights are built; it may load TensorFlow.")
    seed: int = Field(0, ge=0, description="Seed of the weights.")
    out: Path = Field(Path("initial.safetensors"), description="File to write, for --initial-model.")


def list_versions(settings: ListSettings) -> None:
    """Print a table of the versions that the stream of records still holds."""
    topology = topology_of(settings.federation)
    table = Table("version", "term", "updates", "size", "committed", "evaluated", "", show_edge=False)
    evaluated: dict[int, str] = {}
    # With many workers a record is large: no more of it is kept than is shown.
    rows: list[tuple[int, list[str], list[str]]] = []
    total_bytes, missing = 0, MissingRecords()
    with _connected(settings, topology) as broker:
        records = all_records(broker, topology)
        for version in track(records, "reading", transient=True, console=logs.console()):
            if version.evaluation:
                shown = ", ".join(f"{name} {value:.3g}" for name, value in version.evaluation.metrics.items())
                evaluated[version.evaluation.version] = shown
            size_bytes = 4 * version.layout.size + version.layout.beside_vector_size_bytes
            total_bytes += size_bytes
            committed = f"{datetime.fromtimestamp(version.committed_at):%Y-%m-%d %H:%M:%S}"
            cells = [
                str(version.version),
                str(version.term),
                str(version.updates),
                decimal(size_bytes),
                committed,
            ]
            marks = ["finished"] if version.finished else []
            marks += ["records before this one are missing"] if missing.are_before(version) else []
            rows.append((version.version, cells, marks))
    if not rows:
        raise TopologyMissing(
            f"the federation {settings.federation!r} has no version yet: start its aggregator"
        )
    for number, cells, marks in rows:
        if version.best is not None and version.best.version == number:
            marks.insert(0, f"best by {version.best_by}")
        table.add_row(*cells, evaluated.get(number, ""), ", ".join(marks))
    # A line per version, also where no terminal says how wide it is.
    table_console(120).print(table)
    if total_bytes > STREAM_MAX_BYTES:
        logs.console().print(
            f"{topology.models.name} keeps the models of the newest {decimal(STREAM_MAX_BYTES)}: older ones "
            "may no longer be there to export.",
            highlight=False,
            soft_wrap=True,
        )


def export(settings: ExportSettings) -> None:
    """Write one version to a file."""
    if settings.out.suffix not in (".safetensors", ".keras", ".fluffle"):
        raise ConfigError(f"--out must end in .safetensors, .keras or .fluffle, not {settings.out.name!r}")
    task_name = settings.task
    if settings.out.suffix == ".keras" and task_name is None:
        raise ConfigError("a .keras file needs --task: it builds the model that the weights are written into")
    if settings.worker and settings.out.suffix != ".keras":
        raise ConfigError(
            "--worker writes a model with local weights, and only .keras holds those, not "
            f"{settings.out.name}"
        )
    topology = topology_of(settings.federation)
    with _connected(settings, topology) as broker:
        stored = _chosen(broker, topology, settings.version)
    version = stored.version
    if task_name is not None and settings.out.suffix == ".keras":
        try:
            task = CheckedTask(load_task(task_name))
            local = _local_weights(settings, task) if settings.worker else {}
            task.save({**version.weights, **local}, settings.out)
        except LayoutError as error:
            raise ConfigError(
                f"--task {task_name} has another model than the federation: give the task that it trains "
                f"({error})"
            ) from error
    elif settings.out.suffix == ".fluffle":
        write_record(settings.out, stored.body)
    else:
        about = {"federation": version.federation, "version": str(version.version), "term": str(version.term)}
        write_model(settings.out, version.weights, about, layout=version.layout)
    PlainConsole().print(
        f"version {version.rank} of {version.federation} is in {settings.out}", highlight=False
    )
    if version.copy_of:
        logs.console().print(
            f"It is rounded: versions travel in {version.codec} here (--downlink-codec). The last one of a "
            "federation that has finished is exact.",
            highlight=False,
            soft_wrap=True,
        )


def init(settings: InitSettings) -> None:
    """Write a task's seeded weights to a file."""
    if settings.out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, not {settings.out.name!r}")
    write_initial_model(settings.task, seed=settings.seed, out=settings.out)
    PlainConsole().print(f"version 0 of {settings.task} is in {settings.out}", highlight=False)


def restore(settings: RestoreSettings) -> None:
    """Put the version in a file back, so that an aggregator can go on from it."""
    topology = topology_of(settings.federation)
    stored = read_record(settings.file)
    name = f"{settings.federation}/model"
    with (
        connect(settings, name=name, stop=threading.Event()) as broker,
        logs.console().status("looking at what the broker has"),
    ):
        rank = put_back(broker, topology, stored)
    PlainConsole().print(
        f"version {rank} of {settings.federation} is on the broker again: an aggregator that "
        "starts goes on from it",
        highlight=False,
        soft_wrap=True,
    )


def _local_weights(settings: ExportSettings, task: CheckedTask) -> Weights:
    """Return what a worker of this machine has trained for itself."""
    initial = task.model().local
    if not initial:
        raise ConfigError(f"the task {settings.task} has no local weights: leave out --worker")
    folder = settings.spool / settings.federation / str(settings.worker)
    if not (folder / LOCAL).exists():
        raise ConfigError(
            f"there is no {folder / LOCAL}: export on the machine of {settings.worker}, with its --spool, "
            "once it has trained a round"
        )
    return read_local_weights(folder, initial)


def _chosen(broker: Broker, topology: Topology, wanted: str) -> StoredVersion:
    stored = stored_at_hand(broker, topology)
    if stored is None:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    if wanted == "newest":
        return stored
    newest = stored.version
    if wanted == "best":
        if newest.best is None and newest.evaluation is not None:
            name = next(iter(newest.evaluation.metrics), "NAME")
            raise ConfigError(
                f"--version best: nothing says whether more or less {name} is better; start the aggregators "
                f'with --best "{name}:max" or "{name}:min", or name the version by its number'
            )
        if newest.best is None:
            raise ConfigError("--version best: no version has been evaluated yet; start `fluffle evaluator`")
        number = newest.best.version
    elif wanted.isdecimal():
        number = int(wanted)
    else:
        raise ConfigError(f"--version must be newest, best or a number, not {wanted!r}")
    found = [each for each in all_stored(broker, topology) if each.version.version == number]
    if not found:
        which = f"best, which is version {number}," if wanted == "best" else wanted
        raise ConfigError(
            f"--version {which} is not in {topology.models.name} (any more): see `fluffle model list`"
        )
    return found[-1]


def _connected(settings: ListSettings, topology: Topology) -> AbstractContextManager[Broker]:
    return found_federation(settings, topology, name=f"{settings.federation}/model")


app.command("list")(
    settings_command(
        ListSettings,
        list_versions,
        about="List the versions that the stream of records still holds. No model is read for it.",
    )
)
app.command("export")(
    settings_command(
        ExportSettings,
        export,
        about="Write one version of the model to a file.\n\n"
        "A site whose task has local weights, such as a personal head, writes its own model with --worker "
        "NAME and a .keras file, on the machine where that worker ran.",
    )
)
app.command("restore")(
    settings_command(
        RestoreSettings,
        restore,
        about="Put an exported version (.fluffle) back on the broker, for aggregators to go on from.\n\n"
        "For a federation whose head queue is gone, or a new broker after the loss of the old one. Stop all "
        "aggregators first; the command refuses to run while one leads. The file lists the updates that the "
        "model contains, so none is counted twice. Server-optimizer moments restart from zero.\n\n"
        "If the file has the newest version of the stream, that version goes to the head queue unchanged. If "
        "the stream is empty or behind, it goes to both. Nobody knows then which versions came after the "
        f"file, so its term is raised by {TERMS_AHEAD}, and every worker accepts it. The term of a rounded "
        "copy (--downlink-codec) is raised too. A file that is older than head or stream is refused.",
    )
)
app.command("init")(
    settings_command(
        InitSettings,
        init,
        about="Build version 0 of a task as a file, where TensorFlow is, for an aggregator without it.",
    )
)
