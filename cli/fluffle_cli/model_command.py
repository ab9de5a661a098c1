"""`fluffle model`: lists and exports versions of the model, and builds version 0 for an aggregator."""

from __future__ import annotations

import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table

from fluffle.broker import Broker
from fluffle.command_line import new_app, settings_command
from fluffle.connection import connect_to_federation
from fluffle.errors import ConfigError, LayoutError, TopologyMissing
from fluffle.initial_model import write_initial_model
from fluffle.models import all_versions, version_at_hand
from fluffle.record import ModelVersion
from fluffle.safetensors_file import write_model
from fluffle.settings import SharedSettings
from fluffle.task import load_task
from fluffle.topology import Topology, topology_of

app = new_app("List and export versions of the model, or build version 0.")


class ListSettings(SharedSettings):
    """Flags of `fluffle model list`."""

    part: ClassVar[str] = "model"


class ExportSettings(ListSettings):
    """Flags of `fluffle model export`."""

    out: Path = Field(
        Path("model.safetensors"), description="File to write: .safetensors, or .keras (needs the task)."
    )
    version: str = Field("newest", description="Which version: newest, best, or a number from `model list`.")
    task: str = Field("digits", description="Task that knows how to write a .keras file.")


class InitSettings(ListSettings):
    """Flags of `fluffle model init`."""

    task: str = Field("digits", description="Task whose seeded weights are built; it may load TensorFlow.")
    seed: int = Field(0, ge=0, description="Seed of the weights.")
    out: Path = Field(Path("initial.safetensors"), description="File to write, for --initial-model.")


def list_versions(settings: ListSettings) -> None:
    """Print a table of the versions that the stream still holds."""
    topology = topology_of(settings.federation)
    table = Table("version", "term", "updates", "size", "committed", "evaluated", "", show_edge=False)
    evaluated: dict[int, str] = {}
    rows: list[tuple[ModelVersion, int]] = []
    with _connected(settings, topology) as broker:
        for version in track(all_versions(broker, topology), "reading", transient=True, console=_ERRORS):
            if version.evaluation:
                shown = ", ".join(f"{name} {value:.3g}" for name, value in version.evaluation.metrics.items())
                evaluated[version.evaluation.version] = shown
            rows.append((version, version.vector.nbytes + len(version.integers)))
    if not rows:
        raise TopologyMissing(
            f"the federation {settings.federation!r} has no version yet: start its aggregator"
        )
    newest = rows[-1][0]
    for version, size_bytes in rows:
        marks = ["best"] if newest.best and newest.best.version == version.version else []
        marks += ["finished"] if version.finished else []
        table.add_row(
            str(version.version),
            str(version.term),
            str(version.updates),
            decimal(size_bytes),
            f"{datetime.fromtimestamp(version.committed_at):%Y-%m-%d %H:%M:%S}",
            evaluated.get(version.version, ""),
            ", ".join(marks),
        )
    # A line per version, also where no terminal says how wide it is.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def export(settings: ExportSettings) -> None:
    """Write one version to a file."""
    if settings.out.suffix not in (".safetensors", ".keras"):
        raise ConfigError(f"--out must end in .safetensors or .keras, not {settings.out.name!r}")
    topology = topology_of(settings.federation)
    with _connected(settings, topology) as broker:
        version = _chosen(broker, topology, settings.version)
    weights = version.layout.restore(version.vector, version.integers)
    if settings.out.suffix == ".keras":
        try:
            load_task(settings.task).save(weights, settings.out)
        except LayoutError as error:
            raise ConfigError(
                f"--task {settings.task} has another model than the federation: give the task that it trains "
                f"({error})"
            ) from error
    else:
        about = {"federation": version.federation, "version": str(version.version), "term": str(version.term)}
        write_model(settings.out, weights, about)
    Console().print(f"version {version.rank} of {version.federation} is in {settings.out}", highlight=False)


def init(settings: InitSettings) -> None:
    """Write a task's seeded weights to a file."""
    if settings.out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, not {settings.out.name!r}")
    write_initial_model(settings.task, seed=settings.seed, out=settings.out)
    Console().print(f"version 0 of {settings.task} is in {settings.out}", highlight=False)


def _chosen(broker: Broker, topology: Topology, wanted: str) -> ModelVersion:
    newest = version_at_hand(broker, topology)
    if newest is None:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    if wanted == "newest":
        return newest
    if wanted == "best":
        if newest.best is None:
            raise ConfigError("--version best: no version has been evaluated yet; start `fluffle evaluator`")
        number = newest.best.version
    elif wanted.isdecimal():
        number = int(wanted)
    else:
        raise ConfigError(f"--version must be newest, best or a number, not {wanted!r}")
    found = [version for version in all_versions(broker, topology) if version.version == number]
    if not found:
        raise ConfigError(f"--version {number} is not in the stream (any more): see `fluffle model list`")
    return found[-1]


def _connected(settings: SharedSettings, topology: Topology) -> Broker:
    # Whoever asks for a list is not to wait for a federation that may never come.
    impatient = settings.model_copy(update={"connect_timeout_s": min(settings.connect_timeout_s, 5.0)})
    name = f"{settings.federation}/model"
    return connect_to_federation(impatient, topology, name=name, stop=threading.Event())


_ERRORS = Console(stderr=True)

app.command("list")(
    settings_command(ListSettings, list_versions, about="List the versions that the stream still holds.")
)
app.command("export")(
    settings_command(ExportSettings, export, about="Write one version of the model to a file.")
)
app.command("init")(
    settings_command(
        InitSettings,
        init,
        about="Build version 0 of a task as a file, where TensorFlow is, for an aggregator without it.",
    )
)
