"""Messages that are not what the protocol says: each is refused in words that name the fault."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
from builders import a_layout, a_masked_answer, a_masked_update, a_vector, a_version, an_evaluation, an_update
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import rewritten, taken_apart, with_payload, without

from fluffle.errors import WireError
from fluffle.framing import PROTOCOL
from fluffle.record import Contributor, Folded, Hello, ModelVersion, MomentsRecord, Rank
from fluffle.record_wire import decode_record, decode_version, encode_copy, encode_version, moments_pieces
from fluffle.update import AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle.wire import INBOUND, decode_inbound, encode_evaluation, encode_hello, encode_update

ID = UpdateId("w1", "r1", 3)
UPDATE = encode_update(an_update(loss=0.5, integers=b"\x01\x02"))
MASKED = encode_update(a_masked_update())
ANSWER = encode_update(a_masked_answer())
EVALUATION = encode_evaluation(an_evaluation(3, {"accuracy": 0.5}))
HELLO = encode_hello(Hello("digits", "a1"))
VERSION = encode_version(
    replace(
        a_version(5),
        applied=AppliedUpdates({("w1", "r1"): RunLog(9, ((2, 3), (7, 7)))}),
        folded=(Folded(ID, 4, 0, 1.0),),
        contributors={"w1": Contributor(updates=1, examples=10)},
        evaluation=an_evaluation(4, {"accuracy": 0.5}),
    )
)
MOMENTS = bytes(
    moments_pieces(MomentsRecord("digits", Rank(1, 5), {"m": a_vector(1, 2), "v": a_vector(3, 4)}))
)
COPY = encode_copy(decode_version(VERSION), "int8", "ab" * 32)
INBOUND_BODIES = [UPDATE, MASKED, ANSWER, EVALUATION, HELLO]
RECORDS = [VERSION, MOMENTS, COPY]


# Records of before this field are read.
OPTIONAL = ("unmasked_runs", "privacy", "sealed", "sealed_bytes")


def all_fields() -> list[tuple[bytes, str]]:
    return [
        (body, field)
        for body in [*INBOUND_BODIES, *RECORDS]
        for field in taken_apart(body)[0]
        if field not in OPTIONAL
    ]


def decoder_of(body: bytes) -> Callable[[bytes], object]:
    if body == COPY:
        return decode_version
    return decode_inbound if body in INBOUND_BODIES else decode_record


def kind_of(body: object) -> str:
    return str(taken_apart(body)[0]["kind"]) if isinstance(body, bytes) else str(body)


@pytest.mark.parametrize("body", [*INBOUND_BODIES, *RECORDS], ids=kind_of)
def test_a_message_that_ends_too_early_is_refused_wherever_it_ends(body: bytes) -> None:
    decode = decoder_of(body)
    decode(body)

    for length in range(len(body)):
        with pytest.raises(WireError):
            decode(body[:length])


@pytest.mark.parametrize("body", [*INBOUND_BODIES, *RECORDS], ids=kind_of)
def test_a_flipped_bit_anywhere_is_a_wire_error_or_harmless(body: bytes) -> None:
    decode = decoder_of(body)

    for place in range(len(body)):
        for bit in range(8):
            flipped = bytearray(body)
            flipped[place] ^= 1 << bit
            try:
                decode(bytes(flipped))
            except WireError:
                continue


@pytest.mark.parametrize("body", [UPDATE, MASKED, VERSION, MOMENTS, COPY], ids=kind_of)
def test_a_flipped_bit_in_the_payload_never_goes_unseen(body: bytes) -> None:
    _, payload = taken_apart(body)

    for place in range(len(body) - len(payload), len(body)):
        flipped = bytearray(body)
        flipped[place] ^= 1
        with pytest.raises(WireError, match="checksum"):
            decoder_of(body)(bytes(flipped))


@given(st.binary(max_size=300))
def test_random_bytes_are_a_wire_error(body: bytes) -> None:
    for decode in (decode_inbound, decode_record, decode_version):
        with pytest.raises(WireError):
            decode(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.sampled_from(all_fields()), values)
def test_a_field_with_any_other_value_is_a_wire_error_or_read(
    field: tuple[bytes, str], value: object
) -> None:
    body, name = field

    try:
        message = decoder_of(body)(rewritten(body, **{name: value}))
    except WireError:
        return

    # What is read can be sent on: a refused message goes to F.rejected, a version to its successor.
    if isinstance(message, WeightUpdate):
        encode_update(message)
    elif isinstance(message, ModelVersion):
        _ = message.weights
        encode_version(message)


@pytest.mark.parametrize(("body", "field"), all_fields(), ids=kind_of)
def test_a_missing_field_is_named(body: bytes, field: str) -> None:
    with pytest.raises(WireError, match=rf"field {field}: it is missing"):
        decoder_of(body)(without(body, field))


@pytest.mark.parametrize("body", [*INBOUND_BODIES, *RECORDS], ids=kind_of)
def test_an_unknown_field_is_named(body: bytes) -> None:
    with pytest.raises(WireError, match="unknown field 'pickle'"):
        decoder_of(body)(rewritten(body, pickle=b"cos\nsystem"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            rewritten(UPDATE, fluffle=2),
            f"the message is of protocol 2, and this Fluffle speaks protocol {PROTOCOL}",
        ),
        (rewritten(UPDATE, fluffle=True), "field fluffle: expected int, found bool"),
        (
            rewritten(UPDATE, kind="order"),
            "field kind: unknown 'order', known are update, masked, masked-survey, sealed",
        ),
        (rewritten(UPDATE, kind="version"), "field kind: unknown 'version'"),
        (rewritten(UPDATE, federation=7), "field federation: expected str, found int"),
        (rewritten(UPDATE, federation="x" * 65), "field federation: 65 characters, at most 64"),
        (rewritten(UPDATE, id=["../etc", "r1", 1]), "field id.worker: '../etc' is no name"),
        (rewritten(UPDATE, id=["a b", "r1", 1]), "field id.worker: 'a b' is no name"),
        (rewritten(UPDATE, id=["a\n", "r1", 1]), r"field id.worker: 'a\\n' is no name"),
        (rewritten(UPDATE, id=["", "r1", 1]), "field id.worker: '' is no name"),
        (rewritten(UPDATE, id=["w" * 101, "r1", 1]), "field id.worker: 101 characters, at most 100"),
        (rewritten(UPDATE, id=["w1", "..", 1]), "field id.run: '..' is no name"),
        (rewritten(UPDATE, id=["w1", "r1", 0]), "field id.sequence: 0 is not from 1"),
        (rewritten(UPDATE, id=["w1", "r1", True]), "field id.sequence: expected int, found bool"),
        (rewritten(UPDATE, id=["w1", "r1", 1.0]), "field id.sequence: expected int, found float"),
        (rewritten(UPDATE, base_version=-1), "field base_version: -1 is not from 0"),
        (rewritten(UPDATE, sends="gradients"), "field sends: unknown 'gradients', known are delta, weights"),
        (
            rewritten(UPDATE, codec="zip"),
            "field codec: must be one of float32, bfloat16, int8, topk, topk:SHARE .*, .*, not 'zip'",
        ),
        (
            rewritten(UPDATE, parameters=5),
            "field vector_bytes: 5 parameters in float32: the vector takes 20 bytes, but has 16",
        ),
        (rewritten(UPDATE, parameters=2**62), "field parameters: 4611686018427387904 is not from 0"),
        (rewritten(UPDATE, examples=1.5), "field examples: expected int, found float"),
        (rewritten(UPDATE, id=["w1", "r1"]), "field id: expected a list of worker, run, sequence"),
        (rewritten(UPDATE, id="w1/r1/1"), "field id: expected a list of worker, run, sequence"),
        (rewritten(UPDATE, loss="0.5"), "field loss: expected int or float, found str"),
        (rewritten(UPDATE, loss=True), "field loss: expected int or float, found bool"),
        (rewritten(EVALUATION, metrics=[1]), "field metrics: expected dict, found list"),
        (rewritten(EVALUATION, metrics={"a": "b"}), r"field metrics\[a\]: expected int or float, found str"),
        (
            rewritten(EVALUATION, metrics={"a": True}),
            r"field metrics\[a\]: expected int or float, found bool",
        ),
        (rewritten(EVALUATION, metrics={b"a": 1.0}), "field metrics: .* is no short name"),
        (rewritten(EVALUATION, metrics={"a" * 65: 1.0}), "field metrics: 'a+' is no short name"),
        (
            rewritten(EVALUATION, metrics={str(n): 1 for n in range(257)}),
            "field metrics: 257 entries, at most 256 are allowed",
        ),
        (rewritten(UPDATE, train_s=float("nan")), "field train_s: nan is not finite"),
        (rewritten(UPDATE, absorbs=[1, 1]), "field absorbs: expected ascending numbers"),
        (rewritten(UPDATE, absorbs=[0]), r"field absorbs\[0\]: 0 is not from 1"),
        (
            rewritten(UPDATE, id=["w1", "r1", 3], absorbs=[3]),
            "field absorbs: 3 is not below the update's own number 3",
        ),
        (
            rewritten(UPDATE, absorbs=list(range(1, 34))),
            "field absorbs: 33 entries, at most 32 are allowed",
        ),
        (
            rewritten(UPDATE, codec="topk", sends="weights"),
            "field codec: topk leaves out a part of the weights: it is for deltas",
        ),
        (rewritten(UPDATE, train_s=False), "field train_s: expected int or float, found bool"),
        (rewritten(UPDATE, checksum=1), "field checksum: the payload's bytes are not those that were sent"),
        (rewritten(UPDATE, pad="text"), "field pad: expected bytes, found str"),
        (
            rewritten(UPDATE, codec="masked24"),
            "field codec: masked24 travels in a message of the kind masked",
        ),
        (rewritten(MASKED, bits=20), "field bits: 20 is none of 16, 24, 32"),
        (rewritten(MASKED, epoch=0), "field epoch: what is masked has one, and it is not 0"),
        (
            with_payload(MASKED, bytes(10)),
            "field vector: it is not masked: the vector takes 9 bytes, but has 10",
        ),
        (rewritten(ANSWER, shape_bytes=3), "field shape: it is no JSON"),
        (with_payload(ANSWER, b"[[],[],1]"), "field shape_bytes"),
        (rewritten(ANSWER, bits=24), "field vector: it is not masked"),
        (rewritten(MASKED, loss=0.5), "unknown field 'loss'"),
        (with_payload(EVALUATION, b"x"), "the payload must be empty, but has 1 bytes"),
        (with_payload(HELLO, b"x"), "the payload must be empty, but has 1 bytes"),
        (UPDATE + b"x", "the payload announces 18 bytes, but 19 follow"),
    ],
)
def test_what_is_wrong_with_a_senders_message_is_said_by_field(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_inbound(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rewritten(VERSION, term=0), "field term: 0 is not from 1"),
        (
            rewritten(VERSION, layout=[[["w", [2, 2]]], None]),
            r"field layout.tensors\[0\]: expected a list of name, shape, dtype",
        ),
        (
            rewritten(VERSION, layout=[[["w", [-2, -2], "float32", "trained"]], None]),
            r"field layout.tensors\[0\].shape\[0\]: -2 is not from 0",
        ),
        (
            rewritten(VERSION, layout=[[["w", [4], "object", "trained"]], None]),
            r"field layout.tensors\[0\].dtype: unknown 'object'",
        ),
        (
            rewritten(VERSION, layout=[[["w", [2], "float32", "trained"]] * 2, None]),
            "field layout: .* occur twice: w",
        ),
        (
            rewritten(VERSION, layout=[[["w", [5], "float32", "trained"]], None]),
            "field layout: 5 floats in float32: the vector takes 20 bytes, but has 16",
        ),
        (
            rewritten(VERSION, layout=[[["w", [2**60], "int64", "statistic"]], None]),
            r"field layout.tensors\[0\].shape\[0\]: 1152921504606846976 is not from 0 to 536870912",
        ),
        (rewritten(VERSION, plan=[]), "field plan: expected a list of local_epochs, local_steps"),
        (
            rewritten(VERSION, applied=[["w", "r", [1, [[1]]]]]),
            r"field applied\[0\].2.gaps\[0\]: expected a list of",
        ),
        (
            rewritten(VERSION, applied=[["w", "r", [9, [[2, 3], [3, 4]]]]]),
            "field applied: run r of w: expected ascending gaps below 9, found 3 to 4 after 3",
        ),
        (
            rewritten(VERSION, applied=[["w", "r", [9, [[9, 10]]]]]),
            "field applied: run r of w: expected ascending gaps below 9, found 9 to 10 after 0",
        ),
        (
            rewritten(VERSION, applied=[["w", "r", [1, []]]] * 2),
            "field applied: run r of w stands there twice",
        ),
        (
            rewritten(VERSION, folded=[[[1, "r", 1], 0, 0, 1.0, 0.0, 0.0, None, 0.0, 1, 32, 1.0]]),
            r"field folded\[0\].id.worker: expected str, found int",
        ),
        (rewritten(VERSION, contributors={"no name": []}), "field contributors: 'no name' is no name"),
        (rewritten(VERSION, contributors={"w": [1]}), r"field contributors\[w\]: expected a list of updates"),
        (rewritten(VERSION, best=["e"]), "field best: expected a list of federation, evaluator, version"),
        (rewritten(MOMENTS, names=["m", "m"]), "field names: 2 vectors cannot share 16 bytes"),
        (rewritten(MOMENTS, names=[]), "field names: 0 vectors cannot share 16 bytes"),
        (rewritten(MOMENTS, names=["a", "b", "c"]), "field names: 3 vectors cannot share 16 bytes"),
        (rewritten(MOMENTS, names=["m", 5]), r"field names\[1\]: expected str, found int"),
        (with_payload(MOMENTS, b"12345"), "field names: 2 vectors cannot share 5 bytes"),
        (rewritten(VERSION, average_decay=1.0), "field average_decay: 1.0 is not at least 0 and below 1"),
        (rewritten(VERSION, average_decay=0.9), "field average_bytes: 0 with an average_decay of 0.9"),
        (rewritten(VERSION, average_bytes=16), "field average_bytes: 16 with an average_decay of 0"),
        (
            rewritten(VERSION, average_bytes=8, average_decay=0.9),
            "field layout: 4 floats in float32: the vector takes 16 bytes, but has 8",
        ),
        (
            rewritten(VERSION, average_bytes=17, average_decay=0.9),
            "have no room in 16 bytes of payload, of which 17 are the average",
        ),
    ],
)
def test_what_is_wrong_with_a_record_is_said_by_field(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_record(body)


def test_moments_are_no_version() -> None:
    with pytest.raises(WireError, match="field kind: unknown 'moments', known are version"):
        decode_version(MOMENTS)


def test_a_key_that_stands_there_twice_is_refused() -> None:
    header, payload = taken_apart(HELLO)
    packer = msgpack.Packer()
    pairs = [*header.items(), ("name", "another")]
    doubled = packer.pack_map_header(len(pairs)) + b"".join(packer.pack(x) for pair in pairs for x in pair)

    with pytest.raises(WireError, match="field name: it stands there twice"):
        decode_inbound(doubled + b"\xc6" + len(payload).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "does not end within 0 bytes"),
        (b"\xc1" * 9, "does not begin with a map"),
        (bytes(msgpack.packb([1, 2])), "does not begin with a map"),
        (bytes(msgpack.packb({1: 2})), "the name of a field must be str, not int"),
        (b"\x81\xa1a\xa1\xff", "field a: 'utf-8' codec"),
        (bytes(msgpack.packb({"a": msgpack.ExtType(1, b"x")})), "field a: extension types are not allowed"),
        (bytes(msgpack.packb({"a": msgpack.Timestamp(1, 2)})), "field a: extension types are not allowed"),
        (b"\x81\xa1a" * 5000, "field a: its lists and maps lie too deep in each other"),
        (b"\x81\xa1a" + b"\x91" * 5000, "field a: its lists and maps lie too deep"),
        (b"\xdf\xff\xff\xff\xff", "its lists and maps hold more than 1024 items"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "field a: its lists and maps hold more than 1024 items"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "does not end within 8 bytes"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "does not end within 8 bytes"),
        (bytes(msgpack.packb({"a": bytes(INBOUND.size_bytes)})), "does not end within 65536 bytes"),
        (bytes(msgpack.packb(taken_apart(HELLO)[0])), "not one msgpack bin 32 right after the header"),
        (bytes(msgpack.packb(taken_apart(HELLO)[0])) + b"\xc4\x00", "not one msgpack bin 32"),
        (
            bytes(msgpack.packb(taken_apart(HELLO)[0])) + b"\xc6\xff\xff\xff\xff",
            "announces 4294967295 bytes, but 0",
        ),
    ],
)
def test_what_is_no_header_of_this_protocol_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_inbound(body)


def test_lying_lengths_allocate_nothing() -> None:
    lies = [
        b"\x81\xa1a" + b"\xdd\x00\x00\xff\xff" * 1000,
        b"\xdf\x00\x00\xff\xff" * 1000,
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        rewritten(UPDATE, parameters=2**29),
    ]

    tracemalloc.start()
    try:
        for lie in lies:
            with pytest.raises(WireError):
                decode_inbound(lie)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 1_000_000


def test_a_layout_without_elements_has_an_empty_payload() -> None:
    empty = replace(a_version(), layout=a_layout(0), vector=a_vector())

    found = decode_version(encode_version(empty))

    assert found.vector.size == 0
    assert found.weights["dense/kernel"].shape == (0,)
