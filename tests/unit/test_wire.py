"""Messages to bytes and back: what goes in comes out, in the bytes that docs/protocol.md promises."""

import gc
import math
import string
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace

import msgpack
import numpy as np
import pytest
from builders import (
    SIZE,
    a_layout,
    a_masked_answer,
    a_masked_update,
    a_vector,
    a_version,
    an_evaluation,
    an_update,
    float32s,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluffle import framing
from fluffle.compression import CODECS, compress, decompressed
from fluffle.errors import MessageTooLarge, WireError
from fluffle.framing import join, split
from fluffle.model import FrozenPart, Layout, SharedGroup, TensorSpec
from fluffle.plan import Plan
from fluffle.record import (
    CachedUpdate,
    Contributor,
    Evaluation,
    Folded,
    Hello,
    ModelVersion,
    MomentsRecord,
    PlateauState,
    Rank,
)
from fluffle.record_wire import (
    RECORD,
    checksum_of,
    decode_record,
    decode_version,
    encode_version,
    moments_pieces,
)
from fluffle.secure.modulus import BITS
from fluffle.topology import MIB
from fluffle.update import AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle.wire import decode_inbound, encode_evaluation, encode_hello, encode_update

NAME_CHARACTERS = string.ascii_letters + string.digits
names = st.text(NAME_CHARACTERS, min_size=1, max_size=1).flatmap(
    lambda first: st.text(NAME_CHARACTERS + "_.@:-", max_size=99).map(lambda rest: first + rest)
)
# Whatever text msgpack can carry: all of Unicode but half surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=16)
numbers = st.floats(allow_nan=False, allow_infinity=False)
printable = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=16)
metrics = st.dictionaries(printable, st.floats(), max_size=5)
counts = st.integers(0, 2**63)
ids = st.builds(UpdateId, names, names, st.integers(1, 2**63))
ascending = st.lists(st.integers(1, 2**63), max_size=6, unique=True).map(sorted)
logs = ascending.map(lambda bounds: RunLog(2**63, tuple(zip(bounds[0::2], bounds[1::2], strict=False))))
any_float32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
vectors = st.integers(0, 40).flatmap(lambda size: arrays(np.float32, size, elements=any_float32))

# The dtype and the group of a tensor.
KINDS: list[tuple[str, SharedGroup]] = [
    ("float32", "trained"),
    ("float32", "statistic"),
    ("float16", "statistic"),
    ("int64", "statistic"),
]

updates = st.builds(
    WeightUpdate,
    federation=texts,
    id=ids,
    base_term=st.integers(1, 2**63),
    base_version=counts,
    layout_digest=texts,
    sends=st.sampled_from(["delta", "weights"]),
    codec=st.sampled_from(["float32", "float32+zstd"]),
    vector=vectors.map(float32s),
    statistics=vectors,
    integers=st.binary(max_size=20),
    examples=st.integers(-(2**62), 2**63),
    loss=st.none() | st.floats(),
    train_s=numbers,
)
masked = st.builds(a_masked_update, size=st.integers(0, 50), bits=st.sampled_from(BITS), revision=counts)
evaluations = st.builds(Evaluation, texts, names, counts, metrics, numbers)


def in_order(terms: list[Rank]) -> tuple[Rank, ...]:
    """Put terms and the versions that they began from into an order that can be."""
    numbers = sorted({began.term for began in terms})
    began_from = sorted(began.version for began in terms)
    return tuple(Rank(term, version) for term, version in zip(numbers, began_from, strict=False))


