"""`fluffle model`: lists, exports and restores versions of the model, and builds version 0 of a task."""

import threading
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import typer
from pydantic import Field
from rich.filesize import decimal
from rich.progress import track

from fluffle import logs
from fluffle.broker import Broker
from fluffle.checked_task import CheckedTask
from fluffle.command_line import new_app, settings_command
from fluffle.connection import connect, found_federation
from fluffle.consoles import print_table
from fluffle.data_source import SourceSettings, TaskOfTables
from fluffle.errors import ConfigError, LayoutError, TopologyMissing
from fluffle.initial_model import write_initial_model
from fluffle.model import Weights, some_of
from fluffle.model_stream import (
    MissingRecords,
    StoredVersion,
    all_records,
    all_stored,
    best_at_hand,
    stored_at_hand,
)
from fluffle.record import ModelVersion, is_in_history
from fluffle.record_file import read_record, write_record
from fluffle.safetensors_file import write_model
from fluffle.storage import written_to
from fluffle.task import Task, load_task
from fluffle.topology import STREAM_MAX_BYTES, Topology, topology_of
from fluffle_cli.query_settings import QuerySettings
from fluffle_cli.restoring import put_back
from fluffle_cli.small_export import export_small
from fluffle_cli.watching.privacy import about_privacy
from fluffle_worker.sealed_versions import opened, read_key, require_key
from fluffle_worker.site_state import LOCAL, read_local_weights

app = new_app("List, export and restore versions of the model, or build version 0.")


class ListSettings(QuerySettings):
    """Flags of `fluffle model list`."""

    part: ClassVar[str] = "model"


class ExportSettings(ListSettings):
    """Flags of `fluffle model export`."""

    out: str = Field(
        "model.safetensors",
        description="File to write, as a path or URL (hdfs://, webhdfs://, s3://): .safetensors, .keras "
        "(needs the task), or .fluffle for `model restore`.",
        json_schema_extra={"metavar": "PATH"},
    )
    version: str = Field("newest", description="Which version: newest, best, or a number from `model list`.")
    task: str | None = Field(None, description="Task that knows how to write a .keras file.")
    quantize: Literal["int8"] | None = Field(
        None,
        description="For a device that only infers: quantize the model with Keras's own int8 quantization, "
        "and show what that costs. Needs a .keras file.",
    )
    prune: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="For a device that only infers: set this share of each layer's kernel to zero, the "
        "smallest magnitudes, such as 0.5, and show what that costs. Needs a .keras file.",
    )
    worker: str | None = Field(
        None,
        description="Worker of this machine whose own model is written: with its local weights, as .keras.",
    )
    spool: Path = Field(
        Path(".fluffle/spool"), description="That worker's --spool, where its local weights lie."
    )
    sealed_secret: Path | None = Field(
        None,
        description="File sealed.secret with the key of a sealed federation, whose model nobody can read "
        "without it. A .fluffle file needs none: it stays sealed.",
    )


class RestoreSettings(ListSettings):
    """Flags of `fluffle model restore`."""

    file: str = Field(
        description="File of `fluffle model export --out NAME.fluffle`, as a path or URL.",
        json_schema_extra={"argument": True, "metavar": "PATH"},
    )


class InitSettings(ListSettings, SourceSettings):
    """Flags of `fluffle model init`."""

    task: str = Field(description="Task whose seeded weights are built; it may load TensorFlow.")
    seed: int = Field(0, ge=0, description="Seed of the weights.")
    out: Path = Field(Path("initial.safetensors"), description="File to write, for --initial-model.")


