"""The folder of a run, as `fluffle demo` and `fluffle report --from-broker` write it, read with suspicion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle_cli.report import happenings, summary
from fluffle_cli.report.happenings import Happening, read_happenings
from fluffle_cli.report.metrics import VersionRow, read_rows, standing_of
from fluffle_cli.report.summary import RunSummary, Summary, read_summary
from fluffle_cli.standing import Standing

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationRun:
    """One federation of a run: what it came to, its versions, and what else happened."""

    about: RunSummary
    folder: Path
    rows: Sequence[VersionRow]
    happened: Sequence[Happening]

    @property
    def standing(self) -> Standing:
        """What it is judged by."""
        return standing_of(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run: its folder, its summary and its federations."""

    folder: Path
    summary: Summary
    federations: Sequence[FederationRun]


def read_run(folder: Path) -> Run:
    """Read a run's files. Raises ConfigError that names the file that is missing, or is no such file."""
    if not (folder / summary.FILE).is_file():
        raise ConfigError(
            f"{folder} has no {summary.FILE}: give the folder of a run that has finished, as `fluffle demo` "
            "makes it (runs/...); of a federation that is on RabbitMQ, --from-broker makes one"
        )
    try:
        about = read_summary(folder)
    except (OSError, ValueError) as error:
        raise _unreadable(folder / summary.FILE, error) from error
    return Run(
        folder=folder,
        summary=about,
        federations=[_read_federation(folder, each) for each in about.runs],
    )


def _read_federation(folder: Path, about: RunSummary) -> FederationRun:
    place = folder / about.folder
    # The file may be anybody's, and pictures are written there.
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{folder / summary.FILE} names a folder outside its own: {about.folder!r}")
    try:
        rows = list(read_rows(place / METRICS))
    except (OSError, ValueError) as error:
        raise _unreadable(place / METRICS, error) from error
    if not rows:
        raise ConfigError(f"{place / METRICS} has no version in it: nothing was trained")
    try:
        happened = read_happenings(place / happenings.FILE)
    except (OSError, ValueError) as error:
        raise _unreadable(place / happenings.FILE, error) from error
    return FederationRun(about=about, folder=place, rows=rows, happened=happened)


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:300]
    return ConfigError(f"{path} cannot be read as a file of a run: {why}")
