"""Messages to bytes and back: the only module that knows msgpack. docs/protocol.md describes the bytes.

A message is a header map and one bin with the payload. Nothing that a sender says is believed before it is
checked: the header's size, depth, types and ranges, the payload's length and its checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack
import numpy as np
import xxhash

from fluffle.compression import CODECS
from fluffle.errors import LayoutError, MessageTooLarge, WireError
from fluffle.fields import Fields
from fluffle.model import Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.record import Contributor, Evaluation, Folded, Hello, ModelVersion, Moments, Rank
from fluffle.topology import MAX_MESSAGE_BYTES, MIB
from fluffle.update import Applied, RunLog, UpdateId, WeightUpdate

PROTOCOL: Final = 1
ALIGNMENT: Final = 64
# Anyone may send to F.updates, only aggregators to F.models.
MAX_INBOUND_HEADER_BYTES: Final = 64 * 1024
MAX_RECORD_HEADER_BYTES: Final = 64 * MIB
BIN32_PREFIX_BYTES: Final = 5

Header = dict[str, Any]


def encode_update(update: WeightUpdate) -> bytes:
    """Return the message of an update; its vector is compressed by the codec that it names."""
    header = {
        "kind": "update",
        "federation": update.federation,
        "worker": update.id.worker,
        "run": update.id.run,
        "sequence": update.id.sequence,
        "base_version": update.base_version,
        "layout": update.layout_digest,
        "sends": update.sends,
        "codec": update.codec,
        "parameters": update.vector.size,
        "examples": update.examples,
        "metrics": dict(update.metrics),
        "train_s": update.train_s,
    }
    return _join(header, [CODECS[update.codec].compress(update.vector), memoryview(update.integers)])


def encode_evaluation(evaluation: Evaluation) -> bytes:
    """Return the message in which an evaluator reports."""
    header = {"kind": "evaluation", "federation": evaluation.federation, **_evaluation_fields(evaluation)}
    return _join(header, [])


def encode_hello(hello: Hello) -> bytes:
    """Return the message by which an aggregator asks for the lead."""
    return _join({"kind": "hello", "federation": hello.federation, "aggregator": hello.aggregator}, [])


def encode_moments(moments: Moments) -> tuple[bytes, int]:
    """Return the message of a server optimizer's moments, and the checksum that the record names it by."""
    header = {
        "kind": "moments",
        "federation": moments.federation,
        "term": moments.rank.term,
        "version": moments.rank.version,
        "names": list(moments.vectors),
    }
    payload = [CODECS["float32"].compress(vector) for vector in moments.vectors.values()]
    return _join(header, payload), _checksum(payload)


