"""Messages with something wrong in their structure: each is sound after all, or refused by its field."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest
from fuzz.seeds import INBOUND, MOMENTS, SEALED, SECURE, SEEDS, VERSIONS
from fuzz.targets import TARGETS, lead, lead_sealed, read_inbound, read_record, read_secure
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import Header, put_together, taken_apart, with_payload

from fluffle.record import MomentsRecord
from fluffle.record_wire import decode_record, decode_version
from fluffle.wire import Inbound, decode_inbound

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*/*"))
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
def mutated(draw: st.DrawFn, sound: Sequence[bytes]) -> bytes:
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


@settings(max_examples=50)
@given(mutated(SEALED))
def test_a_leader_that_cannot_read_updates_folds_or_refuses_a_mutated_one(body: bytes) -> None:
    lead_sealed(body)


@settings(max_examples=500)
@given(mutated([*VERSIONS, *MOMENTS]))
def test_a_mutated_record_is_whole_or_refused_by_its_field(body: bytes) -> None:
    read_record(body)


@settings(max_examples=500)
@given(mutated(SECURE))
def test_a_mutated_close_record_answer_or_ledger_is_sound_or_refused_by_its_field(
    body: bytes,
) -> None:
    read_secure(body)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_the_fuzzer_found_breaks_nothing_any_more(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_of_the_fuzzer_starts_from_messages_that_are_let_in() -> None:
    assert {path.parent.name for path in CORPUS} == set(TARGETS) == set(SEEDS)
    kinds = [type(decode_inbound(body)) for body in INBOUND]

    # A message that is refused at its first field would lead the fuzzer nowhere.
    assert set(kinds) == set(get_args(Inbound))
    assert [bool(decode_version(body).copy_of) for body in VERSIONS] == [False, True, False]
    assert all(isinstance(decode_record(body), MomentsRecord) for body in MOMENTS)
