"""What a live page knows, made of what a test tells it."""

from __future__ import annotations

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
from fluffle_cli.dashboard.state import FederationState
from fluffle_cli.dashboard.table import Wanted
from fluffle_cli.snapshot import QueueStates

NOW = 1_000.0
QUEUES = QueueStates(updates_waiting=3, aggregator_active=True, rejected_waiting=1)


def a_state() -> FederationState:
    """Return what a page knows that has looked at the queues."""
    state = FederationState("digits", NOW)
    state.look(QUEUES, NOW)
    return state


def told(state: FederationState, *events: Event, role: Role = "aggregator", name: str = "first") -> None:
    """Let a part tell something."""
    state.hear(Report("digits", role, name, tuple(Happened(NOW, event) for event in events)), NOW)


def an_applied(worker: str = "w1", sequence: int = 1, *, staleness: int = 0, weight: float = 1.0) -> Applied:
    """Return what a leader tells of an update."""
    return Applied(f"{worker}/r1/{sequence}", 0, staleness, weight, 10, 100, 400)


def a_commit(
    version: int, updates: int, *, term: int = 1, finished: str = "", best: int = -1, rejected: int = 0
) -> Committed:
    """Return what a leader tells of a version."""
    return Committed(
        version, term, updates, rejected, 0, best, float(version), 0.1, finished, "accuracy:max", 0.0
    )


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
    return [found.says for found in state.snapshot(NOW).findings]


def updates_of(state: FederationState) -> dict[str, int]:
    """Return the updates of each worker in the table."""
    return {row["name"]: row["updates"] for row in rows_of(state.page(Wanted(), NOW))}
