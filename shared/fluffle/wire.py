"""Messages to bytes and back: the only module that knows msgpack. docs/protocol.md describes the bytes.

A message is a header map and one bin with the payload. Nothing that a sender says is believed before it is
checked: the header's size, depth, types and ranges, the payload's length and its checksum. What the fields of
each kind of message are stands in fluffle.schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import msgpack
import numpy as np
import xxhash

from fluffle import events, schema
from fluffle.codecs.floats import Float32Vector
from fluffle.compression import compress, wire_bytes
from fluffle.errors import MessageTooLarge, ProtocolMismatch, WireError
from fluffle.fields import Fields, in_words, is_name
from fluffle.header_scan import HeaderLimits, HeaderScan, require_readable
from fluffle.message_size import require_message_fits
from fluffle.model import Vector
from fluffle.pieces import Pieces
from fluffle.record import Evaluation, Hello, ModelVersion, Moments, Rank
from fluffle.schema import Header
from fluffle.topology import MAX_MESSAGE_BYTES, MIB
from fluffle.update import WeightUpdate

PROTOCOL: Final = 2
ALIGNMENT: Final = 64
BIN32_PREFIX_BYTES: Final = 5
NO_PAYLOAD: Final = b"\xc6\x00\x00\x00\x00"
PROTOCOL_FIELD: Final = "fluffle"
RANK_FIELDS: Final = ("term", "version")


# Anyone may send to F.updates, only aggregators to F.versions. Neither takes more than 64 MB to read, and a
# record has room for all that fluffle.update lets a model remember.
INBOUND: Final = HeaderLimits(64 * 1024, 1024)
RECORD: Final = HeaderLimits(8 * MIB, 360_000)
REPORT: Final = HeaderLimits(MIB, 16_384)


def encode_update(update: WeightUpdate) -> bytes:
    """Return the message of an update."""
    vector = wire_bytes(update.codec, update.vector)
    header = schema.update_header(update, vector.nbytes)
    body = bytes(_join(header, _payload(vector, update.statistics, update.integers), INBOUND))
    _require_readable(header, lambda: decode_inbound(body))
    return body


def encode_evaluation(evaluation: Evaluation) -> bytes:
    """Return the message in which an evaluator reports."""
    header = schema.evaluation_header(evaluation)
    body = bytes(_join(header, [], INBOUND))
    _require_readable(header, lambda: decode_inbound(body))
    return body


def encode_hello(hello: Hello) -> bytes:
    """Return the message that everyone sends when it connects."""
    header = schema.hello_header(hello)
    body = bytes(_join(header, [], INBOUND))
    _require_readable(header, lambda: decode_inbound(body))
    return body


def moments_pieces(moments: Moments) -> Pieces:
    """Return the message of a server optimizer's moments, with the vectors where they lie."""
    payload = [Float32Vector.of(vector).payload for vector in moments.vectors.values()]
    return _join(schema.moments_header(moments), payload, RECORD)


def checksum_of(moments: Moments) -> int:
    """Return the checksum that a record names these moments by."""
    return _checksum(Float32Vector.of(vector).payload for vector in moments.vectors.values())


def encode_version(version: ModelVersion) -> bytes:
    """Return the message of a version's record."""
    return bytes(version_pieces(version))


def version_pieces(version: ModelVersion) -> Pieces:
    """Return the message of a version's record, with the vector where it lies."""
    vector = Float32Vector.of(version.vector).payload
    payload = _payload(vector, version.statistics, version.integers)
    return _join(schema.version_header(version), payload, RECORD)


def require_readable_version(version: ModelVersion) -> None:
    """Raise WireError, which names the field, when nobody could read the record of this version.

    What changes from one record of a term to the next was read from messages, and is readable: this is for
    the first record of a term. Nothing that is as large as the model is copied.
    """
    header = schema.version_header(version)
    size_bytes = 4 * version.layout.size + version.layout.beside_vector_size_bytes
    # Zeros that nobody touches take no memory.
    payload = np.zeros(size_bytes, np.uint8).data

    def read() -> None:
        fields = Fields({name: value for name, value in header.items() if name != "kind"})
        schema.read_version(fields.text("federation", 64), fields, payload)

    _require_readable(header, read)


def encode_copy(version: ModelVersion, codec: str, digest: str) -> bytes:
    """Return the message of a copy of a version's record, which has this digest, for the stream.

    The same model gives the same bits, whoever makes the copy, and in whichever term.
    """
    random = np.random.default_rng(version.version)
    vector = wire_bytes(codec, compress(codec, version.vector, random))
    header = schema.copy_header(version, codec, digest)
    return bytes(_join(header, _payload(vector, version.statistics, version.integers), RECORD))


