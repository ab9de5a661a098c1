"""Makes the folder of a run from what RabbitMQ still has of a federation."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.progress import track

from fluffle import logs
from fluffle.errors import AccessRefused, ConfigError, TopologyMissing
from fluffle.rabbit import RabbitBroker
from fluffle.topology import Topology
from fluffle_cli.rejected import read_rejected
from fluffle_cli.report.run import (
    EVENTS,
    METRICS,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    make_empty_folder,
    versions_in_use,
    write_summary,
)
from fluffle_cli.watching.state import REJECTED
from fluffle_cli.watching.view import Happening, Version, metric_to_show
from fluffle_cli.watching.watcher import all_versions

log = logs.get_logger(__name__)


def make_run(broker: RabbitBroker, topology: Topology, folder: Path) -> None:
    """Write a federation's versions, as far back as the stream has them, and what was refused.

    Raises ConfigError when the folder has something in it, and TopologyMissing when there is no version. The
    connection is of no use for anything else afterwards.
    """
    make_empty_folder(folder)
    records = all_versions(broker, topology)
    versions = list(track(records, "reading the records", transient=True, console=logs.console()))
    if not versions:
        raise TopologyMissing(f"the federation {topology.federation!r} has no version yet")
    append_lines(folder / METRICS, versions)
    newest = versions[-1]
    best_by = newest.best_by.rpartition(":")[0]
    metric = metric_to_show(newest.evaluation.metrics if newest.evaluation else {}, best_by)
    federation = AboutFederation(strategy=newest.strategy.partition("(")[0], folder=".")
    about = About(
        task=topology.federation,
        runs=[federation],
        metric_shown=metric or "accuracy",
        settings=_settings(newest),
        versions=versions_in_use(broker.server),
    )
    run = FederationRun(about=federation, folder=folder, versions=versions)
    write_summary(Run(folder=folder, about=about, federations=[run]))
    try:
        append_lines(folder / EVENTS, _refusals(broker, topology))
    except (AccessRefused, ConfigError) as error:
        log.warning("the report does not say why messages were refused", because=str(error))


def _settings(newest: Version) -> dict[str, str]:
    plan = {f"plan: {name.replace('_', ' ')}": str(value) for name, value in asdict(newest.plan).items()}
    size = f"{newest.parameters:,}"
    return {"federation": newest.federation, "strategy": newest.strategy, "parameters": size, **plan}


def _refusals(broker: RabbitBroker, topology: Topology) -> Iterator[Happening]:
    for message, _ in read_rejected(broker, topology):
        yield Happening(
            at=message.at or 0.0,
            name=message.worker,
            what=REJECTED,
            reason=message.reason,
            detail=f"{message.id}: {message.detail}" if message.id else message.detail,
        )