def encode_version(version: ModelVersion) -> bytes:
    """Return the message of a version's record."""
    plan = version.plan
    header = {
        "kind": "version",
        "federation": version.federation,
        "term": version.term,
        "version": version.version,
        "parent": version.parent,
        "layout": [[spec.name, list(spec.shape), spec.dtype] for spec in version.layout.tensors],
        "plan": {name: getattr(plan, name) for name in Plan.__dataclass_fields__},
        "strategy": version.strategy,
        "applied": [
            [worker, run, log.highest, [list(gap) for gap in log.gaps]]
            for (worker, run), log in version.applied.runs.items()
        ],
        "folded": [
            [one.id.worker, one.id.run, one.id.sequence, one.base_version, one.staleness, one.weight]
            for one in version.folded
        ],
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
    return _join(header, [CODECS["float32"].compress(version.vector), memoryview(version.integers)])


def decode_inbound(body: bytes) -> WeightUpdate | Evaluation | Hello:
    """Read what arrives at the aggregator; the update's vector is a read-only view where the codec allows.

    Raises WireError that names the field.
    """
    header, payload = _split(body, MAX_INBOUND_HEADER_BYTES)
    fields = Fields(header)
    kind = fields.choice("kind", ("update", "evaluation", "hello"))
    federation = fields.text("federation", 64)
    if kind == "update":
        return _update(federation, fields, payload)
    fields.empty_payload(payload)
    if kind == "evaluation":
        evaluation = _evaluation(federation, fields)
        fields.done()
        return evaluation
    hello = Hello(federation, fields.text("aggregator", 128))
    fields.done()
    return hello


def decode_record(body: bytes) -> ModelVersion | Moments:
    """Read what an aggregator published. Raises WireError that names the field."""
    header, payload = _split(body, MAX_RECORD_HEADER_BYTES)
    fields = Fields(header)
    kind = fields.choice("kind", ("version", "moments"))
    federation = fields.text("federation", 64)
    rank = Rank(fields.integer("term", 1), fields.integer("version", 0))
    if kind == "moments":
        return _moments(federation, rank, fields, payload)
    return _version(federation, rank, fields, payload)


def decode_version(body: bytes) -> ModelVersion:
    """Read the record of a version. Raises WireError when it is anything else."""
    record = decode_record(body)
    if not isinstance(record, ModelVersion):
        raise WireError("field kind: expected 'version', found 'moments'")
    return record


def record_digest(body: bytes) -> str:
    """Return the digest by which the next record names this one as its parent.

    It covers the header, which holds the checksum of the payload.
    """
    _, offset = _read_header(body, MAX_RECORD_HEADER_BYTES)
    return hashlib.sha256(memoryview(body)[:offset]).hexdigest()


def _update(federation: str, fields: Fields, payload: memoryview) -> WeightUpdate:
    codec = CODECS[fields.choice("codec", CODECS)]
    parameters = fields.integer("parameters", 0, MAX_MESSAGE_BYTES)
    vector_bytes = codec.size_bytes(parameters)
    if len(payload) < vector_bytes:
        raise WireError(
            f"field parameters: {parameters} in {codec.name} take {vector_bytes} bytes, "
            f"but the payload has {len(payload)}"
        )
    update = WeightUpdate(
        federation=federation,
        id=UpdateId(fields.name("worker"), fields.name("run"), fields.integer("sequence", 1)),
        base_version=fields.integer("base_version", 0),
        layout_digest=fields.text("layout", 64),
        sends="delta" if fields.choice("sends", ("delta", "weights")) == "delta" else "weights",
        codec=codec.name,
        vector=codec.decompress(payload[:vector_bytes]),
        integers=bytes(payload[vector_bytes:]),
        examples=fields.integer("examples"),
        metrics=fields.numbers("metrics", 64),
        train_s=fields.number("train_s"),
    )
    fields.done()
    return update


def _evaluation_fields(evaluation: Evaluation) -> Header:
    return {
        "evaluator": evaluation.evaluator,
        "version": evaluation.version,
        "metrics": dict(evaluation.metrics),
        "evaluate_s": evaluation.evaluate_s,
    }


def _evaluation(federation: str, fields: Fields) -> Evaluation:
    return Evaluation(
        federation,
        fields.name("evaluator"),
        fields.integer("version", 0),
        fields.numbers("metrics", 64),
        fields.number("evaluate_s"),
    )


def _optional_evaluation(federation: str, fields: Fields, name: str) -> Evaluation | None:
    found = fields.take(name, (dict, type(None)))
    return None if found is None else _evaluation(federation, Fields(found))


def _moments(federation: str, rank: Rank, fields: Fields, payload: memoryview) -> Moments:
    names = [str(name) for name in fields.take("names", list)]
    fields.done()
    whole = CODECS["float32"].decompress(payload)
    if not names or whole.size % len(names):
        raise WireError(f"field names: {len(names)} vectors cannot share {whole.size} elements")
    parts = np.split(whole, len(names))
    return Moments(federation, rank, dict(zip(names, parts, strict=True)))


def _version(federation: str, rank: Rank, fields: Fields, payload: memoryview) -> ModelVersion:
    try:
        layout = Layout(
            tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in fields.take("layout", list))
        )
    except LayoutError as error:
        raise WireError(f"field layout: {error}") from error
    if len(payload) != 4 * layout.size + layout.integers_size_bytes:
        raise WireError(
            f"field layout: it takes {4 * layout.size} bytes of floats, the payload {len(payload)}"
        )
    version = ModelVersion(
        federation=federation,
        term=rank.term,
        version=rank.version,
        parent=fields.text("parent", 64),
        layout=layout,
        plan=Plan(**fields.take("plan", dict)),
        strategy=fields.text("strategy", 256),
        vector=CODECS["float32"].decompress(payload[: 4 * layout.size]),
        integers=bytes(payload[4 * layout.size :]),
        applied=Applied(
            {
                (worker, run): RunLog(highest, tuple((first, last) for first, last in gaps))
                for worker, run, highest, gaps in fields.take("applied", list)
            }
        ),
        folded=tuple(
            Folded(UpdateId(worker, run, sequence), base_version, staleness, weight)
            for worker, run, sequence, base_version, staleness, weight in fields.take("folded", list)
        ),
        contributors={
            name: Contributor(*values) for name, values in fields.take("contributors", dict).items()
        },
        rejected=fields.integer("rejected", 0),
        evaluation=_optional_evaluation(federation, fields, "evaluation"),
        best=_optional_evaluation(federation, fields, "best"),
        target_held=fields.integer("target_held", 0),
        elapsed_s=fields.number("elapsed_s"),
        committed_at=fields.number("committed_at"),
        finished=fields.text("finished", 256),
        moments_checksum=fields.take("moments", (int, type(None))),
    )
    fields.done()
    return version


