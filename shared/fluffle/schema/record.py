"""What an aggregator publishes: versions, copies of them, and a server optimizer's moments. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.compression import decompressed, read_vector, require_codec, require_downlink_codec
from fluffle.errors import LayoutError, WireError
from fluffle.fields import MAX_METRIC_NAME_LENGTH, Fields
from fluffle.model import (
    FLOATS,
    INTEGERS,
    SHARED_GROUPS,
    FlatWeights,
    FrozenPart,
    Layout,
    TensorSpec,
    no_values,
)
from fluffle.plan import Plan
from fluffle.record import (
    MAX_NORMS,
    MAX_REFUSAL_LENGTH,
    Contributor,
    Evaluation,
    Folded,
    ModelVersion,
    Moments,
    PlateauState,
    Rank,
)
from fluffle.schema.common import (
    MAX_PARAMETERS,
    Header,
    evaluation_fields,
    read_evaluation_fields,
    read_id,
    read_rank,
    read_sends,
    read_statistics,
)
from fluffle.update import AppliedUpdates, RunLog

# numpy knows no more dimensions.
MAX_DIMENSIONS: Final = 64
MAX_MOMENTS: Final = 8
MAX_TENSOR_NAME_LENGTH: Final = 1024
MAX_REASON_LENGTH: Final = 256
FOLDED_FACTS: Final = (
    *("base_version", "staleness", "weight", "published_at", "received_at"),
    *("loss", "train_s"),
)
FOLDED_COLUMNS: Final = ("worker", "run", "sequence", *FOLDED_FACTS)
CONTRIBUTOR_COLUMNS: Final = tuple(Contributor.__dataclass_fields__)


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
        "layout": [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in version.layout.tensors],
        "frozen": _frozen_row(version.layout.frozen),
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
        "evaluation": version.evaluation and evaluation_fields(version.evaluation),
        "best": version.best and evaluation_fields(version.best),
        "best_by": version.best_by,
        "target_held": version.target_held,
        "not_finite_held": version.not_finite_held,
        "plateau": [version.plateau.misses, version.plateau.drops],
        "window": [list(row) for row in version.window],
        "elapsed_s": version.elapsed_s,
        "started_s": version.started_s,
        "committed_at": version.committed_at,
        "closing": version.closing,
        "finished": version.finished,
        "moments": version.moments_checksum,
    }


def copy_header(version: ModelVersion, codec: str, digest: str) -> Header:
    """Return the header of a copy of a version's record, which has this digest."""
    return {**version_header(version), "kind": "copy", "codec": codec, "exact": digest}


def read_moments(federation: str, fields: Fields, payload: memoryview) -> Moments:
    """Read a server optimizer's moments; their vectors are views of the payload."""
    rank = read_rank(fields)
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
    federation: str, fields: Fields, payload: memoryview | None, *, codec: str = "float32"
) -> ModelVersion:
    """Read a version's record; its vector, if it is float32, is a view of the payload.

    Without a payload it has no weights.
    """
    rank = read_rank(fields)
    layout = _layout(fields)
    weights = (
        FlatWeights(no_values(), no_values(), b"") if payload is None else _weights(layout, payload, codec)
    )
    version = ModelVersion(
        federation=federation,
        term=rank.term,
        version=rank.version,
        parent=fields.text("parent", 64),
        terms=_terms(fields),
        layout=layout,
        plan=_plan(fields.map("plan")),
        strategy=fields.text("strategy", 256),
        vector=weights.vector,
        statistics=weights.statistics,
        integers=weights.integers,
        applied=_applied(fields),
        folded=tuple(
            Folded(
                read_id(row),
                row.integer("base_version", 0),
                row.integer("staleness", 0),
                row.number("weight"),
                row.number("published_at"),
                row.number("received_at"),
                row.number_or_nil("loss"),
                row.number("train_s"),
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
                row.number_or_nil("loss"),
                row.text("refusal", MAX_REFUSAL_LENGTH),
            )
            for worker, row in fields.named_rows("contributors", CONTRIBUTOR_COLUMNS)
        },
        rejected=fields.integer("rejected", 0),
        evaluation=_evaluation_or_nil(federation, fields, "evaluation"),
        best=_evaluation_or_nil(federation, fields, "best"),
        best_by=fields.text("best_by", MAX_METRIC_NAME_LENGTH + 4),
        target_held=fields.integer("target_held", 0),
        not_finite_held=fields.integer("not_finite_held", 0),
        plateau=_plateau(fields.row("plateau", ("misses", "drops"))),
        window=tuple(
            (row.name("worker"), row.number("weight")) for row in fields.rows("window", ("worker", "weight"))
        ),
        elapsed_s=fields.number("elapsed_s"),
        started_s=fields.number_or_nil("started_s"),
        committed_at=fields.number("committed_at"),
        closing=fields.text("closing", MAX_REASON_LENGTH),
        finished=fields.text("finished", MAX_REASON_LENGTH),
        moments_checksum=None if fields.is_nil("moments") else fields.integer("moments", 0),
    )
    fields.done()
    return version


