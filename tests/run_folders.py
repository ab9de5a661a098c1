"""Runs with one federation, as `fluffle demo` leaves them in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from builders import a_version, an_evaluation

from fluffle.record import Contributor, Folded
from fluffle.update import UpdateId
from fluffle_cli.report.run import (
    EVENTS,
    METRICS,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    write_summary,
)
from fluffle_cli.watching.view import Happening, Version

BEGAN_AT = 1_700_000_000.0
REFUSED = Contributor(rejected=4, refusal="bad-layout: another model")
HOSTILE = "<script>alert('$\\frac{')</script>"
STORY = [
    Happening(at=BEGAN_AT - 2, name="aggregator-1", what="joined"),
    Happening(at=BEGAN_AT, name="aggregator-1", what="tookover", detail="leads from version 0 on, as term 1"),
    Happening(at=BEGAN_AT + 3, name="aggregator-1", what="died", detail="was ended by signal 9"),
    Happening(at=BEGAN_AT + 3.5, name="aggregator-2", what="tookover", detail="leads as term 2"),
    Happening(at=BEGAN_AT + 4, name="site-3", what="rejected", reason="too-stale", detail="20 versions late"),
]


def a_line(version: int, accuracy: float, workers: Sequence[str], term: int = 1) -> Version:
    record = replace(
        a_version(version, term=term),
        committed_at=BEGAN_AT + 2 * version,
        contributors={name: Contributor(version, 10, version, float(version), 1) for name in workers},
        folded=tuple(Folded(UpdateId("site-1", "r", version), 0, 1, 1.0) for _ in workers if version),
        evaluation=an_evaluation(version - 1, {"accuracy": accuracy}) if version else None,
        best=an_evaluation(3, {"accuracy": 0.8}) if version > 3 else None,
        best_by="accuracy:max" if version > 3 else "",
        rejected=version,
    )
    return Version.of(record)


def a_federation(*versions: Version, happened: Sequence[Happening] = ()) -> FederationRun:
    about = AboutFederation(strategy="fedbuff", folder=".")
    return FederationRun(about=about, versions=versions, happened=happened)


def a_run(
    folder: Path,
    *,
    workers: Sequence[str] = ("site-1", "site-2"),
    target: str = "accuracy>=0.8",
    happened: Sequence[Happening] = (),
    refused: Contributor | None = None,
    settings: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write the files of a run with one federation, and return its folder."""
    folder.mkdir()
    lines = [a_line(number, 0.2 * number, workers, 1 + number // 3) for number in range(6)]
    if refused:
        lines[-1] = replace(lines[-1], contributors={**lines[-1].contributors, "site-9": refused})
    federation = a_federation(*lines)
    about = About(
        task="digits",
        seed=0,
        target=target,
        runs=[federation.about],
        metric_shown="accuracy",
        settings=settings or {},
        versions=versions or {},
    )
    append_lines(folder / METRICS, lines)
    append_lines(folder / EVENTS, happened)
    write_summary(Run(folder=folder, about=about, federations=[federation]))
    return folder
