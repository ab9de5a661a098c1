"""Ciphertexts as numbers modulo a prime: how they are added up, and their bytes in a message. Pure.

Adding the numbers of two ciphertexts adds what is encrypted in them, and a small integer weight multiplies
it. No key is needed for that, and no library. Four numbers of 54 bits take 27 bytes, lowest bits first.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fluffle.sealed.parameters import DEGREE, POLYNOMIALS, PRIME, RESIDUE_BITS, bytes_of, ciphertexts_of

# uint64 [ciphertexts, POLYNOMIALS, DEGREE], each below PRIME.
Residues = NDArray[np.uint64]
# A number below PRIME, and one more times this weight, is below 2**64.
MOST_WEIGHT: Final = 1 << 9
_IN_A_GROUP: Final = 4
_GROUP: Final = np.dtype([("words", "<u8", (3,)), ("low", "<u2"), ("high", "u1")])
_MASK: Final = np.uint64((1 << RESIDUE_BITS) - 1)
_PER_CIPHERTEXT: Final = POLYNOMIALS * DEGREE
# 512 KiB of numbers.
_CIPHERTEXTS_IN_A_BLOCK: Final = 8


def zeros(size: int) -> Residues:
    """Return a sum of nothing, for so many values."""
    return np.zeros((ciphertexts_of(size), POLYNOMIALS, DEGREE), np.uint64)


def pack(residues: Residues) -> bytes:
    """Return the bytes of numbers below PRIME: ciphertext after ciphertext."""
    return bytes(packed_view(residues))


def packed_view(residues: Residues) -> memoryview:
    """Return the same bytes, which nobody can change, without copying them."""
    packed = bytearray(bytes_of_ciphertexts(len(residues)))
    for block, part in _blocks(len(residues), memoryview(packed)):
        _pack_block(residues[block].reshape(-1, _IN_A_GROUP), part)
    return memoryview(packed).toreadonly()


def unpack(payload: bytes | memoryview, size: int) -> Residues:
    """Return the numbers in the bytes of so many values. Raises ValueError when they are none."""
    residues = np.empty((ciphertexts_of(size), POLYNOMIALS, DEGREE), np.uint64)
    for block, numbers in _unpacked(payload, size):
        residues[block] = numbers
    return residues


def require_residues(payload: bytes | memoryview, size: int) -> None:
    """Raise ValueError unless these are the bytes of so many values, each number below PRIME."""
    for _ in _unpacked(payload, size):
        pass


def add_weighted(total: Residues, residues: Residues, weight: int = 1) -> None:
    """Add weight * residues to `total` in place, modulo PRIME.

    The weight is from 1 to MOST_WEIGHT. Raises ValueError for another one, or when the sizes differ.
    """
    _require_weight(weight)
    if total.shape != residues.shape:
        raise ValueError(f"{len(residues)} ciphertexts cannot be added to {len(total)}")
    for first in range(0, len(total), _CIPHERTEXTS_IN_A_BLOCK):
        block = slice(first, first + _CIPHERTEXTS_IN_A_BLOCK)
        _add_block(total[block], residues[block], weight)


def add_packed(total: Residues, payload: bytes | memoryview, size: int, weight: int = 1) -> None:
    """Add weight * the numbers in these bytes to `total` in place; see `unpack` and `add_weighted`.

    The bytes were checked before: what is in them cannot be taken back when one is found to be wrong.
    """
    _require_weight(weight)
    for block, numbers in _unpacked(payload, size):
        _add_block(total[block], numbers, weight)


def sum_of_packed(payload: bytes | memoryview, size: int, residues: Residues) -> memoryview:
    """Return the bytes of the sum of the numbers in these bytes and others, block by block."""
    packed = bytearray(bytes_of(size))
    parts = _blocks(ciphertexts_of(size), memoryview(packed))
    for (block, numbers), (_, part) in zip(_unpacked(payload, size), parts, strict=True):
        _add_block(numbers, residues[block], 1)
        _pack_block(numbers.reshape(-1, _IN_A_GROUP), part)
    return memoryview(packed).toreadonly()


def negated(residues: Residues) -> Residues:
    """Return what is added to subtract these numbers."""
    return (np.uint64(PRIME) - residues) % np.uint64(PRIME)


def bytes_of_ciphertexts(count: int) -> int:
    """Return how many bytes so many ciphertexts take."""
    return count * _PER_CIPHERTEXT * RESIDUE_BITS // 8


def _require_weight(weight: int) -> None:
    if not 1 <= weight <= MOST_WEIGHT:
        raise ValueError(f"a weight is from 1 to {MOST_WEIGHT}, not {weight}")


def _add_block(total: Residues, residues: Residues, weight: int) -> None:
    weighted = residues if weight == 1 else residues * np.uint64(weight)
    np.add(total, weighted, out=total)
    np.remainder(total, np.uint64(PRIME), out=total)


def _blocks(ciphertexts: int, packed: memoryview) -> Iterator[tuple[slice, memoryview]]:
    for first in range(0, ciphertexts, _CIPHERTEXTS_IN_A_BLOCK):
        stop = min(first + _CIPHERTEXTS_IN_A_BLOCK, ciphertexts)
        yield slice(first, stop), packed[bytes_of_ciphertexts(first) : bytes_of_ciphertexts(stop)]


def _unpacked(payload: bytes | memoryview, size: int) -> Iterator[tuple[slice, Residues]]:
    """Yield the numbers in these bytes in blocks of whole ciphertexts, each in an array of its own."""
    if len(payload) != bytes_of(size):
        raise ValueError(f"ciphertexts of {size} values take {bytes_of(size)} bytes, not {len(payload)}")
    for block, part in _blocks(ciphertexts_of(size), memoryview(payload)):
        numbers = _unpack_block(part)
        if (largest := int(numbers.max(initial=0))) >= PRIME:
            raise ValueError(f"a ciphertext has the number {largest}, and all are below {PRIME}")
        yield block, numbers.reshape(-1, POLYNOMIALS, DEGREE)


def _pack_block(groups: Residues, packed: memoryview) -> None:
    a, b, c, d = groups.T
    target = np.frombuffer(packed, _GROUP)
    words = target["words"]
    words[:, 0] = a | b << np.uint64(54)
    words[:, 1] = b >> np.uint64(10) | c << np.uint64(44)
    words[:, 2] = c >> np.uint64(20) | d << np.uint64(34)
    target["low"] = d >> np.uint64(30) & np.uint64(0xFFFF)
    target["high"] = d >> np.uint64(46)


def _unpack_block(packed: memoryview) -> Residues:
    source = np.frombuffer(packed, _GROUP)
    first, second, third = (source["words"][:, place] for place in range(3))
    last = source["low"] | source["high"].astype(np.uint64) << np.uint64(16)
    numbers: Residues = np.empty((len(source), _IN_A_GROUP), np.uint64)
    numbers[:, 0] = first & _MASK
    numbers[:, 1] = (first >> np.uint64(54) | second << np.uint64(10)) & _MASK
    numbers[:, 2] = (second >> np.uint64(44) | third << np.uint64(20)) & _MASK
    numbers[:, 3] = third >> np.uint64(34) | last << np.uint64(30)
    return numbers
