"""Every kind of bad input by its name: refused with its reason, while an honest update is applied."""

from collections.abc import Mapping
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from builders import (
    SIZE,
    a_config,
    a_layout,
    a_strategy,
    a_vector,
    a_version,
    an_evaluation,
    an_update,
    float32s,
)
from fake_broker import FakeBroker
from leading import a_server, aggregate, newest, rejected, send, unacked
from messages import put_together, rewritten, taken_apart, with_payload, with_raw, without

from fluffle.errors import WireError
from fluffle.framing import PROTOCOL
from fluffle.model import Layout, TensorSpec
from fluffle.record_wire import decode_record, encode_version
from fluffle.wire import encode_evaluation, encode_update

NAN, INFINITY = float("nan"), float("inf")
LARGEST = float(np.finfo(np.float32).max)
UPDATE = encode_update(an_update("w1", loss=0.5))
EVALUATION = encode_evaluation(an_evaluation(0, {"accuracy": 0.5}, evaluator="w1"))
HONEST = an_update("honest", values=[1.0] * SIZE)


def update(**changed: object) -> bytes:
    return rewritten(UPDATE, **changed)


def field(name: str, value: bytes) -> bytes:
    return with_raw(UPDATE, name, value)


def floats(*values: float) -> bytes:
    return with_payload(UPDATE, np.array(values, "<f4").tobytes())


def a_model_of(*tensors: TensorSpec) -> bytes:
    return encode_update(an_update("w1", layout=Layout(tensors)))


def with_key_twice() -> bytes:
    header, payload = taken_apart(UPDATE)
    packer = msgpack.Packer()
    pairs = [*header.items(), ("codec", "int8")]
    packed = packer.pack_map_header(len(pairs)) + b"".join(packer.pack(x) for pair in pairs for x in pair)
    return bytes(packed) + b"\xc6" + len(payload).to_bytes(4, "big") + payload


