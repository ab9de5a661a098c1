"""What is found out after the end, by a child process that has the task's framework."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalMetrics:
    """The metrics of each final model, in their order, and of the one that was trained in one place."""

    finals: Sequence[Metrics]
    central: Metrics


def write_final_metrics(path: Path, found: FinalMetrics) -> None:
    """Write them for the parent process."""
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")


def read_final_metrics(path: Path) -> FinalMetrics:
    """Read what the child wrote."""
    return FinalMetrics(**json.loads(path.read_text(encoding="utf-8")))
