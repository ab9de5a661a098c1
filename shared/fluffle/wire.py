"""Messages to the aggregator and to the exchange of events, to bytes and back. Pure.

docs/protocol.md has the fields of each kind of message as tables. The fields of a header are those of the
message's dataclass, whose annotations say what may stand in them. What is as large as a model lies in the
payload. Nothing that a sender says is believed before it is checked: every fault is a WireError that names
the field.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fluffle.codecs.sealed import SealedVector
from fluffle.compression import bits_of_masked, is_masked, is_packed, leaves_out, read_vector, wire_bytes
from fluffle.errors import WireError
from fluffle.events import Report
from fluffle.fields import FieldError, Table, integer, kind_of, take
from fluffle.framing import Header, HeaderLimits, join
from fluffle.message import IN_PAYLOAD, BareMessage, Read, after_vector, decode, payload_of, require_readable
from fluffle.model import MAX_PARAMETERS
from fluffle.record import Evaluation, Hello
from fluffle.sealed.plan import SEALED
from fluffle.secure.plan import ModulusBits, masked_codec
from fluffle.sites import SiteEvaluation
from fluffle.survey.messages import SiteStatistics
from fluffle.survey.packing import pack, unpack
from fluffle.survey.shape import SurveyShape
from fluffle.topology import MIB
from fluffle.update import WeightUpdate

Inbound = WeightUpdate | Evaluation | SiteEvaluation | Hello | SiteStatistics
# Anyone may send these.
INBOUND: Final = HeaderLimits(64 * 1024, 1024)
REPORT: Final = HeaderLimits(MIB, 16_384)
_OF_MASKED: Final = ("epoch", "revision", "released", "shape")
_OF_SEALED: Final = ("key", "refresh")
_NOT_MASKED: Final = (
    *("sends", "codec", "first_tensor", "absorbs", "loss"),
    *("examples", "steps", "batch_size", "learning_rate_scale", "shape"),
)
_UPDATE: Final = Table(WeightUpdate, without=(*IN_PAYLOAD, "epoch", "revision", "shape", *_OF_SEALED))
# What is masked is the delta of all layers, and absorbs nothing. Of what its worker has, no more is said.
_MASKED: Final = Table(WeightUpdate, without=(*IN_PAYLOAD, *_NOT_MASKED, *_OF_SEALED))
# What is sealed is the delta of all layers too; what its worker says of its round travels as ever.
_SEALED: Final = Table(
    WeightUpdate, without=(*IN_PAYLOAD, *_OF_MASKED, "first_tensor", "sends", "codec", "refresh")
)
_REFRESH: Final = Table(WeightUpdate, without=(*IN_PAYLOAD, "epoch", "revision", *_NOT_MASKED))
_SIZE: Final = integer(0, MAX_PARAMETERS)
_BITS: Final = kind_of(ModulusBits)
_SHAPE: Final = kind_of(SurveyShape)
_MOST_SHAPE_BYTES: Final = MIB
_EVALUATION: Final = BareMessage("evaluation", Evaluation)
_SITE_EVALUATION: Final = BareMessage("site-evaluation", SiteEvaluation)
_HELLO: Final = BareMessage("hello", Hello)
_STATISTICS: Final = Table(SiteStatistics, without=("statistics",))
_REPORT: Final = BareMessage("events", Report)


def encode_update(update: WeightUpdate) -> bytes:
    """Return the message of an update, masked or plain."""
    if is_masked(update.codec):
        masked = {**_MASKED.write(update), "bits": bits_of_masked(update.codec)}
        if update.shape is None:
            return _encode_inbound({"kind": "masked", **masked}, [update.vector.payload], _read_masked)
        shape = json.dumps(_SHAPE.write(update.shape), separators=(",", ":")).encode()
        answer = {"kind": "masked-survey", **masked, "shape_bytes": len(shape)}
        return _encode_inbound(answer, [memoryview(shape), update.vector.payload], _read_masked_survey)
    if isinstance(update.vector, SealedVector):
        return _encode_sealed(update, update.vector)
    vector = wire_bytes(update.codec, update.vector)
    told = _UPDATE.write(update)
    if not update.released:
        # Only a worker that adds all the noise itself counts.
        del told["released"]
    header = {
        "kind": "update",
        **told,
        "parameters": update.vector.size,
        "vector_bytes": vector.nbytes,
        "statistics_size": update.statistics.size,
    }
    return _encode_inbound(header, payload_of([vector], update.statistics, update.integers), _read_update)


def encode_evaluation(evaluation: Evaluation) -> bytes:
    """Return the message in which an evaluator reports."""
    return _encode_inbound(_EVALUATION.header(evaluation), [], _EVALUATION.read)


def encode_site_evaluation(evaluation: SiteEvaluation) -> bytes:
    """Return the message in which a worker reports what it has measured at its site."""
    return _encode_inbound(_SITE_EVALUATION.header(evaluation), [], _SITE_EVALUATION.read)


def encode_hello(hello: Hello) -> bytes:
    """Return the message that every part sends when it connects."""
    return _encode_inbound(_HELLO.header(hello), [], _HELLO.read)


def encode_statistics(answer: SiteStatistics) -> bytes:
    """Return the message in which a worker answers to a survey."""
    header = {"kind": "survey", **_STATISTICS.write(answer)}
    return _encode_inbound(header, [memoryview(pack(answer.statistics))], _read_statistics)


def encode_report(report: Report) -> bytes:
    """Return the message in which a part reports events."""
    return bytes(join(_REPORT.header(report), [], REPORT))


def decode_inbound(body: bytes, *, most_parameters: int = MAX_PARAMETERS) -> Inbound:
    """Read what arrives at the aggregator; the update's vector is a view of the body where the codec allows.

    A reader who knows the model says how many parameters it has, so that no small message is unpacked to
    more. Raises WireError that names the field.
    """
    readers: Mapping[str, Read[Inbound]] = {
        "update": lambda header, payload: _read_update(header, payload, most_parameters),
        "masked": _read_masked,
        "masked-survey": _read_masked_survey,
        "sealed": _read_sealed,
        "sealed-refresh": _read_refresh,
        "evaluation": _EVALUATION.read,
        "site-evaluation": _SITE_EVALUATION.read,
        "hello": _HELLO.read,
        "survey": _read_statistics,
    }
    return decode(body, INBOUND, readers)


def decode_report(body: bytes) -> Report:
    """Read a report of events. Raises WireError that names the field."""
    return decode(body, REPORT, {"events": _REPORT.read})


def _encode_inbound(header: Header, payload: list[memoryview], read: Read[object]) -> bytes:
    pieces = join(header, payload, INBOUND)
    body = bytes(pieces)
    require_readable(header, memoryview(body)[len(pieces.start) :], read)
    return body


def _read_update(header: Header, payload: memoryview, most_parameters: int = MAX_PARAMETERS) -> WeightUpdate:
    """Read an update; its vector is a view of the payload, unless zstd has to unpack it.

    A vector of more than `most_parameters` is not unpacked.
    """
    header.setdefault("released", 0)
    found = _UPDATE.take(header)
    codec, sequence, absorbs = found["codec"], found["id"].sequence, found["absorbs"]
    if found["sends"] == "weights" and leaves_out(codec):
        raise WireError(f"field codec: {codec} leaves out a part of the weights: it is for deltas")
    _require_earlier(absorbs, sequence)
    if is_masked(codec):
        raise WireError(f"field codec: {codec} travels in a message of the kind masked")
    if codec == SEALED:
        raise WireError("field codec: sealed travels in a message of the kind sealed")
    parameters = take(header, "parameters", _SIZE)
    if is_packed(codec) and parameters > most_parameters:
        raise WireError(f"field parameters: {parameters} are more than the {most_parameters} of the model")
    vector_bytes = take(header, "vector_bytes", integer(0, len(payload)))
    try:
        vector = read_vector(codec, parameters, payload[:vector_bytes])
    except ValueError as error:
        raise WireError(f"field vector_bytes: {parameters} parameters in {codec}: {error}") from error
    size = take(header, "statistics_size", integer(0, (len(payload) - vector_bytes) // 4))
    statistics, integers = after_vector(payload[vector_bytes:], size)
    return WeightUpdate(**found, vector=vector, statistics=statistics, integers=integers)


def _require_earlier(absorbs: tuple[int, ...], sequence: int) -> None:
    if absorbs and absorbs[-1] >= sequence:
        raise WireError(f"field absorbs: {absorbs[-1]} is not below the update's own number {sequence}")


def _encode_sealed(update: WeightUpdate, vector: SealedVector) -> bytes:
    if update.refresh:
        header = {"kind": "sealed-refresh", **_REFRESH.write(update), "parameters": vector.sealed_size}
        return _encode_inbound(header, [vector.payload], _read_refresh)
    header = {
        "kind": "sealed",
        **_SEALED.write(update),
        "parameters": vector.sealed_size,
        "open_parameters": vector.size - vector.sealed_size,
        "statistics_size": update.statistics.size,
    }
    return _encode_inbound(header, payload_of([vector.payload], update.statistics, b""), _read_sealed)


def _read_sealed(header: Header, payload: memoryview) -> WeightUpdate:
    """Read a sealed update; its vector is a view of the payload. There are no integers."""
    found = _SEALED.take(header)
    _require_earlier(found["absorbs"], found["id"].sequence)
    sealed, others = (take(header, name, _SIZE) for name in ("parameters", "open_parameters"))
    size = take(header, "statistics_size", integer(0, len(payload) // 4))
    end = len(payload) - 4 * size
    vector = _sealed_vector(sealed, others, payload[:end], found["key"])
    statistics, _ = after_vector(payload[end:], size)
    return WeightUpdate(**found, sends="delta", codec=SEALED, vector=vector, statistics=statistics)


def _read_refresh(header: Header, payload: memoryview) -> WeightUpdate:
    """Read what a worker sends to make a sealed sum one that was encrypted anew."""
    found = _REFRESH.take(header)
    if found["refresh"] is None:
        raise WireError("field refresh: expected a list of refreshes, weights, largest")
    vector = _sealed_vector(take(header, "parameters", _SIZE), 0, payload, found["key"])
    return WeightUpdate(**found, sends="delta", codec=SEALED, vector=vector, examples=0, steps=0)


def _sealed_vector(sealed: int, others: int, payload: memoryview, key: str) -> SealedVector:
    if not key:
        raise WireError("field key: what is sealed names its key")
    try:
        return SealedVector.read(sealed, others, payload)
    except ValueError as error:
        raise WireError(f"field parameters: {sealed} sealed ones and {others} others: {error}") from error


def _read_masked(header: Header, payload: memoryview) -> WeightUpdate:
    """Read a masked update; its vector is a view of the payload, all of which it takes."""
    found = _MASKED.take(header)
    bits = take(header, "bits", _BITS)
    if not found["epoch"]:
        raise WireError("field epoch: what is masked has one, and it is not 0")
    codec = masked_codec(bits)
    try:
        vector = read_vector(codec, 8 * len(payload) // bits, payload)
    except ValueError as error:
        raise WireError(f"field vector: it is not masked: {error}") from error
    return WeightUpdate(**found, sends="delta", codec=codec, vector=vector, examples=0, steps=0)


def _read_masked_survey(header: Header, payload: memoryview) -> WeightUpdate:
    """Read a masked answer to a survey: its shape as JSON, and the masked numbers."""
    length = take(header, "shape_bytes", integer(0, min(len(payload), _MOST_SHAPE_BYTES)))
    try:
        shape: SurveyShape = _SHAPE.read(json.loads(bytes(payload[:length])))
    except (ValueError, RecursionError) as error:
        raise WireError(f"field shape: it is no JSON: {error}") from error
    except FieldError as error:
        raise error.inside("shape") from None
    if shape.fault:
        raise WireError(f"field shape: {shape.fault}")
    return replace(_read_masked(header, payload[length:]), shape=shape)


def _read_statistics(header: Header, payload: memoryview) -> SiteStatistics:
    found = _STATISTICS.take(header)
    try:
        return SiteStatistics(**found, statistics=unpack(payload))
    except WireError as error:
        raise WireError(f"the payload holds no statistics: {error}") from error
