"""The records of versions and what lies beside them in the head, to bytes and back; see wire.py. Pure."""

from collections.abc import Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Annotated, Final, Literal

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.tail import tail_of
from fluffle.compression import compress, decompressed, read_vector, wire_bytes
from fluffle.errors import WireError
from fluffle.fields import (
    AnyNumber,
    Count,
    Magnitude,
    Name,
    Positive,
    ShortText,
    Table,
    at_most,
    integer,
    kind_of,
    take,
)
from fluffle.framing import (
    NO_PAYLOAD,
    Header,
    HeaderLimits,
    HeaderReader,
    checksum,
    header_bytes,
    join,
    record_digest,
    split_without_payload,
)
from fluffle.message import IN_PAYLOAD, Read, after_vector, decode, payload_of, read_message, require_readable
from fluffle.model import MAX_PARAMETERS, Layout, Vector, no_values
from fluffle.pieces import Body, Pieces
from fluffle.plan import Plan
from fluffle.record import CachedUpdate, ModelVersion, MomentsRecord, Rank
from fluffle.sealed.part import sealed_part
from fluffle.sealed.residues import require_residues
from fluffle.secure.sums import SumRecord, read_sum
from fluffle.topology import MAX_MESSAGE_BYTES, MIB
from fluffle.update import MAX_RUNS

# Only aggregators send to F.versions. Reading a header takes up to 84 MB of memory, and a record has room for
# all that fluffle.update lets a model remember.
RECORD: Final = HeaderLimits(8 * MIB, 480_000)
_VERSION: Final = Table(ModelVersion, without=IN_PAYLOAD)
_MOMENTS: Final = Table(MomentsRecord, without=("vectors", "cached", "survey"))
_MOMENT_NAMES: Final = kind_of(Annotated[tuple[ShortText, ...], at_most(8)])
# Of each cached update these, and of its vector the elements, the first of them that is there, and the bytes.
_CACHED_FACTS: Final = ("worker", "weight", "at", "codec", "count", "stage", "used")
_FACTS_OF: Final = attrgetter(*_CACHED_FACTS)
# No codec that unpacks a few bytes to a large vector.
_KeptCodec = Literal["float32", "int8"]
_Size = Annotated[int, integer(0, MAX_PARAMETERS)]
_CachedRow = tuple[Name, Magnitude, Count, _KeptCodec, Count, Count, AnyNumber, _Size, _Size, Count]
_CACHED_ROWS: Final = kind_of(Annotated[tuple[_CachedRow, ...], at_most(2 * MAX_RUNS)])
_BESIDE_BYTES: Final = integer(0, MAX_MESSAGE_BYTES)
_PLAN_FIELDS: Final = len(fields(Plan))
# Of its last fields, so many are missing in older records.
_LATER_PLAN_FIELDS: Final = 2
_LAYOUT_FIELDS: Final = len(fields(Layout))
_RANK_FIELDS: Final = {"term": kind_of(Positive), "version": kind_of(Count)}


def moments_pieces(moments: MomentsRecord) -> Pieces:
    """Return the message of a strategy's moments; the vectors are not copied."""
    rows = [
        (*_FACTS_OF(each), each.vector.size, each.vector.start, each.vector.payload.nbytes)
        for each in moments.cached
    ]
    header = {
        "kind": "moments",
        **_MOMENTS.write(moments),
        "names": list(moments.vectors),
        "cached": _CACHED_ROWS.write(rows),
        "survey_bytes": len(moments.survey),
    }
    return join(header, _moment_payloads(moments), RECORD)


def checksum_of(moments: MomentsRecord) -> int:
    """Return the checksum by which a record names these moments."""
    return checksum(_moment_payloads(moments))


def encode_version(version: ModelVersion) -> bytes:
    """Return the message of a version's record."""
    return bytes(version_pieces(version))


def version_pieces(version: ModelVersion) -> Pieces:
    """Return the message of a version's record; vector and average are not copied."""
    vectors = [Float32Vector.of(each).payload for each in (version.vector, version.average)]
    vectors.append(memoryview(version.sealed_sum))
    return join(version_header(version), payload_of(vectors, version.statistics, version.integers), RECORD)


def encode_copy(version: ModelVersion, codec: str, digest: str) -> bytes:
    """Return the message, for the stream, of a copy of the record that has this digest.

    The same model gives the same bits, whoever makes the copy, and in whichever term.
    """
    random = np.random.default_rng(version.version)
    given = [version.vector, version.average] if version.average_decay else [version.vector]
    vectors = [wire_bytes(codec, compress(codec, each, random)) for each in given]
    average_bytes = sum(each.nbytes for each in vectors[1:])
    changed = {"codec": codec, "copy_of": digest, "average_bytes": average_bytes}
    vectors.append(memoryview(version.sealed_sum))
    payload = payload_of(vectors, version.statistics, version.integers)
    return bytes(join({**version_header(version), **changed}, payload, RECORD))