def _weights(layout: Layout, payload: memoryview, codec: str) -> FlatWeights:
    vector_bytes = len(payload) - layout.beside_vector_size_bytes
    # Its record has it as float32: no codec makes room for a larger model.
    if layout.size > MAX_PARAMETERS or vector_bytes < 0:
        raise WireError(
            f"field layout: {layout.size} trained values, {layout.statistics_size} statistics and "
            f"{layout.integers_size_bytes} bytes of integers have no room in {len(payload)} bytes of payload"
        )
    statistics_end = vector_bytes + 4 * layout.statistics_size
    try:
        vector = read_vector(codec, layout.size, payload[:vector_bytes])
    except ValueError as error:
        raise WireError(f"field layout: {layout.size} floats in {codec}: {error}") from error
    values = vector.values if isinstance(vector, Float32Vector) else decompressed(vector)
    statistics = read_statistics(payload[vector_bytes:statistics_end])
    return FlatWeights(values, statistics, bytes(payload[statistics_end:]))


def _evaluation_or_nil(federation: str, fields: Fields, name: str) -> Evaluation | None:
    if fields.is_nil(name):
        return None
    return read_evaluation_fields(federation, fields.map(name))


def _terms(fields: Fields) -> tuple[Rank, ...]:
    terms = tuple(read_rank(row) for row in fields.rows("terms", ("term", "version")))
    if not terms or any(
        later.term <= one.term or later.version < one.version for one, later in pairwise(terms)
    ):
        raise WireError("field terms: expected one or more, in ascending order")
    return terms


def _plateau(row: Fields) -> PlateauState:
    return PlateauState(row.integer("misses", 0), row.integer("drops", 0))


def _frozen_row(frozen: FrozenPart | None) -> list[object] | None:
    return None if frozen is None else [frozen.tensors, frozen.parameters, frozen.digest]


def _layout(fields: Fields) -> Layout:
    tensors = tuple(_tensor(row) for row in fields.rows("layout", ("name", "shape", "dtype", "group")))
    frozen = None
    if not fields.is_nil("frozen"):
        row = fields.row("frozen", ("tensors", "parameters", "digest"))
        frozen = FrozenPart(row.integer("tensors", 1), row.integer("parameters", 0), row.text("digest", 64))
    try:
        return Layout(tensors, frozen)
    except LayoutError as error:
        raise WireError(f"field layout: {error}") from error


def _tensor(row: Fields) -> TensorSpec:
    shape = row.integers("shape", 0, MAX_PARAMETERS * 4, max_count=MAX_DIMENSIONS)
    # numpy multiplies the others even where a dimension of zero leaves nothing.
    if math.prod(dimension or 1 for dimension in shape) > MAX_PARAMETERS * 4:
        raise WireError(f"field layout: a tensor of shape {shape} is larger than any message")
    name, dtype = row.text("name", MAX_TENSOR_NAME_LENGTH), row.choice("dtype", (*FLOATS, *INTEGERS))
    said = row.choice("group", SHARED_GROUPS)
    return TensorSpec(name, tuple(shape), dtype, next(group for group in SHARED_GROUPS if group == said))


def _plan(fields: Fields) -> Plan:
    plan = Plan(
        local_epochs=fields.integer("local_epochs", 1),
        local_steps=None if fields.is_nil("local_steps") else fields.integer("local_steps", 1),
        batch_size=fields.integer("batch_size", 1),
        learning_rate=None if fields.is_nil("learning_rate") else fields.number("learning_rate"),
        learning_rate_scale=fields.number("learning_rate_scale"),
        keep_optimizer=fields.take("keep_optimizer", bool),
        proximal_mu=fields.number("proximal_mu"),
        sends=read_sends(fields),
        codec=fields.parsed("codec", require_codec),
        one_update_per_version=fields.take("one_update_per_version", bool),
        updates_per_version=fields.integer("updates_per_version", 1),
    )
    fields.done()
    return plan


def _applied(fields: Fields) -> AppliedUpdates:
    runs: dict[tuple[str, str], RunLog] = {}
    for row in fields.rows("applied", ("worker", "run", "highest", "gaps")):
        run = row.name("worker"), row.name("run")
        if run in runs:
            raise WireError(f"field applied: run {run[1]} of {run[0]} stands there twice")
        highest = row.integer("highest", 0)
        runs[run] = RunLog(highest, tuple(_gaps(row, highest)))
    return AppliedUpdates(runs)


def _gaps(row: Fields, highest: int) -> Iterator[tuple[int, int]]:
    """Yield the gaps, which ascend below the highest number; the one before ends at `below`."""
    below = 0
    for gap in row.rows("gaps", ("first", "last")):
        first = gap.integer("first", below + 1, highest)
        below = gap.integer("last", first, highest)
        yield first, below