def encode_report(report: events.Report) -> bytes:
    """Return the message in which a part tells what happened."""
    return bytes(_join(events.report_header(report), [], REPORT))


def decode_report(body: bytes) -> events.Report:
    """Read what a part tells. Raises WireError that names the field."""
    fields, payload = _split(body, REPORT)
    fields.choice("kind", ("events",))
    return events.read_report(fields.text("federation", 64), fields, payload)


def decode_inbound(
    body: bytes, *, most_parameters: int = schema.MAX_PARAMETERS
) -> WeightUpdate | Evaluation | Hello:
    """Read what arrives at the aggregator; the update's vector is a view of the body where the codec allows.

    A reader who knows the model says how many parameters it has, so that no small message is unpacked to
    more. Raises WireError that names the field.
    """
    fields, payload = _split(body, INBOUND)
    kind = fields.choice("kind", ("update", "evaluation", "hello"))
    federation = fields.text("federation", 64)
    if kind == "update":
        return schema.read_update(federation, fields, payload, most_parameters=most_parameters)
    if kind == "evaluation":
        return schema.read_evaluation(federation, fields, payload)
    return schema.read_hello(federation, fields, payload)


def decode_record(body: bytes) -> ModelVersion | Moments:
    """Read what lies in the head queue, never a copy. Raises WireError that names the field."""
    fields, payload = _split(body, RECORD)
    kind = fields.choice("kind", ("version", "moments"))
    federation = fields.text("federation", 64)
    if kind == "moments":
        return schema.read_moments(federation, fields, payload)
    return schema.read_version(federation, fields, payload)


def decode_version(body: bytes) -> ModelVersion:
    """Read what lies in the stream: the record of a version, or a copy. Raises WireError for all else."""
    fields, payload = _split(body, RECORD)
    kind = fields.choice("kind", ("version", "copy"))
    federation = fields.text("federation", 64)
    if kind == "copy":
        return schema.read_copy(federation, fields, payload)
    return schema.read_version(federation, fields, payload)


def claimed_rank(body: bytes) -> Rank:
    """Return the rank that the record of a version, or a copy, claims; nothing else of it is read.

    Raises WireError when there is none to be found.
    """
    scan = HeaderScan(body, RECORD)
    claims: Header = {}
    for _ in range(scan.open_map()):
        name = _object(scan, "the name of a field")
        if name == PROTOCOL_FIELD:
            _require_protocol(PROTOCOL_FIELD, _object(scan, f"field {PROTOCOL_FIELD}"))
        elif name in RANK_FIELDS:
            claims[str(name)] = _object(scan, f"field {name}")
            if len(claims) == len(RANK_FIELDS):
                break
        else:
            scan.next_object()
    fields = Fields(claims)
    return Rank(fields.integer("term", 1), fields.integer("version", 0))


def require_protocol(body: bytes) -> None:
    """Raise ProtocolMismatch when a message says in its first field that it is of another protocol."""
    scan = HeaderScan(body, RECORD)
    if scan.open_map() and _object(scan, "the name of a field") == PROTOCOL_FIELD:
        _require_protocol(PROTOCOL_FIELD, _object(scan, f"field {PROTOCOL_FIELD}"))


def without_weights(body: bytes) -> bytes:
    """Return a version's message for the stream of records: its header, byte for byte, and no payload.

    The start of a body is enough.
    """
    return body[: _header_end(body)] + NO_PAYLOAD


def decode_without_weights(body: bytes) -> ModelVersion:
    """Read what lies in the stream of records: a version without its weights.

    `copy_of` is the digest of the version's record. Raises WireError for all else.
    """
    header, end = _read_header(body, RECORD)
    if body[end:] != NO_PAYLOAD:
        raise WireError("the stream of records takes no message with a payload")
    fields = Fields(header)
    for name in (PROTOCOL_FIELD, "checksum"):
        fields.integer(name, 0)
    fields.take("pad", bytes)
    fields.choice("kind", ("version",))
    version = schema.read_version(fields.text("federation", 64), fields, None)
    return replace(version, copy_of=record_digest(body))


def record_digest(body: bytes) -> str:
    """Return the digest by which the next record names this one as its parent.

    It covers the header, which holds the checksum of the payload: the start of a body is enough.
    """
    return hashlib.sha256(memoryview(body)[: _header_end(body)]).hexdigest()