def version_header(version: ModelVersion) -> Header:
    """Return the header of a version's record, even for a version that was read from a copy."""
    exact = {
        "codec": "float32",
        "copy_of": "",
        "average_bytes": version.average.nbytes,
        "sealed_bytes": len(version.sealed_sum),
    }
    return {"kind": "version", **_VERSION.write(version), **exact}


def require_readable_version(version: ModelVersion) -> None:
    """Raise WireError that names the field when nobody could read the record of this version.

    What changes from one record of a term to the next was read from messages, and is readable: this is for
    the first record of a term. Nothing that is as large as the model is copied.
    """
    # Zeros that nobody touches take no memory.
    zeros = np.zeros(version.payload_size_bytes, np.uint8).data
    require_readable(version_header(version), zeros, _read_version)


def decode_record(body: bytes) -> ModelVersion | MomentsRecord | SumRecord:
    """Read what lies in the head queue, never a copy. Raises WireError that names the field."""
    readers: Mapping[str, Read[ModelVersion | MomentsRecord | SumRecord]] = {
        "version": _read_version,
        "moments": _read_moments,
        "sum": read_sum,
    }
    record = decode(body, RECORD, readers)
    if isinstance(record, ModelVersion):
        _require_no_copy(record)
    return record


def decode_version(body: bytes) -> ModelVersion:
    """Read what lies in the stream: the record of a version, or a copy. Raises WireError for all else."""
    return decode(body, RECORD, {"version": _read_version})


def without_weights(body: Body) -> bytes:
    """Return a version's message for the stream of records: its header, byte for byte, and no payload."""
    return header_bytes(body) + NO_PAYLOAD


def decode_without_weights(body: bytes) -> ModelVersion:
    """Read what lies in the stream of records: a version without its weights.

    `copy_of` is the digest of the version's record. Raises WireError for all else.
    """
    version = read_message(split_without_payload(body, RECORD), memoryview(b""), {"version": _read_record})
    _require_no_copy(version)
    return replace(version, copy_of=record_digest(body))


def claimed_rank(body: bytes) -> Rank:
    """Return the rank that the record of a version, or a copy, claims; the rest of it is not read.

    Raises WireError when there is none to be found.
    """
    claims: Header = {}
    for name, value in HeaderReader(body, RECORD).fields():
        if name in _RANK_FIELDS:
            claims[name] = value
            if len(claims) == len(_RANK_FIELDS):
                break
    return Rank(*(take(claims, name, kind) for name, kind in _RANK_FIELDS.items()))


def require_protocol(body: bytes) -> None:
    """Raise ProtocolMismatch when a message says in its first field that it is of another protocol."""
    next(HeaderReader(body, RECORD).fields(), None)


def _moment_payloads(moments: MomentsRecord) -> list[memoryview]:
    vectors = [Float32Vector.of(vector).payload for vector in moments.vectors.values()]
    return [*vectors, *(each.vector.payload for each in moments.cached), memoryview(moments.survey)]


def _read_moments(header: Header, payload: memoryview) -> MomentsRecord:
    """Read moments; their vectors are views of the payload."""
    found, names = _MOMENTS.take(header), take(header, "names", _MOMENT_NAMES)
    rows = take(header, "cached", _CACHED_ROWS)
    survey_bytes = take(header, "survey_bytes", _BESIDE_BYTES)
    vector_bytes = len(payload) - sum(row[-1] for row in rows) - survey_bytes
    is_shared = vector_bytes % (4 * len(names)) == 0 if names else vector_bytes == 0
    if len(set(names)) != len(names) or vector_bytes < 0 or not is_shared:
        raise WireError(f"field names: {len(names)} vectors cannot share {vector_bytes} bytes")
    parts = np.split(np.frombuffer(payload[:vector_bytes], "<f4"), len(names)) if names else []
    cached, rest = [], payload[vector_bytes:]
    for number, (*row, size, start, size_bytes) in enumerate(rows):
        facts = dict(zip(_CACHED_FACTS, row, strict=True))
        if start and start >= size:
            raise WireError(f"field cached[{number}]: element {start} is the first of {size} that is there")
        try:
            vector = tail_of(size, read_vector(facts["codec"], size - start, rest[:size_bytes]))
        except ValueError as error:
            raise WireError(f"field cached[{number}]: {error}") from error
        cached.append(CachedUpdate(**facts, vector=vector))
        rest = rest[size_bytes:]
    vectors = dict(zip(names, parts, strict=True))
    return MomentsRecord(**found, vectors=vectors, cached=tuple(cached), survey=bytes(rest))