@st.composite
def versions(draw: st.DrawFn) -> ModelVersion:
    """Records with anything in them that a leader could write."""
    layout = draw(
        st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(KINDS)), max_size=4)
    )
    specs = tuple(TensorSpec(f"t{n}", tuple(shape), *kind) for n, (shape, kind) in enumerate(layout))
    whole = Layout(specs, draw(st.none() | st.builds(FrozenPart, st.integers(1, 99), counts, texts)))
    federation, average_decay = draw(texts), draw(st.sampled_from([0.0, 0.9])) if whole.size else 0.0
    average_size = whole.size if average_decay else 0
    in_this = evaluations.map(lambda evaluation: replace(evaluation, federation=federation))
    return ModelVersion(
        federation=federation,
        term=draw(st.integers(1, 2**63)),
        version=draw(counts),
        parent=draw(st.text("0123456789abcdef", max_size=64)),
        terms=draw(
            st.lists(st.builds(Rank, st.integers(1, 2**62), counts), min_size=1, max_size=3).map(in_order)
        ),
        layout=whole,
        plan=draw(
            st.builds(
                Plan,
                local_epochs=st.integers(1, 100),
                local_steps=st.none() | st.integers(1, 100),
                learning_rate=st.none() | numbers,
                proximal_mu=numbers,
                sends=st.sampled_from(["delta", "weights"]),
                codec=st.sampled_from(sorted(CODECS)),
                one_update_per_version=st.booleans(),
                learning_rate_scale=numbers,
                keep_optimizer=st.booleans(),
                updates_per_version=st.integers(1, 2**63),
            )
        ),
        strategy=draw(texts),
        vector=draw(arrays(np.float32, whole.size, elements=any_float32)),
        average=draw(arrays(np.float32, average_size, elements=any_float32)),
        average_decay=average_decay,
        statistics=draw(arrays(np.float32, whole.statistics_size, elements=any_float32)),
        integers=draw(st.binary(min_size=whole.integers_size_bytes, max_size=whole.integers_size_bytes)),
        applied=AppliedUpdates(draw(st.dictionaries(st.tuples(names, names), logs, max_size=3))),
        folded=tuple(
            draw(
                st.lists(
                    st.builds(Folded, ids, counts, counts, *[numbers] * 3, st.none() | st.floats(), numbers),
                    max_size=3,
                )
            )
        ),
        norms=tuple(draw(st.lists(st.floats(0, 1e300), max_size=4))),
        contributors=draw(
            st.dictionaries(
                names,
                st.builds(
                    Contributor,
                    *(counts, counts, counts, numbers, counts, numbers),
                    st.none() | st.floats(),
                    texts,
                ),
                max_size=3,
            )
        ),
        rejected=draw(counts),
        evaluation=draw(st.none() | in_this),
        best=draw(st.none() | in_this),
        best_by=draw(texts),
        target_held=draw(counts),
        not_finite_held=draw(counts),
        plateau=draw(st.builds(PlateauState, counts, counts)),
        window=tuple(draw(st.lists(st.tuples(names, numbers), max_size=3))),
        elapsed_s=draw(numbers),
        started_s=draw(st.none() | numbers),
        committed_at=draw(numbers),
        closing=draw(texts),
        finished=draw(texts),
        moments_checksum=draw(st.none() | st.integers(0, 2**64 - 1)),
    )


def is_same(one: object, other: object) -> bool:
    """Compare two values; a NaN is the same as a NaN."""
    if type(one) is type(other) and isinstance(one, Evaluation | Mapping | tuple | float):
        return repr(one) == repr(other)
    return one == other


def assert_same(one: object, other: object) -> None:
    """Compare two values field by field, vectors by their bits."""
    assert type(one) is type(other)
    if not is_dataclass(one):
        assert is_same(one, other)
        return
    for field in fields(one):
        mine, others = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == others.dtype == np.float32
            assert mine.tobytes() == others.tobytes(), field.name
        else:
            assert is_same(mine, others), field.name


answers = st.builds(a_masked_answer, names=st.lists(names, min_size=1, max_size=4, unique=True).map(tuple))


@given(updates | masked | answers)
def test_an_update_comes_back_as_it_went(update: WeightUpdate) -> None:
    assert_same(decode_inbound(encode_update(update)), update)


@given(evaluations)
def test_an_evaluation_comes_back_as_it_went(evaluation: Evaluation) -> None:
    assert_same(decode_inbound(encode_evaluation(evaluation)), evaluation)


@given(texts, names)
def test_a_hello_comes_back_as_it_went(federation: str, name: str) -> None:
    assert decode_inbound(encode_hello(Hello(federation, name))) == Hello(federation, name)


@given(versions())
def test_a_version_comes_back_as_it_went(version: ModelVersion) -> None:
    assert_same(decode_version(encode_version(version)), version)


@given(st.integers(0, 3), st.integers(0, 9))
def test_moments_come_back_as_they_went(count: int, size: int) -> None:
    moments = MomentsRecord(
        "digits", Rank(2, 7), {f"m{n}": np.arange(size, dtype=np.float32) + n for n in range(count)}
    )

    found = decode_record(bytes(moments_pieces(moments)))

    assert isinstance(found, MomentsRecord)
    assert (found.federation, found.rank, list(found.vectors)) == (
        "digits",
        Rank(2, 7),
        list(moments.vectors),
    )
    assert all(found.vectors[name].tolist() == vector.tolist() for name, vector in moments.vectors.items())
    assert checksum_of(found) == checksum_of(moments)


def kept_updates(size: int) -> MomentsRecord:
    rng, ones = np.random.default_rng(1), np.ones(size, np.float32)
    cached = (
        CachedUpdate("a", 1.5, 3, "int8", compress("int8", ones, rng), used=0.1),
        CachedUpdate("b", 2.0, 4, "float32", compress("float32", ones, rng), count=2, stage=1),
    )
    return MomentsRecord("digits", Rank(2, 7), {}, cached)


