"""The noise of a federation: normal, the same for all who have the secret, and never used twice."""

import hashlib
import math
import os
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fluffle.privacy.correlated import coefficients
from fluffle.privacy.grid import Steps
from fluffle.privacy.noise import PIECE, NoiseSecret, NoiseSequence, standard_normals
from fluffle.privacy.normals import Floats, normals_from
from fluffle.record import Rank

SECRET = NoiseSecret(bytes(range(32)))
DRAWN = b"drawn by the leader"
# Made on one machine.
NORMALS = (
    *("0x1.24f82aa55eb15p+3", "0x1.21263f48fda56p+3", "0x1.db21d42f35efdp+2", "0x1.52dc6e859ca7ep+2"),
    *("0x1.715c7c1c88ccbp+1", "0x1.267d4c07b0566p+0", "0x1.5956b87528a49p-1", "0x0.0p+0"),
    *("-0x1.24f82aa55eb15p+3", "-0x0.0p+0", "0x1.4ee2dc0a9dff7p+1"),
)
NOISE = [
    [-19897017, 37733263, -30184910, -33976791, -5467526],
    [33332224, -9686719, 48645444, 21119115, 13786885],
    [-3401686, 65913, -51621879, 41298256, 5016272],
]
KEYS = [SECRET.key("digits", DRAWN, Rank(1, version)) for version in range(40)]


def normal_of(bits: int) -> float:
    return float(normals_from(np.array([bits], np.uint64))[0])


@given(st.integers(0, 2**64 - 1) | st.integers(0, 64).map(lambda power: min(2**power, 2**64 - 1)))
def test_a_normal_number_is_the_quantile_of_its_bits(bits: int) -> None:
    beyond = (bits % 2**63 + 0.5) / 2**64

    expected = -NormalDist().inv_cdf(beyond) * (1 if bits < 2**63 else -1)

    assert normal_of(bits) == pytest.approx(expected, rel=1e-13, abs=1e-15)
    assert normal_of((bits + 2**63) % 2**64) == -normal_of(bits)


def test_normal_numbers_have_the_same_bits_on_every_machine() -> None:
    bits = [0, 1, 2**20, 2**40, 2**55, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF]

    assert tuple(normal_of(each).hex() for each in bits) == NORMALS


def test_the_bits_are_the_key_stream_of_aes_in_counter_mode() -> None:
    # AES-128 of zeros under a key of zeros, as in FIPS 197.
    block = np.frombuffer(bytes.fromhex("66e94bd4ef8a2c3b884cfa59ca342b2e"), "<u8").astype(np.uint64)

    assert standard_normals(bytes(16), 0, 2).tolist() == normals_from(block).tolist()


def test_the_noise_is_normal_also_in_its_tails() -> None:
    found = standard_normals(KEYS[0], 0, 1_000_000)

    assert stats.kstest(found, "norm").pvalue > 1e-4
    beyond = stats.norm.sf(np.abs(found[np.abs(found) > 3])) / stats.norm.sf(3)
    assert stats.kstest(beyond, "uniform").pvalue > 1e-4
    # Neighbours, of which two come from one block of AES, have nothing to do with each other.
    assert abs(np.corrcoef(found[::2], found[1::2])[0, 1]) < 0.006


@given(st.integers(0, 50).map(lambda half: 2 * half), st.integers(0, 100))
def test_a_part_of_a_vector_is_that_part_of_the_whole(start: int, size: int) -> None:
    whole = standard_normals(KEYS[1], 0, 200)

    assert standard_normals(KEYS[1], start, size).tolist() == whole[start : start + size].tolist()


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77])
def test_a_long_vector_has_the_same_numbers_as_its_short_parts(size: int) -> None:
    parts = [standard_normals(KEYS[2], start, min(1000, size - start)) for start in range(0, size, 1000)]

    assert standard_normals(KEYS[2], 0, size).tobytes() == np.concatenate(parts).tobytes()


def test_a_part_that_begins_within_a_block_of_aes_is_refused() -> None:
    with pytest.raises(ValueError, match="from an even element on, not from 3"):
        standard_normals(KEYS[0], 3, 4)


def test_a_key_depends_on_all_that_it_is_for() -> None:
    rank = Rank(2, 31)
    other = NoiseSecret(bytes(32))
    found = [
        SECRET.key("digits", DRAWN, rank),
        SECRET.key("digits", DRAWN, rank, "share"),
        SECRET.key("digits", DRAWN, Rank(31, 2)),
        SECRET.key("digits", DRAWN, Rank(2, 32)),
        SECRET.key("digits2", DRAWN, rank),
        SECRET.key("digits", b"2" + DRAWN, rank),
        SECRET.key("digits", b"drawn by another", rank),
        other.key("digits", DRAWN, rank),
    ]

    assert len({*found, bytes.fromhex(SECRET.commitment)[:16]}) == len(found) + 1
    assert found[0] == NoiseSecret(bytes(range(32))).key("digits", DRAWN, Rank(2, 31))