def _read_record(header: Header, _payload: memoryview) -> ModelVersion:
    found = _version_fields(header)
    for beside in ("average_bytes", "sealed_bytes"):
        take(header, beside, _BESIDE_BYTES)
    return ModelVersion(**found, vector=no_values())


def _version_fields(header: Header) -> Header:
    # Records of before this field do not say which runs may be forgotten: none.
    header.setdefault("unmasked_runs", MAX_RUNS)
    # Nor do those of before differential privacy and sealed federations say anything of these.
    header.setdefault("privacy", None)
    header.setdefault("sealed", None)
    header.setdefault("sealed_bytes", 0)
    plan = header.get("plan")
    if isinstance(plan, list) and _PLAN_FIELDS - _LATER_PLAN_FIELDS <= len(plan) < _PLAN_FIELDS:
        header["plan"] = [*plan, *[None] * (_PLAN_FIELDS - len(plan))]
    layout = header.get("layout")
    if isinstance(layout, list) and len(layout) == _LAYOUT_FIELDS - 1:
        # Nor is it said of older ones that their models are of no table.
        header["layout"] = [*layout, None]
    return _VERSION.take(header)


def _read_version(header: Header, payload: memoryview) -> ModelVersion:
    """Read a version's record, or a copy of one; float32 vectors are views of the payload."""
    found, average_bytes = _version_fields(header), take(header, "average_bytes", _BESIDE_BYTES)
    layout, codec = found["layout"], found["codec"]
    if codec != "float32" and not found["copy_of"]:
        raise WireError(f"field codec: only a copy travels in {codec}, a record is float32")
    if bool(average_bytes) != bool(found["average_decay"]):
        raise WireError(
            f"field average_bytes: {average_bytes} with an average_decay of {found['average_decay']:g}: only "
            "versions that are averaged have an average"
        )
    sealed_bytes = take(header, "sealed_bytes", _BESIDE_BYTES)
    _require_sealed_bytes(found, sealed_bytes)
    vector_bytes = len(payload) - layout.beside_vector_size_bytes - average_bytes - sealed_bytes
    # Its record has it as float32: no codec makes room for a larger model.
    if layout.size > MAX_PARAMETERS or vector_bytes < 0:
        raise WireError(
            f"field layout: {layout.size} trained values, {layout.statistics_size} statistics and "
            f"{layout.integers_size_bytes} bytes of integers have no room in {len(payload)} bytes of "
            f"payload, of which {average_bytes} are the average and {sealed_bytes} the sealed sum"
        )
    end = vector_bytes + average_bytes
    sealed_sum = bytes(payload[end : end + sealed_bytes])
    try:
        vector = _values(codec, layout.size, payload[:vector_bytes])
        average = _values(codec, layout.size, payload[vector_bytes:end]) if average_bytes else no_values()
    except ValueError as error:
        raise WireError(f"field layout: {layout.size} floats in {codec}: {error}") from error
    if sealed_sum:
        try:
            require_residues(sealed_sum, sealed_part(layout, found["plan"].sealed.only).size)
        except ValueError as error:
            raise WireError(f"field sealed_bytes: {error}") from error
    statistics, integers = after_vector(payload[end + sealed_bytes :], layout.statistics_size)
    return ModelVersion(
        **found,
        vector=vector,
        average=average,
        sealed_sum=sealed_sum,
        statistics=statistics,
        integers=integers,
    )


def _require_sealed_bytes(found: Header, sealed_bytes: int) -> None:
    """Raise WireError unless a record says of a sealed sum what its plan says."""
    plan, state = found["plan"].sealed, found["sealed"]
    if (plan is None) != (state is None):
        raise WireError("field sealed: a record has it exactly if its plan does")
    if bool(sealed_bytes) != bool(state and state.weights):
        raise WireError(
            f"field sealed_bytes: {sealed_bytes}, and the sealed sum has a weight of "
            f"{state.weights if state else 0}"
        )


def _values(codec: str, size: int, payload: memoryview) -> Vector:
    vector = read_vector(codec, size, payload)
    return vector.values if isinstance(vector, Float32Vector) else decompressed(vector)


def _require_no_copy(version: ModelVersion) -> None:
    if version.copy_of:
        raise WireError("field copy_of: expected a record, found a copy of one")
