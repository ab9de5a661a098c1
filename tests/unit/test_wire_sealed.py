"""Sealed messages and records: they come back as they went, or are refused in words that name the fault."""

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from builders import a_version
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import rewritten, taken_apart, with_payload, without
from sealing import a_refresh, a_sealed_plan, a_sealed_update, a_sealed_version, decrypted, encrypted

from fluffle.codecs.sealed import SealedVector
from fluffle.compression import CODECS, compress, most_bytes, read_vector, require_codec
from fluffle.errors import WireError
from fluffle.record_wire import decode_version, decode_without_weights, encode_version, without_weights
from fluffle.sealed.parameters import SLOTS, bytes_of
from fluffle.sealed.plan import SealedState
from fluffle.sealed.residues import pack, unpack
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound, encode_update

UPDATE = encode_update(a_sealed_update(loss=0.5))
VERSION = encode_version(a_sealed_version(5, (3.0,) * 4, weights=64))
REFRESH = encode_update(a_refresh(a_sealed_version(5, (3.0,) * 4, weights=64)))


def plan_of(body: bytes) -> list[Any]:
    """Return the fields of a record's plan without the last one, what is sealed."""
    plan = taken_apart(body)[0]["plan"]
    assert isinstance(plan, list)
    return plan[:-1]


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
    st.sampled_from([(), ("dense/*",), ("other",)]),
)
@settings(max_examples=20)
def test_an_update_comes_back_as_it_went(values: list[float], only: tuple[str, ...]) -> None:
    update = a_sealed_update(values=values, only=only, loss=0.25)

    found = decode_inbound(encode_update(update))

    assert isinstance(found, WeightUpdate)
    assert (found.id, found.key, found.codec, found.loss) == (update.id, update.key, "sealed", 0.25)
    assert isinstance(found.vector, SealedVector)
    assert found.vector == update.vector
    is_sealed = only != ("other",)
    assert (found.vector.size, found.vector.sealed_size) == (4, 4 if is_sealed else 0)
    if is_sealed:
        read = decrypted(unpack(found.vector.sealed, 4), 4)
        assert np.abs(read - np.asarray(values)).max() <= 2.0**-32
    else:
        assert found.vector.open.values.tolist() == values


def test_statistics_that_are_not_sealed_travel_behind_the_ciphertexts() -> None:
    update = replace(a_sealed_update(), statistics=np.array([1.5, -2.0], np.float32))

    found = decode_inbound(encode_update(update))

    assert isinstance(found, WeightUpdate)
    assert found.statistics.tolist() == [1.5, -2.0]


def test_a_refresh_comes_back_as_it_went() -> None:
    update = a_refresh(a_sealed_version(5, (3.0, -1.0, 0.0, 2.0), weights=64))

    found = decode_inbound(encode_update(update))

    assert isinstance(found, WeightUpdate)
    assert found.refresh == update.refresh
    assert found.vector == update.vector
    assert (found.base_term, found.base_version) == (1, 5)


@pytest.mark.parametrize("weights", [0, 640])
def test_a_version_comes_back_as_it_went_and_its_record_without_the_sum(weights: int) -> None:
    version = replace(a_sealed_version(7, (1.0,) * 4, weights=weights))

    body = encode_version(version)

    found, watched = decode_version(body), decode_without_weights(without_weights(body))
    assert found.sealed_sum == version.sealed_sum
    assert found.sealed == watched.sealed == SealedState(weights=weights)
    assert found.plan == watched.plan == version.plan
    assert watched.sealed_sum == b""
    assert encode_version(found) == body


