"""What stands in each kind of message: values to header maps, and header maps and payloads to values. Pure.

docs/protocol.md has the same as tables. What is read is checked field by field; every fault is a WireError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.compression import (
    decompressed,
    is_packed,
    leaves_out,
    read_vector,
    require_codec,
    require_downlink_codec,
)
from fluffle.errors import LayoutError, WireError
from fluffle.fields import MAX_METRIC_NAME_LENGTH, Fields, is_metric_name
from fluffle.model import FLOATS, INTEGERS, Layout, TensorSpec
from fluffle.plan import Plan, Sends
from fluffle.record import MAX_NORMS, Contributor, Evaluation, Folded, Hello, ModelVersion, Moments, Rank
from fluffle.topology import MAX_MESSAGE_BYTES
from fluffle.update import MAX_ABSORBS, Applied, RunLog, UpdateId, WeightUpdate

Header = dict[str, Any]

MAX_METRICS: Final = 64
# A version's record carries its vector as float32, so a longer one could belong to no model.
MAX_PARAMETERS: Final = MAX_MESSAGE_BYTES // 4
# numpy knows no more dimensions.
MAX_DIMENSIONS: Final = 64
MAX_MOMENTS: Final = 8
FOLDED_FACTS: Final = ("base_version", "staleness", "weight", "published_at", "received_at")
FOLDED_COLUMNS: Final = ("worker", "run", "sequence", *FOLDED_FACTS)
CONTRIBUTOR_COLUMNS: Final = tuple(Contributor.__dataclass_fields__)


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
        "absorbs": list(update.absorbs),
        "examples": int(update.examples),
        "metrics": _numbers(update.metrics),
        "train_s": update.train_s,
    }


def evaluation_header(evaluation: Evaluation) -> Header:
    """Return the header of an evaluator's report."""
    return {"kind": "evaluation", "federation": evaluation.federation, **_evaluation_fields(evaluation)}


def hello_header(hello: Hello) -> Header:
    """Return the header of a hello."""
    return {"kind": "hello", "federation": hello.federation, "name": hello.name}


def moments_header(moments: Moments) -> Header:
    """Return the header of a server optimizer's moments."""
    return {
        "kind": "moments",
        "federation": moments.federation,
        "term": moments.rank.term,
        "version": moments.rank.version,
        "names": list(moments.vectors),
    }


def version_header(version: ModelVersion) -> Header:
    """Return the header of a version's record."""
    plan = version.plan
    return {
        "kind": "version",
        "federation": version.federation,
        "term": version.term,
        "version": version.version,
        "parent": version.parent,
        "terms": [[began.term, began.version] for began in version.terms],
        "layout": [[spec.name, list(spec.shape), spec.dtype] for spec in version.layout.tensors],
        "plan": {name: getattr(plan, name) for name in Plan.__dataclass_fields__},
        "strategy": version.strategy,
        "applied": [
            [worker, run, log.highest, [list(gap) for gap in log.gaps]]
            for (worker, run), log in version.applied.runs.items()
        ],
        "folded": [
            [one.id.worker, one.id.run, one.id.sequence, *(getattr(one, fact) for fact in FOLDED_FACTS)]
            for one in version.folded
        ],
        "norms": list(version.norms),
        "contributors": {
            name: [getattr(one, each) for each in Contributor.__dataclass_fields__]
            for name, one in version.contributors.items()
        },
        "rejected": version.rejected,
        "evaluation": version.evaluation and _evaluation_fields(version.evaluation),
        "best": version.best and _evaluation_fields(version.best),
        "target_held": version.target_held,
        "elapsed_s": version.elapsed_s,
        "committed_at": version.committed_at,
        "finished": version.finished,
        "moments": version.moments_checksum,
    }


def copy_header(version: ModelVersion, codec: str, digest: str) -> Header:
    """Return the header of a copy of a version's record, which has this digest."""
    return {**version_header(version), "kind": "copy", "codec": codec, "exact": digest}