def _list(settings: ListSettings) -> None:
    """List the versions that the stream of records still holds. No model is read for it."""
    topology = topology_of(settings.federation)
    evaluated: dict[str, str] = {}
    # With many workers a record is large: no more of it is kept than is shown.
    rows: list[list[str]] = []
    total_bytes, missing = 0, MissingRecords()
    with found_federation(settings, topology, name=f"{settings.federation}/model") as broker:
        records = all_records(broker, topology)
        for version in track(records, "reading", transient=True, console=logs.console()):
            if evaluation := version.deciding_evaluation:
                shown = ", ".join(f"{name} {value:.3g}" for name, value in evaluation.metrics.items())
                evaluated[str(evaluation.version)] = shown
            size_bytes = version.payload_size_bytes
            total_bytes += size_bytes
            numbers = (version.version, version.term, version.updates)
            committed = f"{datetime.fromtimestamp(version.committed_at):%Y-%m-%d %H:%M:%S}"
            is_after_gap = missing.are_before(version)
            marks = {"finished": version.finished, "records before this one are missing": is_after_gap}
            shown_marks = ", ".join(mark for mark, is_set in marks.items() if is_set)
            rows.append([*map(str, numbers), decimal(size_bytes), committed, "", shown_marks])
    if not rows:
        raise TopologyMissing(
            f"the federation {settings.federation!r} has no version yet: start its aggregator"
        )
    for row in rows:
        row[5] = evaluated.get(row[0], "")
        if version.best and row[0] == str(version.best.version):
            row[6] = f"best by {version.best_by}{', ' if row[6] else ''}{row[6]}"
    columns = ("version", "term", "updates", "size", "committed", "evaluated", "")
    # A line per version, also where no terminal says how wide it is.
    print_table(columns, rows, width=120)
    if total_bytes > STREAM_MAX_BYTES:
        typer.echo(
            f"{topology.models.name} keeps the models of the newest {decimal(STREAM_MAX_BYTES)}: older ones "
            "may no longer be there to export.",
            err=True,
        )


def _export(settings: ExportSettings) -> None:
    """Write one version of the model to a file; the average of the versions where they are averaged.

    A site whose task has local weights, such as a personal head, writes its own model with --worker NAME and
    a .keras file, on the machine where that worker ran. The model of a sealed federation is decrypted with
    --sealed-secret.
    """
    _require_writable(settings)
    with written_to(settings.out) as out:
        version = _written(settings, out)
    typer.echo(f"version {version.rank} of {version.federation} is in {settings.out}")
    if table := version.layout.table:
        typer.echo(f"It takes the columns {', '.join(table.columns)}, and tells {table.label}: {table.told}")
    if version.average_decay and not settings.out.endswith(".fluffle"):
        typer.echo(
            "It is the running average of the versions up to this one, as the evaluators evaluate it "
            f"(--average-versions {version.average_decay:g})."
        )
    if version.copy_of:
        typer.echo(
            f"It is rounded: versions travel in {version.codec} here (--downlink-codec). The last one of a "
            "federation that has finished is exact.",
            err=True,
        )


def _written(settings: ExportSettings, out: Path) -> ModelVersion:
    """Write the version that is wanted to a file, and return it."""
    key = read_key(settings.sealed_secret)
    topology = topology_of(settings.federation)
    with found_federation(settings, topology, name=f"{settings.federation}/model") as broker:
        stored = _chosen(broker, topology, settings.version)
    version = stored.version
    if version.plan.sealed and out.suffix != ".fluffle":
        key = require_key(version.plan.sealed, key, federation=version.federation, who="command")
        version = opened(version, version.plan.sealed, key)
    if settings.task is not None and out.suffix == ".keras":
        _write_keras(settings, settings.task, version, out)
    elif out.suffix == ".fluffle":
        write_record(out, stored.body)
    else:
        about = {"federation": version.federation, "version": str(version.version), "term": str(version.term)}
        if version.average_decay:
            about["average_decay"] = f"{version.average_decay:g}"
        if version.plan.privacy and version.privacy:
            about |= about_privacy(version.plan.privacy, version.privacy)
        write_model(out, version.weights_to_evaluate, about, layout=version.layout)
    return version


def _require_writable(settings: ExportSettings) -> None:
    """Raise ConfigError when a file of this kind cannot hold what is wanted."""
    out = PurePosixPath(settings.out)
    is_keras = out.suffix == ".keras"
    if out.suffix not in (".safetensors", ".keras", ".fluffle"):
        raise ConfigError(f"--out must end in .safetensors, .keras or .fluffle, not {out.name!r}")
    if (settings.quantize or settings.prune) and not is_keras:
        raise ConfigError(f"--quantize and --prune write .keras files, not {out.name!r}")
    if is_keras and settings.task is None:
        raise ConfigError("a .keras file needs --task: it builds the model that the weights are written into")
    if settings.worker and not is_keras:
        raise ConfigError(f"--worker: only a .keras file holds local weights, not {out.name}")


