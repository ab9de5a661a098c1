"""Updates that hold the last tensors of the model alone: on the wire, and at the gates."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    a_strategy,
    a_vector,
    an_update,
    float32s,
    passed,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from part_updates import LATE, Arrival, a_model_of, an_arrived

from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.tail import TailVector, add_from, tail_of
from fluffle.compression import compress, decompressed
from fluffle.errors import WireError
from fluffle.model import Layout, TensorSpec, Vector
from fluffle.plan import Sends
from fluffle.update import AppliedUpdates, WeightUpdate
from fluffle.vector_math import BLOCK_SIZE
from fluffle.wire import decode_inbound, encode_update
from fluffle_aggregator.gates.gate import Incoming
from fluffle_aggregator.gates.limits import Limits
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.spool import open_spool

CODECS = ("float32", "bfloat16", "int8", "topk:0.5", "float32+zstd", "int8+zstd", "topk:0.5+zstd")


@given(
    codec=st.sampled_from(CODECS),
    values=arrays(np.float32, st.integers(1, 3000), elements=st.floats(-8.0, 8.0, width=32)),
    before=st.integers(0, 3000),
    scale=st.sampled_from([1.0, -0.5, 3.0]),
    start=st.integers(0, 6000),
)
def test_a_tail_is_the_vector_with_zeros_before_it(
    codec: str, values: Vector, before: int, scale: float, start: int
) -> None:
    known = compress(codec, values, np.random.default_rng(0))
    tail = tail_of(before + values.size, known)
    expected = np.concatenate((np.zeros(before, np.float32), decompressed(known)))

    total, from_start = np.ones(expected.size, np.float32), np.ones(expected.size, np.float32)
    tail.add_to(total, scale)
    add_from(start, tail, from_start, scale)

    np.testing.assert_array_equal(decompressed(tail), expected)
    np.testing.assert_array_equal(decompressed(tail.owned()), expected)
    np.testing.assert_array_equal(total, np.float32(1) + expected * np.float32(scale))
    np.testing.assert_array_equal(from_start[start:], total[start:])
    assert np.all(from_start[:start] == 1)
    assert tail.start == before
    assert tail.magnitude_bound() >= np.abs(expected).max()


@pytest.mark.parametrize("start", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_tail_comes_in_the_blocks_of_the_whole_vector(codec: str, start: int) -> None:
    values = np.random.default_rng(0).random(2 * BLOCK_SIZE + 5, np.float32)
    known = compress(codec, values, np.random.default_rng(0))
    tail = tail_of(start + values.size, known)

    sizes = [block.size for block in tail.blocks()]

    assert sizes == [block.size for block in Float32Vector.of(np.zeros(tail.size, np.float32)).blocks()]
    np.testing.assert_array_equal(decompressed(tail)[start:], decompressed(known))


@pytest.mark.parametrize("codec", CODECS)
def test_an_update_of_a_part_comes_back_as_it_went_and_is_smaller(codec: str) -> None:
    size = 20_000
    tensors = (
        TensorSpec("conv/kernel", (size,), "float32"),
        TensorSpec("dense/kernel", (size // 4,), "float32"),
    )
    layout, values = Layout(tensors), np.random.default_rng(0).normal(size=size).astype(np.float32)
    known = compress(codec, values[: size // 4], np.random.default_rng(0))
    whole = replace(
        an_update(layout=layout, codec=codec), vector=compress(codec, values, np.random.default_rng(0))
    )
    part = replace(whole, first_tensor=1, vector=known)

    found = decode_inbound(encode_update(part))

    assert isinstance(found, WeightUpdate)
    assert found.first_tensor == 1
    np.testing.assert_array_equal(decompressed(found.vector), decompressed(known))
    assert len(encode_update(part)) < 0.35 * len(encode_update(whole))


def test_a_number_of_a_first_tensor_that_is_none_is_unreadable() -> None:
    with pytest.raises(WireError, match="field first_tensor: -1 is not from 0"):
        encode_update(replace(an_update(), first_tensor=-1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_tensor": 6}, "no tensor from number 6 on is trained: the model has 6 tensors"),
        ({"first_tensor": 2**63}, "no tensor from number 9223372036854775808 on is trained"),
        ({"first_tensor": 4}, "no tensor from number 4 on is trained"),
        (
            {"first_tensor": 0},
            "has 3 trained values, 1 statistics and 4 bytes of integers; the model has 7, 3 and 8",
        ),
        ({"first_tensor": 1}, "the model has 3, 3 and 8 from tensor 1 on"),
        (
            {"vector": float32s(a_vector(1.0))},
            "has 1 trained values, 1 statistics .* has 3, 1 and 4 from tensor 3",
        ),
        ({"statistics": a_vector(1.0, 2.0)}, "has 3 trained values, 2 statistics"),
        ({"integers": b""}, "and 0 bytes of integers"),
    ],
)
def test_a_part_that_does_not_fit_the_model_is_refused_with_what_was_expected(
    change: Mapping[str, Any], said: str
) -> None:
    update = an_arrived(Arrival("a", np.ones(7, np.float32), is_part=True), 1, 0)

    found = refusal(replace(update, **change), a_model_of(a_strategy()))

    assert found is not None
    assert found.reason == "wrong-layout"
    assert re.search(said, found.detail), found.detail


def test_a_part_that_is_not_finite_is_refused_with_the_tensor() -> None:
    update = an_arrived(Arrival("a", np.full(7, np.nan, np.float32), is_part=True), 1, 0)

    found = refusal(update, a_model_of(a_strategy()))

    assert found is not None
    assert found.detail == "the update holds NaN or infinite values, in dense/kernel"


@pytest.mark.parametrize("sends", ["delta", "weights"])
def test_the_norm_of_a_part_is_that_of_what_it_would_move(sends: Sends) -> None:
    strategy = a_strategy("fedbuff" if sends == "delta" else "fedasync")
    model = a_model_of(strategy, values=[5, 5, 5, 5, 1, 1, 1])
    model.norms = (1.0,) * 20
    moved = np.array([0, 0, 0, 0, 2, 3, 6], np.float32)
    values = moved if sends == "delta" else moved + 1
    update = an_arrived(Arrival("a", values, is_part=True), 1, 0, sends)

    found = passed(update, model, Limits(limit_norm=8))
    clipped = passed(update, model, Limits(limit_norm=3.5, on_large_norm="clip"))
    assert refusal(update, model, Limits(limit_norm=6.9)) is not None

    assert isinstance(found, Incoming)
    assert found.norm == 7
    assert isinstance(clipped, Incoming)
    assert isinstance(clipped.update.vector, TailVector)
    half = moved / 2 if sends == "delta" else moved / 2 + 1
    assert decompressed(clipped.update.vector.tail).tolist() == half[LATE].tolist()


@pytest.mark.parametrize("name", ["fedbuff", "fedasync"])
def test_a_part_is_refused_where_a_workers_share_is_limited(name: str) -> None:
    strategy = a_strategy(name, buffer_size=1 if name == "fedasync" else 4)
    update = an_arrived(Arrival("a", np.ones(7, np.float32), is_part=True), 1, 0, strategy.sends)

    found = refusal(update, a_model_of(strategy), Limits(limit_share=0.5))

    assert found is not None
    assert found.reason == "part-and-share"
    assert "leave out limit_share here, or train_share at the worker" in found.detail


def test_what_updates_of_another_part_left_out_is_dropped_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codec, rng = "topk:0.5", np.random.default_rng(0)
    with open_spool(tmp_path, worker="a", max_bytes=2**20) as spool:
        made = compress_with_feedback(spool, AppliedUpdates(), codec, np.ones(7, np.float32), rng)
        update = replace(an_arrived(Arrival("a", np.ones(7, np.float32), is_part=False), 1, 0), codec=codec)
        spool.add(replace(update, id=spool.next_id, vector=made.vector), made.residual)
        again = compress_with_feedback(spool, AppliedUpdates(), codec, np.zeros(7, np.float32), rng)

        part = compress_with_feedback(spool, AppliedUpdates(), codec, np.full(3, 2, np.float32), rng)

    assert np.count_nonzero(decompressed(again.vector)) == 3
    assert sorted(decompressed(part.vector).tolist()) == [0, 2, 2]
    assert part.residual.vector.size == 3
    assert caplog.text.count("of another model, or of another --train-share") == 1
