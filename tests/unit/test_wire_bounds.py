"""Whatever the encoder lets through the decoder reads: at, below and above every bound of the protocol."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
from builders import a_version, an_update
from hypothesis import given
from hypothesis import strategies as st
from messages import rewritten

from fluffle.errors import FluffleError, WireError
from fluffle.fields import MAX_METRIC_NAME_LENGTH, MAX_METRICS, MAX_NAME_LENGTH
from fluffle.framing import MAX_TEXT_BYTES
from fluffle.model import MAX_DIMENSIONS, MAX_TENSOR_NAME_LENGTH, Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.record import (
    MAX_NORMS,
    MAX_REASON_LENGTH,
    MAX_REFUSAL_LENGTH,
    Contributor,
    Evaluation,
    Folded,
    Hello,
    ModelVersion,
    PlateauState,
    Rank,
)
from fluffle.record_wire import decode_version, encode_version, require_readable_version
from fluffle.update import MAX_ABSORBS, MAX_GAPS_PER_RUN, AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle.wire import decode_inbound, encode_evaluation, encode_hello, encode_update

FEDERATION = 64
T = TypeVar("T")
HUGE = [-(2**64), -1, 0, 2**63 - 1, 2**63, 2**64 - 1, 2**64]
ODD = [float("nan"), float("inf"), -float("inf"), -1.0, 5e-324]
LETTERS = ["x", "\U0001f600", " "]


def around(limit: int) -> st.SearchStrategy[int]:
    """Just below, at and just above a bound, and the least."""
    return st.sampled_from([0, 1, limit - 1, limit, limit + 1])


def of_length(limit: int) -> st.SearchStrategy[str]:
    """Texts as long as a bound, about; of one byte for each character, or of four."""
    return st.builds(lambda size, letter: letter * size, around(limit), st.sampled_from(LETTERS))


def rarely(usual: st.SearchStrategy[T], extreme: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Mostly what is allowed: with many extremes at once nothing would ever pass."""
    return st.integers(0, 9).flatmap(lambda draw: extreme if draw == 0 else usual)


integers = rarely(st.integers(1, 1000), st.sampled_from(HUGE))
numbers = rarely(st.floats(0, 1e6), st.sampled_from(ODD))
names = rarely(st.sampled_from(["site-a", "b"]), of_length(MAX_NAME_LENGTH))
ids = st.builds(UpdateId, names, names, integers)
federations = rarely(st.just("digits"), of_length(FEDERATION))
metrics = st.builds(
    lambda count, name, value: {f"{number}{name}": value for number in range(count)},
    rarely(st.integers(0, 3), around(MAX_METRICS)),
    rarely(st.just("loss"), of_length(MAX_METRIC_NAME_LENGTH - 1)),
    st.floats(),
)
updates = st.builds(
    replace,
    st.just(an_update()),
    federation=federations,
    id=ids,
    base_term=integers,
    base_version=integers,
    layout_digest=rarely(st.just("0" * 16), of_length(64)),
    absorbs=rarely(st.just(()), around(MAX_ABSORBS).map(lambda count: tuple(range(1, count + 1)))),
    examples=integers,
    loss=st.none() | st.floats(),
    train_s=numbers,
)
evaluations = st.builds(Evaluation, federations, names, integers, metrics, numbers)


@st.composite
def versions(draw: st.DrawFn) -> ModelVersion:
    """Records with one thing or another at a bound."""
    name = draw(rarely(st.just("kernel"), of_length(MAX_TENSOR_NAME_LENGTH)))
    dimensions = draw(rarely(st.just(1), around(MAX_DIMENSIONS)))
    layout = Layout((TensorSpec(name, (1,) * dimensions, "float32"),))
    gaps = draw(rarely(st.just(0), around(MAX_GAPS_PER_RUN)))
    run = draw(names), draw(names)
    reason = rarely(st.just("why"), of_length(MAX_REASON_LENGTH))
    return replace(
        a_version(),
        federation=draw(federations),
        term=draw(integers),
        version=draw(integers),
        terms=(Rank(draw(integers), draw(integers)),),
        layout=layout,
        plan=Plan(batch_size=draw(integers), learning_rate=draw(numbers), updates_per_version=draw(integers)),
        vector=np.zeros(1, np.float32),
        integers=b"",
        strategy=draw(reason),
        applied=AppliedUpdates({run: RunLog(10**6, tuple((2 * n + 1, 2 * n + 1) for n in range(gaps)))}),
        folded=(Folded(draw(ids), draw(integers), draw(integers), draw(numbers)),),
        norms=(1.0,) * draw(rarely(st.just(0), around(MAX_NORMS))),
        contributors={
            run[0]: Contributor(
                *(draw(integers), draw(integers), draw(integers), draw(numbers)),
                *(draw(integers), draw(numbers), draw(numbers)),
                draw(rarely(st.just(""), of_length(MAX_REFUSAL_LENGTH))),
            )
        },
        evaluation=draw(st.none() | evaluations),
        best_by=draw(rarely(st.just("loss:min"), of_length(MAX_METRIC_NAME_LENGTH + 4))),
        plateau=PlateauState(draw(integers), draw(integers)),
        started_s=draw(numbers),
        closing=draw(reason),
        finished=draw(reason),
    )


def is_refused_or_read(encode: Callable[[], bytes], decode: Callable[[bytes], object]) -> bool:
    """Encode, and decode what comes; False when it is refused. Anything but a FluffleError is a fault."""
    try:
        body = encode()
    except FluffleError:
        return False
    decode(body)
    return True


@given(updates)
def test_an_update_that_is_encoded_is_read(update: WeightUpdate) -> None:
    is_refused_or_read(lambda: encode_update(update), decode_inbound)


@given(evaluations)
def test_an_evaluation_that_is_encoded_is_read(evaluation: Evaluation) -> None:
    is_refused_or_read(lambda: encode_evaluation(evaluation), decode_inbound)


@given(federations, names)
def test_a_hello_that_is_encoded_is_read(federation: str, name: str) -> None:
    is_refused_or_read(lambda: encode_hello(Hello(federation, name)), decode_inbound)


@given(versions())
def test_a_version_that_is_found_readable_is_read(version: ModelVersion) -> None:
    def encode() -> bytes:
        require_readable_version(version)
        return encode_version(version)

    is_refused_or_read(encode, decode_version)


def test_what_is_usual_is_not_refused() -> None:
    assert is_refused_or_read(lambda: encode_update(an_update()), decode_inbound)
    assert is_refused_or_read(lambda: encode_version(a_version()), decode_version)


def test_no_text_in_a_header_is_longer_than_the_longest_name_of_a_tensor() -> None:
    longest = "\U0001f600" * MAX_TENSOR_NAME_LENGTH
    assert len(longest.encode()) == MAX_TEXT_BYTES
    tensor = TensorSpec(longest, (1,), "float32")
    version = replace(a_version(), layout=Layout((tensor,)), vector=np.zeros(1, np.float32), integers=b"")
    body = encode_version(version)

    assert decode_version(body).layout.tensors == (tensor,)
    with pytest.raises(WireError, match=r"field strategy: a text has more than 4096 bytes"):
        decode_version(rewritten(body, strategy="x" * (MAX_TEXT_BYTES + 1)))