def test_a_commitment_tells_secrets_apart_and_shows_none() -> None:
    assert SECRET.commitment == NoiseSecret(bytes(range(32))).commitment
    assert SECRET.commitment != NoiseSecret(bytes(32)).commitment
    assert bytes(range(32)).hex() not in SECRET.commitment
    assert repr(SECRET) == "NoiseSecret()"


@pytest.mark.parametrize("size", [0, 16, 33])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"must be 32 bytes, not {size}"):
        NoiseSecret(bytes(size))


def noise_of(sequence: NoiseSequence, keys: list[bytes], size: int) -> list[list[int]]:
    found = []
    for key in keys:
        total: Steps = np.zeros(size, np.int64)
        sequence.add_next(key, total)
        found.append(total.tolist())
    return found


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 12), st.sampled_from([1, 7, 8192, 8193, 20_000]))
def test_a_standby_goes_on_with_the_same_noise_to_the_last_bit(
    bands: int, kept: int, shown: int, size: int
) -> None:
    c, std = coefficients(bands), 2.0**25.5
    leader = NoiseSequence(c, std, size, kept=kept)
    before = noise_of(leader, KEYS[:shown], size)

    standby = NoiseSequence(c, std, size, past=KEYS[:shown], kept=2)

    assert noise_of(standby, KEYS[shown : shown + 4], size) == noise_of(leader, KEYS[shown : shown + 4], size)
    again = NoiseSequence(c, std, size, kept=99)
    assert noise_of(again, KEYS[:shown], size) == before


def test_noise_has_the_same_bits_on_every_machine() -> None:
    sequence = NoiseSequence(coefficients(3), 2.0**25 * 1.234567, 5, kept=1)

    assert noise_of(sequence, KEYS[:3], 5) == NOISE


def test_noise_has_the_same_bits_without_the_vector_instructions_of_this_processor() -> None:
    program = (
        "import hashlib, numpy\n"
        "from fluffle.privacy.noise import standard_normals\n"
        "print(hashlib.sha256(standard_normals(bytes(16), 0, 100_000).tobytes()).hexdigest())\n"
    )
    config = np.show_config(mode="dicts")
    assert config is not None
    without = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(config["SIMD Extensions"]["found"])}

    found = subprocess.run([sys.executable, "-c", program], env=without, capture_output=True, check=True)

    here = hashlib.sha256(standard_normals(bytes(16), 0, 100_000).tobytes()).hexdigest()
    assert found.stdout.decode().strip() == here


def test_noise_has_the_covariance_of_its_matrix() -> None:
    bands, steps, size = 4, 7, 200_000
    sequence = NoiseSequence(coefficients(bands), 2.0**25, size, kept=2)

    found = np.array(noise_of(sequence, KEYS[:steps], size)) / 2.0**25

    d = np.zeros((steps, steps))
    for lag, coefficient in enumerate(coefficients(bands)):
        d += coefficient * np.eye(steps, k=-lag)
    # A variance of 200,000 elements is off by 0.3 %.
    np.testing.assert_allclose(np.cov(found, bias=True), d @ d.T, atol=0.02)
    np.testing.assert_allclose(
        np.var(np.cumsum(found, axis=0), axis=1)[-1], (d.sum(axis=0) ** 2).sum(), rtol=0.02
    )


def test_noise_is_added_to_the_sum_that_is_there() -> None:
    zeros, sums = np.zeros(9, np.int64), np.arange(9) * 10**12

    NoiseSequence((1.0,), 2.0**25, 9, kept=0).add_next(KEYS[0], zeros)
    NoiseSequence((1.0,), 2.0**25, 9, kept=0).add_next(KEYS[0], sums)

    assert (sums - zeros).tolist() == (np.arange(9) * 10**12).tolist()


def test_noise_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="noise of 9 elements cannot be added to 8"):
        NoiseSequence((1.0,), 1.0, 9, kept=0).add_next(KEYS[0], np.zeros(8, np.int64))


def test_the_logarithm_of_the_tails_is_right_to_the_last_digits() -> None:
    numbers: Floats = np.exp2(np.linspace(-65, -2, 5000))

    found = [normal_of(int(number * 2**64)) for number in numbers]

    expected = [-NormalDist().inv_cdf((int(number * 2**64) + 0.5) / 2**64) for number in numbers]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert math.isclose(max(found), 9.155293772686074)