@pytest.mark.parametrize("size", [0, 1, 2000])
def test_kept_updates_come_back_as_they_went_with_no_vector_before_them(size: int) -> None:
    moments = kept_updates(size)

    found = decode_record(bytes(moments_pieces(moments)))

    assert isinstance(found, MomentsRecord)
    for one, other in zip(found.cached, moments.cached, strict=True):
        assert_same(one, other)
    assert checksum_of(found) == checksum_of(moments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row[:7] + row[8:], r"field cached\[0\]: expected a list of"),
        (lambda row: [*row[:3], "int8+zstd", *row[4:]], r"field cached\[0\].3: .* known are float32, int8"),
        (lambda row: [*row[:7], row[7] + 1, *row[8:]], r"field cached\[0\]: the vector takes 2009 bytes"),
        (lambda row: [*row[:8], 1, row[9]], r"field cached\[0\]: the vector takes 2007 bytes"),
        (lambda row: [*row[:8], 2000, row[9]], r"field cached\[0\]: element 2000 is the first of 2000"),
        (lambda row: [*row[:9], row[9] + 1], "field names: 0 vectors cannot share -1 bytes"),
        (lambda row: [*row[:9], row[9] - 1], "field names: 0 vectors cannot share 1 bytes"),
    ],
)
def test_a_kept_update_that_does_not_fit_its_bytes_is_refused_with_its_field(
    change: Callable[[list[object]], list[object]], said: str
) -> None:
    header, payload = split(bytes(moments_pieces(kept_updates(2000))), RECORD)
    header["cached"][0] = change(header["cached"][0])

    with pytest.raises(WireError, match=said):
        decode_record(bytes(join(header, [payload], RECORD)))


@given(updates.map(lambda update: replace(update, codec="float32")) | versions())
def test_any_msgpack_library_reads_a_message_as_a_map_and_a_bin_at_a_multiple_of_4(
    message: WeightUpdate | ModelVersion,
) -> None:
    body = encode_update(message) if isinstance(message, WeightUpdate) else encode_version(message)

    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    header, payload = unpacker

    assert (len(body) - len(payload)) % framing.ALIGNMENT == 0
    assert body.endswith(payload)
    if isinstance(message, ModelVersion):
        vectors = message.vector.tobytes() + message.average.tobytes()
    else:
        vectors = decompressed(message.vector).tobytes()
    assert payload == vectors + message.statistics.tobytes() + message.integers
    assert header["fluffle"] == framing.PROTOCOL
    assert header["kind"] == ("update" if isinstance(message, WeightUpdate) else "version")


def test_a_vector_is_read_in_place_and_nobody_can_write_to_it() -> None:
    body = encode_update(an_update())

    update = decode_inbound(body)

    assert isinstance(update, WeightUpdate)
    assert np.shares_memory(np.frombuffer(update.vector.payload, np.uint8), np.frombuffer(body, np.uint8))
    assert update.vector.payload.readonly


def test_a_versions_vector_and_moments_are_read_in_place_too() -> None:
    version_body = encode_version(a_version())
    pieces = moments_pieces(MomentsRecord("digits", Rank(1, 1), {"m": a_vector(1, 2), "v": a_vector(3, 4)}))
    moments_body = bytes(pieces)

    version, moments = decode_version(version_body), decode_record(moments_body)

    assert np.shares_memory(version.vector, np.frombuffer(version_body, np.uint8))
    assert isinstance(moments, MomentsRecord)
    assert all(np.shares_memory(v, np.frombuffer(moments_body, np.uint8)) for v in moments.vectors.values())


def test_a_header_of_any_length_leaves_the_vector_aligned() -> None:
    for length in range(1, 100):
        update = an_update("w" * length)
        body = encode_update(update)
        assert (len(body) - 4 * SIZE) % framing.ALIGNMENT == 0
        assert_same(decode_inbound(body), update)


def test_a_header_longer_than_the_first_look_is_read() -> None:
    folded = tuple(Folded(UpdateId("w", "r", n), 0, 0, 1.0) for n in range(1, 3000))

    version = decode_version(encode_version(replace(a_version(), folded=folded)))

    assert version.folded == folded


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_travels_as_it_is(nothing: float) -> None:
    evaluation = an_evaluation(3, {"accuracy": 0.5, "loss": nothing})

    found = decode_inbound(encode_evaluation(evaluation))

    assert_same(found, evaluation)


def test_a_message_larger_than_allowed_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_MESSAGE_BYTES", MIB)
    quarter = MIB // 4
    large = replace(
        an_update(), vector=float32s(np.zeros(quarter, np.float32)), layout_digest=a_layout(quarter).digest
    )

    with pytest.raises(MessageTooLarge, match=r"this update takes [0-9.]+ MiB, .* at most 1 MiB"):
        encode_update(large)
    encode_update(an_update(values=[0.0] * quarter, codec="bfloat16"))


def test_nothing_holds_a_body_once_its_message_is_gone_even_before_garbage_is_collected() -> None:
    body = encode_update(an_update())
    before = sys.getrefcount(body)
    gc.disable()
    try:
        update = decode_inbound(body)
        del update
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
