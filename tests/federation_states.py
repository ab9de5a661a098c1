"""What is known of a federation, made of what a test says of it."""

from dataclasses import replace
from typing import Any

from builders import a_version

from fluffle.events import (
    Applied,
    Committed,
    Event,
    Happened,
    Report,
    Role,
)
from fluffle.record import Contributor, ModelVersion
from fluffle_cli.dashboard.table import page_of
from fluffle_cli.watching.as_json import as_json
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates, Version

NOW = 1_000.0
QUEUES = QueueStates(updates_waiting=3, aggregator_active=True, rejected_waiting=1)


def a_state() -> FederationState:
    """Return the state of somebody who listens and has looked at the queues."""
    state = FederationState("digits", NOW)
    state.listen_from(NOW)
    state.look(QUEUES, NOW)
    return state


def a_view(*records: ModelVersion, now: float = 100.0, queues: QueueStates | None = None) -> FederationView:
    """Return what is known of a federation whose records were read, and whose queues were looked at."""
    state = FederationState("digits", now)
    if queues:
        state.look(queues, now)
    read(state, *records)
    return state.view(now)


def read(state: FederationState, *records: ModelVersion) -> None:
    """Let a state read records."""
    for record in records:
        state.read(Version.of(record))


def picture(state: FederationState, now: float = NOW) -> dict[str, Any]:
    """Return what the page is given, but for the workers."""
    return as_json(state.view(now))


def page(state: FederationState, *, now: float = NOW, **wanted: Any) -> dict[str, Any]:
    """Return a page of the table of workers."""
    return page_of(state.view(now), **wanted)


def told(state: FederationState, *events: Event, role: Role = "aggregator", name: str = "first") -> None:
    """Let a part tell something."""
    state.hear(Report("digits", role, name, tuple(Happened(NOW, event) for event in events)), NOW)


def an_applied(*, staleness: int = 0, weight: float = 1.0) -> Applied:
    """Return what a leader tells of an update."""
    return Applied(staleness, weight, 10, 100, 400)


def a_commit(version: int) -> Committed:
    """Return what a leader tells of a version."""
    return Committed(version, 1, 0.1, float(version), 0, -1)


def a_record(number: int, **contributors: Contributor) -> ModelVersion:
    """Return a record with these contributors."""
    return replace(a_version(number), contributors=contributors)


def rows_of(page: dict[str, object]) -> list[dict[str, Any]]:
    """Return the rows of a page of the table."""
    rows = page["rows"]
    assert isinstance(rows, list)
    return rows


def says_of(state: FederationState) -> list[str]:
    """Return what is said to be wrong."""
    return [found.says for found in findings_of(state.view(NOW))]


def updates_of(state: FederationState) -> dict[str, int]:
    """Return the updates of each worker in the table."""
    return {row["name"]: row["updates"] for row in rows_of(page(state))}