def _header_end(body: bytes) -> int:
    scan = HeaderScan(body, RECORD)
    for _ in range(2 * scan.open_map()):
        scan.next_object()
    return scan.at


def _payload(vector: memoryview, statistics: Vector, integers: bytes) -> list[memoryview]:
    return [vector, Float32Vector.of(statistics).payload, memoryview(integers)]


def _checksum(payload: Iterable[memoryview]) -> int:
    running = xxhash.xxh3_64()
    for part in payload:
        running.update(part)
    return running.intdigest()


def _join(header: Header, payload: list[memoryview], limits: HeaderLimits) -> Pieces:
    length = sum(part.nbytes for part in payload)
    whole = {PROTOCOL_FIELD: PROTOCOL, **header, "checksum": _checksum(payload), "pad": b""}
    try:
        unpadded = len(msgpack.packb(whole)) + BIN32_PREFIX_BYTES
    except OverflowError as error:
        raise WireError(f"this {header['kind']} has a number of more than 64 bits") from error
    whole["pad"] = bytes(-unpadded % ALIGNMENT)
    packed = msgpack.packb(whole)
    require_message_fits(
        f"this {header['kind']}", len(packed) + BIN32_PREFIX_BYTES + length, MAX_MESSAGE_BYTES
    )
    try:
        require_readable(packed, limits)
    except WireError as error:
        unreadable = f"nobody could read this {header['kind']} again: {error}"
        raise MessageTooLarge(unreadable, limits.size_bytes) from error
    return Pieces(packed + b"\xc6" + length.to_bytes(4, "big"), tuple(payload))


def _require_readable(header: Header, read: Callable[[], object]) -> None:
    """Raise WireError for a message that its reader would refuse, before anybody sends it."""
    try:
        read()
    except WireError as error:
        raise WireError(f"nobody could read this {header['kind']}: {error}") from error


def _split(body: bytes, limits: HeaderLimits) -> tuple[Fields, memoryview]:
    header, offset = _read_header(body, limits)
    prefix = body[offset : offset + BIN32_PREFIX_BYTES]
    payload = memoryview(body)[offset + BIN32_PREFIX_BYTES :]
    if len(prefix) != BIN32_PREFIX_BYTES or prefix[0] != 0xC6:
        raise WireError("the payload is not one msgpack bin 32 right after the header")
    if int.from_bytes(prefix[1:], "big") != len(payload):
        announced = int.from_bytes(prefix[1:], "big")
        raise WireError(f"the payload announces {announced} bytes, but {len(payload)} follow")
    fields = Fields(header)
    fields.integer(PROTOCOL_FIELD)
    fields.take("pad", bytes)
    if fields.integer("checksum", 0) != _checksum([payload]):
        raise WireError("field checksum: the payload's bytes are not those that were sent")
    return fields, payload


def _read_header(body: bytes, limits: HeaderLimits) -> tuple[Header, int]:
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(f"the message has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    scan = HeaderScan(body, limits)
    header: Header = {}
    for _ in range(scan.open_map()):
        name = _object(scan, "the name of a field")
        if not isinstance(name, str):
            raise WireError(f"the name of a field must be str, not {type(name).__name__}")
        field = f"field {name if is_name(name) else in_words(name)}"
        if name in header:
            raise WireError(f"{field}: it stands there twice")
        header[name] = _object(scan, field)
        _require_protocol(name, header[name])
    return header, scan.at


def _require_protocol(name: str, said: object) -> None:
    """Raise ProtocolMismatch when this field says another protocol: the rest would not be understood."""
    if name == PROTOCOL_FIELD and type(said) is int and said != PROTOCOL:
        raise ProtocolMismatch(
            f"the message is of protocol {said!r}, and this Fluffle speaks protocol {PROTOCOL}: run the same "
            "version of Fluffle at every site"
        )


def _object(scan: HeaderScan, what: str) -> object:
    """Read the next object; every fault in it is said to be in `what`."""
    try:
        found: object = msgpack.unpackb(scan.next_object(), object_pairs_hook=_unique, strict_map_key=True)
    except (WireError, ValueError) as error:
        raise WireError(f"{what}: {error}") from error
    return found


def _unique(pairs: Iterable[tuple[str | bytes, object]]) -> Mapping[str | bytes, object]:
    found: dict[str | bytes, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {in_words(name)} stands there twice")
        found[name] = value
    return found