def test_a_record_of_before_sealed_federations_is_read() -> None:
    today = encode_version(a_version(3))

    before = rewritten(without(without(today, "sealed"), "sealed_bytes"), plan=plan_of(today))

    found = decode_version(before)
    assert (found.sealed, found.plan.sealed, found.sealed_sum) == (None, None, b"")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rewritten(UPDATE, key=""), "field key: what is sealed names its key"),
        (rewritten(UPDATE, key="x" * 65), "field key: 65 characters, at most 64"),
        (rewritten(UPDATE, codec="sealed"), "unknown field 'codec'"),
        (rewritten(UPDATE, id=["w1", "r1", 3], absorbs=[3]), "field absorbs: 3 is not below"),
        (
            rewritten(UPDATE, parameters=SLOTS + 1),
            "field parameters: 2049 sealed ones and 0 others: the vector takes 110592 bytes, but has 55296",
        ),
        (rewritten(UPDATE, parameters=2**62), "field parameters: 4611686018427387904 is not from 0"),
        (rewritten(UPDATE, open_parameters=1), "field parameters: 4 sealed ones and 1 others: the vector"),
        (
            with_payload(UPDATE, b"\xff" * 55296),
            "field parameters: .*: a ciphertext has the number 18014398509481983, and all are below",
        ),
        (with_payload(UPDATE, bytes(55295)), "field parameters: .* takes 55296 bytes, but has 55295"),
        (rewritten(UPDATE, statistics_size=2**40), "field statistics_size: 1099511627776 is not from 0"),
        (rewritten(REFRESH, refresh=None), "field refresh: expected a list of refreshes, weights, largest"),
        (rewritten(REFRESH, refresh=[0, 1, 1e9]), "field refresh.largest: 1000000000.0 is not from 0 to"),
        (rewritten(REFRESH, refresh=[0, 1, float("nan")]), "field refresh.largest: nan is not"),
        (with_payload(REFRESH, bytes(55297)), "field parameters: .* takes 55296 bytes, but has 55297"),
    ],
)
def test_what_is_wrong_with_a_sealed_message_is_said_by_field(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_inbound(body)


NOTHING = [0, 0.0, 0, 0, "", 0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rewritten(VERSION, sealed=None), "field sealed: a record has it exactly if its plan does"),
        (
            rewritten(VERSION, sealed=NOTHING),
            "field sealed_bytes: 55296, and the sealed sum has",
        ),
        (rewritten(VERSION, sealed_bytes=0), "field sealed_bytes: 0, and the sealed sum has a weight of 64"),
        (rewritten(VERSION, sealed_bytes=2**40), "field sealed_bytes: 1099511627776 is not from 0 to"),
        (with_payload(VERSION, bytes(55311)), "field layout: 4 floats in float32"),
        (with_payload(VERSION, b"\xff" * 55312), "field sealed_bytes: a ciphertext has the number"),
        (
            rewritten(encode_version(a_version(5)), sealed=NOTHING),
            "field sealed: a record has it exactly if its plan does",
        ),
        (
            rewritten(VERSION, plan=[*plan_of(VERSION), ["no", 1.0, 64, 2, 1.0, []]]),
            "field plan.sealed.key: 'no' is no key id",
        ),
        (
            rewritten(VERSION, plan=[*plan_of(VERSION), ["ab" * 8, 1.0, 65, 2, 1.0, []]]),
            "field plan.sealed.greatest: 65 is not from 1 to 64",
        ),
    ],
)
def test_what_is_wrong_with_a_sealed_record_is_said_by_field(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_version(body)


def test_a_sealed_update_takes_27_bytes_a_parameter_and_a_small_header() -> None:
    size = 49 * SLOTS
    update = a_sealed_update(values=(0.25,) * size)

    body = encode_update(update)

    assert bytes_of(size) == most_bytes("sealed", size) == 27 * size
    assert 27 * size < len(body) < 27 * size + 500


def test_a_sealed_version_takes_31_bytes_a_parameter() -> None:
    size = 49 * SLOTS
    version = a_sealed_version(5, (0.25,) * size, weights=64)

    assert version.payload_size_bytes == 31 * size
    assert 31 * size < len(encode_version(version)) < 31 * size + 2000


def test_nobody_chooses_the_codec_or_computes_with_its_ciphertexts() -> None:
    vector = read_vector("sealed", 4, memoryview(pack(encrypted((1.0,) * 4))))

    assert "sealed" not in CODECS
    with pytest.raises(ValueError, match="which the setting sealed chooses by itself"):
        require_codec("sealed")
    with pytest.raises(TypeError, match="without a key"):
        compress("sealed", np.ones(4, np.float32), np.random.default_rng(0))
    with pytest.raises(TypeError, match="only who has the key decrypts it"):
        next(vector.blocks())


def test_the_plan_says_how_far_the_sum_moves_the_model() -> None:
    plan = replace(a_sealed_plan(greatest=64, buffer_size=4), server_learning_rate=0.5)

    assert plan.divisor == 256
    assert plan.step == 0.5 / 256
    assert astuple(plan)[1:] == (4.0, 64, 4, 0.5, ())
