"""Messages with something wrong in their structure: each is sound after all, or refused by its field."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_version, an_evaluation, an_update
from fuzz.targets import TARGETS, lead, read_inbound, read_record
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import Header, put_together, taken_apart, with_payload

from fluffle.record import Contributor, Folded, Hello
from fluffle.record_wire import encode_version
from fluffle.survey import statistics_of
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.survey.result import result_of
from fluffle.update import AppliedUpdates, RunLog, UpdateId
from fluffle.wire import encode_evaluation, encode_hello, encode_statistics, encode_update

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*/*"))
A_TABLE = statistics_of(
    np.array([[1.0, -2.5], [4.0, np.nan], [1e9, 7.25]]), np.array([0, 1, 1]), names=["age", "🐇"], classes=2
)
INBOUND = [
    encode_update(an_update("w1", loss=0.5)),
    *(encode_update(an_update("w1", codec=codec)) for codec in ("bfloat16", "int8", "topk", "float32+zstd")),
    encode_evaluation(an_evaluation(0, {"accuracy": 0.5})),
    encode_hello(Hello("digits", "w1")),
    encode_statistics(SiteStatistics("digits", "w1", A_TABLE)),
]
A_RECORD = replace(
    a_version(5),
    applied=AppliedUpdates({("w1", "r1"): RunLog(9, ((2, 3), (7, 7)))}),
    folded=(Folded(UpdateId("w1", "r1", 9), 4, 0, 1.0),),
    contributors={"w1": Contributor(updates=6, examples=60)},
    evaluation=an_evaluation(4, {"accuracy": 0.5}),
    survey=Survey(2, ("w1", "w2"), result=result_of(A_TABLE, sites=2, min_count=1)),
)

edges = st.sampled_from(
    [0, 1, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, 5e-324]
)
strange = st.sampled_from(
    [float("nan"), float("inf"), "", "\0", "\n", "\x1b[31m", "\u202e", "🐇", "w1", "delta", "x" * 70_000]
)  # fmt: skip
leaves = (
    st.none() | st.booleans() | edges | strange | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9)
)
keys = st.text(max_size=5) | st.sampled_from(["kind", "worker", "loss", "x" * 65])
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=9
)


@st.composite
def mutated(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """A sound message with one to three changes of its structure, whose checksum fits all the same."""
    header, payload = taken_apart(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 3))):
        changed: Callable[[st.DrawFn, Header, bytes], bytes] = draw(st.sampled_from(CHANGES))
        payload = changed(draw, header, payload)
    body = put_together(header, payload)
    return with_payload(body, payload) if "checksum" in header and draw(st.booleans()) else body


def other_value(draw: st.DrawFn, header: Header, payload: bytes) -> bytes:
    header[draw(st.sampled_from(sorted(header)))] = draw(values)
    return payload


def other_field(draw: st.DrawFn, header: Header, payload: bytes) -> bytes:
    header[draw(keys)] = header.pop(draw(st.sampled_from(sorted(header))))
    return payload


def swapped_fields(draw: st.DrawFn, header: Header, payload: bytes) -> bytes:
    one, other = draw(st.sampled_from(sorted(header))), draw(st.sampled_from(sorted(header)))
    header[one], header[other] = header[other], header[one]
    return payload


def other_payload(draw: st.DrawFn, header: Header, payload: bytes) -> bytes:
    place = draw(st.integers(0, len(payload)))
    return payload[:place] + draw(st.binary(max_size=8)) + payload[place + draw(st.integers(0, 8)) :]


CHANGES = [other_value, other_field, swapped_fields, other_payload]


@settings(max_examples=500)
@given(mutated(INBOUND))
def test_a_mutated_message_is_sound_or_refused_by_its_field(body: bytes) -> None:
    read_inbound(body)


@settings(max_examples=100)
@given(mutated(INBOUND))
def test_a_leader_folds_or_refuses_a_mutated_message_and_applies_the_honest_one(body: bytes) -> None:
    lead(body)


@settings(max_examples=500)
@given(mutated([encode_version(A_RECORD)]))
def test_a_mutated_record_is_whole_or_refused_by_its_field(body: bytes) -> None:
    read_record(body)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_the_fuzzer_found_breaks_nothing_any_more(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_of_the_fuzzer_has_a_corpus() -> None:
    assert {path.parent.name for path in CORPUS} == set(TARGETS)
