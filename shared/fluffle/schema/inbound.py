"""What arrives at an aggregator: updates, evaluations and hellos. Pure."""

from __future__ import annotations

from itertools import pairwise

from fluffle.compression import is_packed, leaves_out, read_vector, require_codec
from fluffle.errors import WireError
from fluffle.fields import MAX_METRICS, Fields
from fluffle.record import Evaluation, Hello
from fluffle.schema.common import (
    MAX_PARAMETERS,
    Header,
    evaluation_fields,
    metrics_field,
    read_evaluation_fields,
    read_id,
    read_sends,
    read_statistics,
)
from fluffle.update import MAX_ABSORBS, WeightUpdate


def update_header(update: WeightUpdate, vector_bytes: int) -> Header:
    """Return the header of an update whose vector travels in so many bytes."""
    return {
        "kind": "update",
        "federation": update.federation,
        "worker": update.id.worker,
        "run": update.id.run,
        "sequence": update.id.sequence,
        "base_term": update.base_term,
        "base_version": update.base_version,
        "layout": update.layout_digest,
        "sends": update.sends,
        "codec": update.codec,
        "parameters": update.vector.size,
        "vector_bytes": vector_bytes,
        "statistics": update.statistics.size,
        "absorbs": list(update.absorbs),
        "examples": int(update.examples),
        "metrics": metrics_field(update.metrics),
        "train_s": update.train_s,
    }


def evaluation_header(evaluation: Evaluation) -> Header:
    """Return the header of an evaluator's report."""
    return {"kind": "evaluation", "federation": evaluation.federation, **evaluation_fields(evaluation)}


def hello_header(hello: Hello) -> Header:
    """Return the header of a hello."""
    return {"kind": "hello", "federation": hello.federation, "name": hello.name}


def read_update(
    federation: str, fields: Fields, payload: memoryview, *, most_parameters: int = MAX_PARAMETERS
) -> WeightUpdate:
    """Read an update; its vector is a view of the payload, unless zstd has to unpack it.

    A vector of more than `most_parameters` is not unpacked.
    """
    codec, update_id, sends = fields.parsed("codec", require_codec), read_id(fields), read_sends(fields)
    if sends == "weights" and leaves_out(codec):
        raise WireError(f"field codec: {codec} leaves out a part of the weights: it is for deltas")
    parameters = fields.integer("parameters", 0, MAX_PARAMETERS)
    if is_packed(codec) and parameters > most_parameters:
        raise WireError(f"field parameters: {parameters} are more than the {most_parameters} of the model")
    vector_bytes = fields.integer("vector_bytes", 0, len(payload))
    try:
        vector = read_vector(codec, parameters, payload[:vector_bytes])
    except ValueError as error:
        raise WireError(f"field vector_bytes: {parameters} parameters in {codec}: {error}") from error
    statistics = fields.integer("statistics", 0, (len(payload) - vector_bytes) // 4)
    statistics_end = vector_bytes + 4 * statistics
    update = WeightUpdate(
        federation=federation,
        id=update_id,
        base_term=fields.integer("base_term", 1),
        base_version=fields.integer("base_version", 0),
        layout_digest=fields.text("layout", 64),
        sends=sends,
        codec=codec,
        vector=vector,
        statistics=read_statistics(payload[vector_bytes:statistics_end]),
        integers=bytes(payload[statistics_end:]),
        examples=fields.integer("examples"),
        metrics=fields.numbers("metrics", MAX_METRICS),
        train_s=fields.number("train_s"),
        absorbs=_absorbs(fields, update_id.sequence),
    )
    fields.done()
    return update


def read_evaluation(federation: str, fields: Fields, payload: memoryview) -> Evaluation:
    """Read an evaluator's report."""
    fields.empty_payload(payload)
    return read_evaluation_fields(federation, fields)


def read_hello(federation: str, fields: Fields, payload: memoryview) -> Hello:
    """Read a hello."""
    fields.empty_payload(payload)
    hello = Hello(federation, fields.name("name"))
    fields.done()
    return hello


def _absorbs(fields: Fields, sequence: int) -> tuple[int, ...]:
    absorbs = fields.integers("absorbs", 1, sequence - 1, max_count=MAX_ABSORBS)
    if any(later <= one for one, later in pairwise(absorbs)):
        raise WireError("field absorbs: expected ascending numbers")
    return tuple(absorbs)
