"""Fields that several kinds of messages have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fluffle.errors import WireError
from fluffle.fields import MAX_METRIC_NAME_LENGTH, MAX_METRICS, Fields, is_metric_name
from fluffle.model import Vector
from fluffle.plan import Sends
from fluffle.record import Evaluation, Rank
from fluffle.topology import MAX_MESSAGE_BYTES
from fluffle.update import UpdateId

Header = dict[str, Any]

# A version's record carries its vector as float32, so a longer one could belong to no model.
MAX_PARAMETERS: Final = MAX_MESSAGE_BYTES // 4


def read_sends(fields: Fields) -> Sends:
    """Read what an update carries."""
    return "delta" if fields.choice("sends", ("delta", "weights")) == "delta" else "weights"


def read_id(fields: Fields) -> UpdateId:
    """Read an update's id."""
    return UpdateId(fields.name("worker"), fields.name("run"), fields.integer("sequence", 1))


def read_rank(fields: Fields) -> Rank:
    """Read a rank."""
    return Rank(fields.integer("term", 1), fields.integer("version", 0))


def read_statistics(payload: memoryview) -> Vector:
    """Read float statistics: a copy, since they may lie unaligned behind a compressed vector."""
    return np.frombuffer(payload, "<f4").astype(np.float32)


def metrics_field(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics as they travel. Raises WireError for names that nobody could read."""
    for name in metrics:
        if not is_metric_name(name):
            raise WireError(
                f"the task's metric {name!r} has no name of at most {MAX_METRIC_NAME_LENGTH} characters, "
                "all of them printable"
            )
    if len(metrics) > MAX_METRICS:
        raise WireError(f"the task gives {len(metrics)} metrics, and a message carries at most {MAX_METRICS}")
    # A task may well give numpy's numbers, which msgpack does not know.
    return {name: float(value) for name, value in metrics.items()}


def evaluation_fields(evaluation: Evaluation) -> Header:
    """Return the fields of an evaluation, in a report and in a record."""
    return {
        "evaluator": evaluation.evaluator,
        "version": evaluation.version,
        "metrics": metrics_field(evaluation.metrics),
        "evaluate_s": evaluation.evaluate_s,
    }


def read_evaluation_fields(federation: str, fields: Fields) -> Evaluation:
    """Read those fields."""
    evaluation = Evaluation(
        federation,
        fields.name("evaluator"),
        fields.integer("version", 0),
        fields.numbers("metrics", MAX_METRICS),
        fields.number("evaluate_s"),
    )
    fields.done()
    return evaluation