def _write_keras(settings: ExportSettings, task_name: str, version: ModelVersion, out: Path) -> None:
    try:
        task = CheckedTask(_of_table(load_task(task_name), version))
        local = _local_weights(settings, task) if settings.worker else {}
        weights = {**version.weights_to_evaluate, **local}
        if settings.quantize or settings.prune:
            if version.survey and version.survey.result:
                task.use_statistics(version.survey.result)
            export_small(task, weights, out, quantize=bool(settings.quantize), prune=settings.prune)
        else:
            task.save(weights, out)
        if not local and (initial := task.model().local):
            typer.echo(
                f"Each site keeps its own {some_of(initial)}: in this file they have their initial values. "
                "--worker NAME writes the model of one site.",
                err=True,
            )
    except LayoutError as error:
        raise ConfigError(
            f"--task {task_name} has another model than the task of the federation: {error}"
        ) from error


def _of_table(task: Task, version: ModelVersion) -> Task:
    """Return a task of tables with the model of this version, and any other task as it is."""
    table = version.layout.table
    return task.with_table_model(table) if table and isinstance(task, TaskOfTables) else task


def _restore(settings: RestoreSettings) -> None:
    """Put an exported version (.fluffle) back on the broker, for aggregators to go on from.

    For a federation whose head queue is gone, or a new broker after the loss of the old one. Stop all
    aggregators first; the command refuses to run while one leads. The file lists the updates that the model
    contains, so none is counted twice. Server-optimizer moments restart from zero.

    If the file has the newest version of the stream, that version goes to the head queue unchanged. If the
    stream is empty or behind, it goes to both. Nobody knows then which versions came after the file, so its
    term is raised by 1000, and every worker accepts it. The term of a rounded copy (--downlink-codec) is
    raised too. A file that is older than head or stream is refused; with differential privacy so is one after
    which something may have come.
    """
    stored, name = read_record(settings.file), f"{settings.federation}/model"
    with (
        connect(settings, name=name, stop=threading.Event()) as broker,
        logs.console().status("looking at what the broker has"),
    ):
        rank = put_back(broker, topology_of(settings.federation), stored)
    typer.echo(
        f"version {rank} of {settings.federation} is on the broker again: an aggregator that starts goes on "
        "from it"
    )


def _init(settings: InitSettings) -> None:
    """Build version 0 of a task as a file, where TensorFlow is, for an aggregator without it."""
    if settings.out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, not {settings.out.name!r}")
    write_initial_model(settings.task, seed=settings.seed, out=settings.out, source=settings.source("begin"))
    typer.echo(f"version 0 of {settings.task} is in {settings.out}")


def _local_weights(settings: ExportSettings, task: CheckedTask) -> Weights:
    """Return what a worker of this machine has trained for itself."""
    initial = task.model().local
    if not initial:
        raise ConfigError(f"the task {settings.task} has no local weights: leave out --worker")
    folder = settings.spool / settings.federation / str(settings.worker)
    if not (folder / LOCAL).exists():
        raise ConfigError(
            f"there is no {folder / LOCAL}: export on the machine of {settings.worker}, with its --spool"
        )
    return read_local_weights(folder, initial)


def _chosen(broker: Broker, topology: Topology, wanted: str) -> StoredVersion:
    stored = stored_at_hand(broker, topology)
    if stored is None:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    if wanted == "newest":
        return stored
    best, evaluation, which = stored.version.best, stored.version.deciding_evaluation, wanted
    if wanted == "best":
        if best is None and evaluation is not None:
            name = next(iter(evaluation.metrics), "NAME")
            raise ConfigError(
                f"--version best: nothing says whether more or less {name} is better; start the aggregators "
                f'with --best "{name}:max" or "{name}:min", or name the version by its number'
            )
        if best is None:
            raise ConfigError(
                "--version best: no version has been evaluated yet; start `fluffle evaluator`, or workers "
                "with --local-validation"
            )
        kept = best_at_hand(broker, topology, best.version)
        if kept and is_in_history(kept.version.rank, stored.version.terms, stored.version.version):
            return kept
        wanted, which = str(best.version), f"best, which is version {best.version},"
    elif not wanted.isdecimal():
        raise ConfigError(f"--version must be newest, best or a number, not {wanted!r}")
    found = [each for each in all_stored(broker, topology) if each.version.version == int(wanted)]
    if not found:
        raise ConfigError(
            f"--version {which} is not in {topology.models.name} (any more): see `fluffle model list`"
        )
    return found[-1]


app.command("list")(settings_command(ListSettings, _list))
app.command("export")(settings_command(ExportSettings, _export))
app.command("restore")(settings_command(RestoreSettings, _restore))
app.command("init")(settings_command(InitSettings, _init))