def _checksum(payload: Iterable[memoryview]) -> int:
    running = xxhash.xxh3_64()
    for part in payload:
        running.update(part)
    return running.intdigest()


def _join(header: Header, payload: list[memoryview]) -> bytes:
    length = sum(part.nbytes for part in payload)
    whole = {"fluffle": PROTOCOL, **header, "checksum": _checksum(payload), "pad": b""}
    unpadded = len(msgpack.packb(whole)) + BIN32_PREFIX_BYTES
    whole["pad"] = bytes(-unpadded % ALIGNMENT)
    packed = msgpack.packb(whole)
    if len(packed) + BIN32_PREFIX_BYTES + length > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"this {header['kind']} takes {(len(packed) + length) / MIB:.1f} MiB, and RabbitMQ carries at "
            f"most {MAX_MESSAGE_BYTES // MIB} MiB in one message: use a smaller model or another codec"
        )
    return b"".join([packed, b"\xc6", length.to_bytes(4, "big"), *payload])


def _split(body: bytes, max_header_bytes: int) -> tuple[Header, memoryview]:
    header, offset = _read_header(body, max_header_bytes)
    prefix = body[offset : offset + BIN32_PREFIX_BYTES]
    payload = memoryview(body)[offset + BIN32_PREFIX_BYTES :]
    if len(prefix) != BIN32_PREFIX_BYTES or prefix[0] != 0xC6:
        raise WireError("the payload is not one msgpack bin 32 right after the header")
    if int.from_bytes(prefix[1:], "big") != len(payload):
        announced = int.from_bytes(prefix[1:], "big")
        raise WireError(f"the payload announces {announced} bytes, but {len(payload)} follow")
    fields = Fields(header)
    if (protocol := fields.integer("fluffle")) != PROTOCOL:
        raise WireError(f"field fluffle: this is protocol {PROTOCOL}, the message speaks {protocol}")
    fields.take("pad", bytes)
    if fields.integer("checksum", 0) != _checksum([payload]):
        raise WireError("field checksum: the payload's bytes are not those that were sent")
    return fields.rest(), payload


def _read_header(body: bytes, max_header_bytes: int) -> tuple[Header, int]:
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(f"the message has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    # Most headers are small: feed (and so copy) a little first.
    for window in (min(4096, max_header_bytes), max_header_bytes):
        unpacker = msgpack.Unpacker(
            object_pairs_hook=_unique,
            max_buffer_size=max_header_bytes,
            max_ext_len=0,
            strict_map_key=True,
        )
        unpacker.feed(memoryview(body)[:window])
        try:
            header = unpacker.unpack()
        except msgpack.OutOfData:
            continue
        except (ValueError, msgpack.UnpackException) as error:
            raise WireError(f"the header is no msgpack map of this protocol: {error}") from error
        if not isinstance(header, dict):
            raise WireError(f"the header must be a map, not {type(header).__name__}")
        return header, unpacker.tell()
    raise WireError(f"the header does not end within {min(len(body), max_header_bytes)} bytes")


def _unique(pairs: Iterable[tuple[str, object]]) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands there twice")
        found[name] = value
    return found
