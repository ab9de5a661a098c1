"""Makes the folder of a run from what RabbitMQ still has of a federation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.progress import track

from fluffle import logs
from fluffle.errors import AccessRefused, ConfigError, TopologyMissing
from fluffle.model_stream import all_records
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import Topology
from fluffle_cli.rejected import read_rejected
from fluffle_cli.report import happenings
from fluffle_cli.report.empty_folder import make_empty_folder
from fluffle_cli.report.happenings import REJECTED, Happening
from fluffle_cli.report.metrics import VersionRow, append_row, first_round_at, row_of
from fluffle_cli.report.run_folder import METRICS
from fluffle_cli.report.summary import Summary, run_summary, write_summary
from fluffle_cli.report.versions import versions_in_use
from fluffle_cli.standing import metric_to_show

log = logs.get_logger(__name__)


def make_run(broker: RabbitBroker, topology: Topology, folder: Path) -> None:
    """Write a federation's versions, as far back as the stream has them, and what was refused.

    The seconds count from the start of the first round, or else from the oldest of them. Raises ConfigError
    when the folder has something in it, and TopologyMissing when there is no version. The connection is of no
    use for anything else afterwards.
    """
    make_empty_folder(folder)
    watched = track(
        all_records(broker, topology), "reading the records", transient=True, console=logs.console()
    )
    rows, newest, began_at = write_rows(folder, watched)
    if newest is None:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    best_by = newest.best_by.rpartition(":")[0]
    metric = metric_to_show(newest.evaluation.metrics if newest.evaluation else {}, best_by)
    run = run_summary(
        strategy=newest.strategy.partition("(")[0],
        folder=".",
        rows=rows,
        target=None,
        final={},
        began_at=began_at,
    )
    write_summary(
        folder,
        Summary(
            task=topology.federation,
            seed=None,
            target="",
            delays_s=[],
            central={},
            runs=[run],
            metric_shown=metric or "accuracy",
            settings=_settings(newest),
            versions=versions_in_use(broker.server),
        ),
    )
    happenings.append(folder / happenings.FILE, _refusals(broker, topology))


def write_rows(
    folder: Path, versions: Iterable[ModelVersion]
) -> tuple[list[VersionRow], ModelVersion | None, float]:
    """Write a line for each version, and return the lines, the newest version and when the first round began.

    Versions before the first update may be there for long before anybody trains.
    """
    untrained: list[ModelVersion] = []
    rows: list[VersionRow] = []
    newest: ModelVersion | None = None
    began_at: float | None = None
    for newest in versions:
        if began_at is None:
            untrained.append(newest)
            if not newest.updates:
                continue
            first = untrained[0]
            # Of one that is not the first, nobody knows when its round began.
            began_at = first.committed_at if first.updates else first_round_at(newest) or first.committed_at
            began_at = max(began_at, first.committed_at)
        for version in untrained or [newest]:
            rows.append(row_of(version, started_at=began_at))
            append_row(folder / METRICS, rows[-1])
        untrained.clear()
    for version in untrained:
        began_at = began_at or version.committed_at
        rows.append(row_of(version, started_at=began_at))
        append_row(folder / METRICS, rows[-1])
    return rows, newest, began_at or 0.0


def _settings(newest: ModelVersion) -> dict[str, str]:
    plan = {f"plan: {name.replace('_', ' ')}": str(value) for name, value in asdict(newest.plan).items()}
    size = f"{newest.layout.size:,}"
    return {"federation": newest.federation, "strategy": newest.strategy, "parameters": size, **plan}


def _refusals(broker: RabbitBroker, topology: Topology) -> list[Happening]:
    try:
        return [
            Happening(
                at=message.at or 0.0,
                name=message.worker,
                what=REJECTED,
                reason=message.reason,
                detail=f"{message.id}: {message.detail}" if message.id else message.detail,
            )
            for message, _ in read_rejected(broker, topology)
        ]
    except (AccessRefused, ConfigError) as error:
        log.warning("the report does not say why messages were refused", because=str(error))
        return []