HUGE = b"\xff\xff\xff\xff"
# What cannot be read, and what its refusal says.
UNREADABLE: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "does not end within 0 bytes"),
    "one byte": (b"\x80", "the payload is not one msgpack bin 32"),
    "truncated": (UPDATE[:-1], "the payload announces 16 bytes, but 15 follow"),
    "truncated in the header": (UPDATE[:40], "does not end within 40 bytes"),
    "trailing garbage": (UPDATE + b"\0", "announces 16 bytes, but 17 follow"),
    "another map behind it": (UPDATE + b"\x80", "announces 16 bytes, but 17 follow"),
    "no map": (b"\xa5hello", "does not begin with a map"),
    "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07os.exit\x94.", "payload is not one msgpack"),
    "a depth bomb of lists": (field("loss", b"\x91" * 60_000), "field loss: its lists and maps lie too deep"),
    "a depth bomb of maps": (field("loss", b"\x81\xa1a" * 20_000), "field loss: its lists and maps lie too"),
    "a text of four billion": (field("codec", b"\xdb" + HUGE), "field codec: the header does"),
    "bytes of four billion": (field("pad", b"\xc6" + HUGE), "field pad: the header does not end"),
    "a list of four billion": (field("loss", b"\xdd" + HUGE), "field loss: its lists and"),
    "a map of four billion": (field("loss", b"\xdf" + HUGE), "field loss: its lists and maps"),
    "a header of four billion": (b"\xdf" + HUGE, "its lists and maps hold more than 1024 items"),
    "a payload of four billion": (UPDATE[:-20] + HUGE + UPDATE[-16:], "announces 4294967295 bytes"),
    "60,000 empty maps": (
        field("loss", b"\xdd\0\0\xea\x60" + b"\x80" * 60_000),
        "field loss: its lists and maps hold more than 1024 items",
    ),
    "many short lists of empty maps": (
        field("loss", b"\x9f" + (b"\xdc\0\x80" + b"\x80" * 128) * 15),
        "field loss: its lists and maps hold more than 1024 items",
    ),
    "an extension type": (field("codec", b"\xd4\x01x"), "field codec: extension types are not"),
    "a timestamp": (field("train_s", b"\xd6\xff\0\0\0\0"), "field train_s: extension types are"),
    "an empty extension type": (field("codec", b"\xc7\0\x01"), "field codec: expected str, found ExtType"),
    "a byte that begins nothing": (field("codec", b"\xc1"), "field codec: its bytes are not msgpack"),
    "a key twice": (with_key_twice(), "field codec: it stands there twice"),
    "a key twice inside": (field("loss", b"\x82\xa1a\1\xa1a\2"), "field loss: the key 'a'"),
    "a key that is a list": (field("loss", b"\x81\x90\1"), "field loss: list is not allowed"),
    "a key that is a number": (field("loss", b"\x81\1\1"), "field loss: int is not allowed"),
    "no UTF-8": (field("codec", b"\xa2\xff\xfe"), "field codec: 'utf-8' codec can't decode"),
    "half a surrogate pair": (field("codec", b"\xa3\xed\xa0\x80"), "field codec: 'utf-8' codec"),
    "control characters": (update(id=["w\n\x1b[31m", "r1", 1]), r"field id.worker: 'w\n\x1b[31m' is no name"),
    "a key of control characters": (update(**{"\n\x1b": 1}), r"unknown field '\n\x1b'"),
    "a missing field": (without(UPDATE, "examples"), "field examples: it is missing"),
    "an unknown field": (update(callback="os.system"), "unknown field 'callback'"),
    "a codec of its own": (update(codec="pickle"), "field codec: must be one of float32, bfloat16, int8, "),
    "a wrong checksum": (update(checksum=0), "field checksum: the payload's bytes are not"),
    "a checksum that is no number": (update(checksum="0"), "field checksum: expected int"),
    "a vector that is longer than its bytes": (
        update(codec="bfloat16", parameters=2**27),
        "field vector_bytes: 134217728 parameters in bfloat16",
    ),
    "a decompression bomb": (
        update(codec="int8+zstd", parameters=2**27),
        "field parameters: 134217728 are more than the 4 of the model",
    ),
    "more bytes than there are": (
        update(vector_bytes=2**27),
        "field vector_bytes: 134217728 is not from 0 to",
    ),
    "more parameters than any model": (update(parameters=2**27 + 1), "field parameters: "),
    "negative parameters": (update(parameters=-1), "field parameters: -1 is not from 0"),
    "examples that are NaN": (update(examples=NAN), "field examples: expected int, found float"),
    "examples that are true": (update(examples=True), "field examples: expected int, found bool"),
    "an infinite duration": (update(train_s=INFINITY), "field train_s: inf is not finite"),
    "a loss that is a text": (update(loss="0"), "field loss: expected int or float, found str"),
    "a metric that is a text": (
        rewritten(EVALUATION, metrics={"loss": "0"}),
        "field metrics[loss]: expected int or float, found str",
    ),
    "a metric's name of control characters": (
        rewritten(EVALUATION, metrics={"\x1b[2J": 1}),
        r"'\x1b[2J' is no short name",
    ),
    "257 metrics": (
        rewritten(EVALUATION, metrics={str(n): 0 for n in range(257)}),
        "field metrics: 257 entries",
    ),
    "a shorter vector": (floats(1, 1, 1), "field vector_bytes: 16 is not from 0 to 12"),
    "a negative term": (update(base_term=-1), "field base_term: -1 is not from 1"),
}
# What can be read and may not become part of the model: the reason, and what the refusal says.
REFUSED: Mapping[str, tuple[bytes, str, str]] = {
    "no examples": (update(examples=0), "bad-examples", "claims 0 examples"),
    "negative examples": (update(examples=-5), "bad-examples", "claims -5 examples"),
    "absurd examples": (update(examples=2**64 - 1), "bad-examples", "claims 18446744073709551615 examples"),
    "a number of fewer parameters": (
        update(parameters=3, vector_bytes=12),
        "wrong-layout",
        "3 trained values, 0 statistics and 4 bytes of integers",
    ),
    "a longer vector": (
        floats(1, 1, 1, 1, 1),
        "wrong-layout",
        "4 trained values, 0 statistics and 4 bytes of integers",
    ),
    "another shape": (a_model_of(TensorSpec("dense/kernel", (2, 2), "float32")), "wrong-layout", "layout is"),
    "another dtype": (
        a_model_of(TensorSpec("dense/kernel", (SIZE,), "float64")),
        "wrong-layout",
        "layout is",
    ),
    "another name": (a_model_of(TensorSpec("dense/bias", (SIZE,), "float32")), "wrong-layout", "layout is"),
    "NaN": (floats(0, 0, 0, NAN), "not-finite", "the update holds NaN or infinite values, in dense/kernel"),
    "infinity": (
        floats(0, -INFINITY, 0, 0),
        "not-finite",
        "the update holds NaN or infinite values, in dense/kernel",
    ),
    "a sum that overflows": (floats(LARGEST, 0, 0, 0), "too-large", "the update holds 3.4e+38"),
    "a protocol from the future": (
        update(fluffle=PROTOCOL + 1),
        "other-protocol",
        f"the message is of protocol {PROTOCOL + 1}, and this Fluffle speaks protocol {PROTOCOL}",
    ),
    "a base from the future": (
        update(base_version=2**64 - 1),
        "future-version",
        "from version 1844674407370955",
    ),
    "a base of another term": (
        update(base_term=9),
        "unknown-base",
        "version 0 (term 9), which is not in the",
    ),
    "another federation": (
        update(federation="other"),
        "wrong-federation",
        "is for 'other', this is 'digits'",
    ),
    "another worker's name": (
        update(id=["honest", "r1", 1]),
        "foreign-sender",
        "speaks for 'honest' but comes from",
    ),
    "what is trained in another way": (
        update(sends="weights"),
        "wrong-content",
        "carries weights, but fedbuff",
    ),
    "an evaluation by a worker": (
        encode_evaluation(an_evaluation(0, {"accuracy": 1.0}, evaluator="w1")),
        "foreign-sender",
        "through the exchange digits.evaluations, not 'digits.updates'",
    ),
}
CASES = {name: (body, "unreadable", says) for name, (body, says) in UNREADABLE.items()} | dict(REFUSED)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_its_reason_and_an_honest_update_is_applied(name: str) -> None:
    body, reason, says = CASES[name]
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config)
    with FakeBroker(server, user="w1") as attacker:
        attacker.publish(config.topology.updates_in.name, "", body, {})
    send(server, config, HONEST)

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == reason
    assert says in str(headers["detail"])
    assert str(headers["detail"]).isprintable()
    assert newest(server, config).vector.tolist() == [1.0] * SIZE
    assert newest(server, config).updates == 1
    assert unacked(server, config) == []
    assert server.bodies(config.topology.rejected.name) == [body]