def read_update(
    federation: str, fields: Fields, payload: memoryview, *, most_parameters: int = MAX_PARAMETERS
) -> WeightUpdate:
    """Read an update; its vector is a view of the payload, unless zstd has to unpack it.

    A vector of more than `most_parameters` is not unpacked.
    """
    codec, update_id, sends = fields.parsed("codec", require_codec), _id(fields), _sends(fields)
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
    update = WeightUpdate(
        federation=federation,
        id=update_id,
        base_term=fields.integer("base_term", 1),
        base_version=fields.integer("base_version", 0),
        layout_digest=fields.text("layout", 64),
        sends=sends,
        codec=codec,
        vector=vector,
        integers=bytes(payload[vector_bytes:]),
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
    return _evaluation(federation, fields)


def read_hello(federation: str, fields: Fields, payload: memoryview) -> Hello:
    """Read a hello."""
    fields.empty_payload(payload)
    hello = Hello(federation, fields.name("name"))
    fields.done()
    return hello


def read_moments(federation: str, fields: Fields, payload: memoryview) -> Moments:
    """Read a server optimizer's moments; their vectors are views of the payload."""
    rank = _rank(fields)
    names = fields.texts("names", 64, max_count=MAX_MOMENTS)
    fields.done()
    if not names:
        fields.empty_payload(payload)
        return Moments(federation, rank, {})
    if len(set(names)) != len(names) or len(payload) % (4 * len(names)):
        raise WireError(f"field names: {len(names)} vectors cannot share {len(payload)} bytes")
    parts = np.split(np.frombuffer(payload, "<f4"), len(names))
    return Moments(federation, rank, dict(zip(names, parts, strict=True)))


def read_copy(federation: str, fields: Fields, payload: memoryview) -> ModelVersion:
    """Read a copy of a version's record; its vector is unpacked to float32."""
    codec, exact = fields.parsed("codec", require_downlink_codec), fields.text("exact", 64)
    if not exact:
        raise WireError("field exact: a copy names the record that it is of")
    return replace(read_version(federation, fields, payload, codec=codec), codec=codec, copy_of=exact)


def read_version(
    federation: str, fields: Fields, payload: memoryview, *, codec: str = "float32"
) -> ModelVersion:
    """Read a version's record; its vector, if it is float32, is a view of the payload."""
    rank = _rank(fields)
    layout = _layout(fields)
    vector_bytes = len(payload) - layout.integers_size_bytes
    # Its record has it as float32: no codec makes room for a larger model.
    if layout.size > MAX_PARAMETERS or vector_bytes < 0:
        raise WireError(
            f"field layout: {layout.size} floats and {layout.integers_size_bytes} bytes of integers have no "
            f"room in a payload of {len(payload)} bytes"
        )
    try:
        vector = read_vector(codec, layout.size, payload[:vector_bytes])
    except ValueError as error:
        raise WireError(f"field layout: {layout.size} floats in {codec}: {error}") from error
    version = ModelVersion(
        federation=federation,
        term=rank.term,
        version=rank.version,
        parent=fields.text("parent", 64),
        terms=_terms(fields),
        layout=layout,
        plan=_plan(fields.map("plan")),
        strategy=fields.text("strategy", 256),
        vector=vector.values if isinstance(vector, Float32Vector) else decompressed(vector),
        integers=bytes(payload[vector_bytes:]),
        applied=_applied(fields),
        folded=tuple(
            Folded(
                _id(row),
                row.integer("base_version", 0),
                row.integer("staleness", 0),
                row.number("weight"),
                row.number("published_at"),
                row.number("received_at"),
            )
            for row in fields.rows("folded", FOLDED_COLUMNS)
        ),
        norms=tuple(fields.magnitudes("norms", max_count=MAX_NORMS)),
        contributors={
            worker: Contributor(
                row.integer("updates", 0),
                row.integer("examples", 0),
                row.integer("staleness_sum", 0),
                row.number("weight_sum"),
                row.integer("rejected", 0),
                row.number("last_update_at"),
            )
            for worker, row in fields.named_rows("contributors", CONTRIBUTOR_COLUMNS)
        },
        rejected=fields.integer("rejected", 0),
        evaluation=_evaluation_or_nil(federation, fields, "evaluation"),
        best=_evaluation_or_nil(federation, fields, "best"),
        target_held=fields.integer("target_held", 0),
        elapsed_s=fields.number("elapsed_s"),
        committed_at=fields.number("committed_at"),
        finished=fields.text("finished", 256),
        moments_checksum=None if fields.is_nil("moments") else fields.integer("moments", 0),
    )
    fields.done()
    return version


def _evaluation_fields(evaluation: Evaluation) -> Header:
    return {
        "evaluator": evaluation.evaluator,
        "version": evaluation.version,
        "metrics": _numbers(evaluation.metrics),
        "evaluate_s": evaluation.evaluate_s,
    }


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
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


def _evaluation(federation: str, fields: Fields) -> Evaluation:
    evaluation = Evaluation(
        federation,
        fields.name("evaluator"),
        fields.integer("version", 0),
        fields.numbers("metrics", MAX_METRICS),
        fields.number("evaluate_s"),
    )
    fields.done()
    return evaluation


def _evaluation_or_nil(federation: str, fields: Fields, name: str) -> Evaluation | None:
    if fields.is_nil(name):
        return None
    return _evaluation(federation, fields.map(name))


def _rank(fields: Fields) -> Rank:
    return Rank(fields.integer("term", 1), fields.integer("version", 0))


def _terms(fields: Fields) -> tuple[Rank, ...]:
    terms = tuple(_rank(row) for row in fields.rows("terms", ("term", "version")))
    if not terms or any(
        later.term <= one.term or later.version < one.version for one, later in pairwise(terms)
    ):
        raise WireError("field terms: expected one or more, in ascending order")
    return terms


def _layout(fields: Fields) -> Layout:
    try:
        return Layout(tuple(_tensor(row) for row in fields.rows("layout", ("name", "shape", "dtype"))))
    except LayoutError as error:
        raise WireError(f"field layout: {error}") from error


def _tensor(row: Fields) -> TensorSpec:
    shape = row.integers("shape", 0, MAX_PARAMETERS * 4, max_count=MAX_DIMENSIONS)
    # numpy multiplies the others even where a dimension of zero leaves nothing.
    if math.prod(dimension or 1 for dimension in shape) > MAX_PARAMETERS * 4:
        raise WireError(f"field layout: a tensor of shape {shape} is larger than any message")
    return TensorSpec(row.text("name", 1024), tuple(shape), row.choice("dtype", (*FLOATS, *INTEGERS)))


def _plan(fields: Fields) -> Plan:
    plan = Plan(
        local_epochs=fields.integer("local_epochs", 1),
        local_steps=None if fields.is_nil("local_steps") else fields.integer("local_steps", 1),
        batch_size=fields.integer("batch_size", 1),
        learning_rate=None if fields.is_nil("learning_rate") else fields.number("learning_rate"),
        proximal_mu=fields.number("proximal_mu"),
        sends=_sends(fields),
        codec=fields.parsed("codec", require_codec),
        one_update_per_version=fields.take("one_update_per_version", bool),
    )
    fields.done()
    return plan


def _sends(fields: Fields) -> Sends:
    return "delta" if fields.choice("sends", ("delta", "weights")) == "delta" else "weights"


def _id(fields: Fields) -> UpdateId:
    return UpdateId(fields.name("worker"), fields.name("run"), fields.integer("sequence", 1))


def _absorbs(fields: Fields, sequence: int) -> tuple[int, ...]:
    absorbs = fields.integers("absorbs", 1, sequence - 1, max_count=MAX_ABSORBS)
    if any(later <= one for one, later in pairwise(absorbs)):
        raise WireError("field absorbs: expected ascending numbers")
    return tuple(absorbs)


def _applied(fields: Fields) -> Applied:
    runs: dict[tuple[str, str], RunLog] = {}
    for row in fields.rows("applied", ("worker", "run", "highest", "gaps")):
        run = row.name("worker"), row.name("run")
        if run in runs:
            raise WireError(f"field applied: run {run[1]} of {run[0]} stands there twice")
        highest = row.integer("highest", 0)
        runs[run] = RunLog(highest, tuple(_gaps(row, highest)))
    return Applied(runs)


def _gaps(row: Fields, highest: int) -> Iterator[tuple[int, int]]:
    """Yield the gaps, which ascend below the highest number; the one before ends at `below`."""
    below = 0
    for gap in row.rows("gaps", ("first", "last")):
        first = gap.integer("first", below + 1, highest)
        below = gap.integer("last", first, highest)
        yield first, below