def test_an_update_of_no_verified_sender_is_refused() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config)
    with FakeBroker(server, user="") as nobody:
        nobody.publish(config.topology.updates_in.name, "", UPDATE, {})

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == "foreign-sender"
    assert "from no verified RabbitMQ user" in str(headers["detail"])


def test_the_same_id_with_other_content_is_refused_and_the_first_one_stands() -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, HONEST, replace(HONEST, vector=float32s(a_vector(*[-1.0] * SIZE)), examples=99))

    aggregate(server, config)

    [headers] = rejected(server, config)
    assert headers["reason"] == "duplicate"
    assert newest(server, config).vector.tolist() == [1.0] * SIZE
    assert newest(server, config).contributors["honest"].examples == 10


def test_a_worker_that_comes_under_ever_new_runs_does_not_fill_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fluffle.update.MAX_RUNS_PER_WORKER", 3)
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, *(an_update("w1", run=f"r{n}") for n in range(5)), HONEST)

    aggregate(server, config)

    assert [headers["reason"] for headers in rejected(server, config)] == ["too-many-runs"] * 2
    assert len(newest(server, config).applied.runs) == 4


def test_sums_of_the_largest_values_that_are_let_in_stay_finite() -> None:
    largest = [float(2**50), -float(2**50), 0, 1]
    config = a_config(a_strategy("fedavg", buffer_size=3))
    updates = [an_update(f"w{n}", values=largest, examples=10**9) for n in range(3)]
    server = a_server(config, *updates)

    aggregate(server, config)

    assert rejected(server, config) == []
    assert newest(server, config).updates == 3
    assert np.isfinite(newest(server, config).vector).all()


def test_an_honest_message_put_together_by_hand_is_taken() -> None:
    """What is wrong with the others is what they are about, and not how they were made."""
    config = a_config(a_strategy(buffer_size=1))
    header, payload = taken_apart(UPDATE)
    server = a_server(config)
    with FakeBroker(server, user="w1") as worker:
        worker.publish(config.topology.updates_in.name, "", put_together(header, payload), {})

    aggregate(server, config)

    assert rejected(server, config) == []
    assert a_layout().digest == header["layout_digest"]


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ([4], "object", r"layout.tensors\[0\].dtype: unknown 'object', known are float16"),
        ([4], "O", r"layout.tensors\[0\].dtype: unknown 'O', known are float16"),
        ([4], "V8", r"layout.tensors\[0\].dtype: unknown 'V8', known are float16"),
        ([4], "f4,f4", r"layout.tensors\[0\].dtype: unknown 'f4,f4', known are float16"),
        ([4], ">f4", r"layout.tensors\[0\].dtype: unknown '>f4', known are float16"),
        ([4], "float128", r"layout.tensors\[0\].dtype: unknown 'float128', known are float16"),
        ([4], "", r"layout.tensors\[0\].dtype: unknown '', known are"),
        ([4], "x" * 65, r"layout.tensors\[0\].dtype: 65 characters"),
        ([-1], "float32", r"layout.tensors\[0\].shape\[0\]: -1 is not from 0"),
        ([2**63], "float32", r"layout.tensors\[0\].shape\[0\]: 9223372036854775808 is not from 0"),
        ([2**29, 2**29], "float32", "larger than any message"),
        ([2**29, 2**29, 0], "float32", "larger than any message"),
        ([1] * 65, "float32", r"layout.tensors\[0\].shape: 65 entries, at most 64"),
        ([4.0], "float32", r"layout.tensors\[0\].shape\[0\]: expected int, found float"),
        ([5], "float32", "5 floats in float32: the vector takes 20 bytes, but has 16"),
    ],
)
def test_a_record_with_a_tensor_that_cannot_be_is_refused(shape: list[object], dtype: str, says: str) -> None:
    body = rewritten(encode_version(a_version()), layout=[[["w", shape, dtype, "trained"]], None])

    with pytest.raises(WireError, match=f"field layout.*{says}|field {says}"):
        decode_record(body)


@pytest.mark.parametrize(
    ("applied", "says"),
    [
        ([["w", "r", [9, [[1, 2], [2, 3]]]]], "applied: .* gaps below 9, found 2 to 3 after 2"),
        ([["w", "r", [9, [[3, 2]]]]], "applied: .* gaps below 9, found 3 to 2 after 0"),
        ([["w", "r", [9, [[3, 10]]]]], "applied: .* gaps below 9, found 3 to 10 after 0"),
        ([["w", "r", [9, []]], ["w", "r", [8, []]]], "applied: run r of w stands there twice"),
    ],
)
def test_a_record_of_applied_updates_that_contradicts_itself_is_refused(applied: object, says: str) -> None:
    with pytest.raises(WireError, match=f"field {says}"):
        decode_record(rewritten(encode_version(a_version()), applied=applied))
