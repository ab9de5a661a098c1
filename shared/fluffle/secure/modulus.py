"""Whole numbers modulo 2**bits: how they are added up, and their bytes in a message. Pure.

They stand in arrays of uint32, in which sums wrap modulo 2**32. Since 2**bits divides that, the low bits are
those of the sum modulo 2**bits, and the others are dropped when the numbers are packed or read as signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fluffle.vector_math import BLOCK_SIZE

BITS: Final = (16, 24, 32)
# Those that numpy has numbers of.
OF_NUMPY: Final = {16: "<u2", 32: "<u4"}
THREE_BYTES: Final = np.dtype([("low", "<u2"), ("high", "u1")])

Residues = NDArray[np.uint32]
Signed = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Modulus:
    """2**bits, with 16, 24 or 32 bits; raises ValueError for any other number."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"must be one of {', '.join(map(str, BITS))} bits, not {self.bits}")

    def bytes_of(self, size: int) -> int:
        """Return how many bytes so many numbers take in a message."""
        return size * self.bits // 8

    def pack(self, residues: Residues) -> bytes:
        """Return the bytes of numbers: little-endian, one after the other."""
        if self.bits in OF_NUMPY:
            return residues.astype(OF_NUMPY[self.bits]).tobytes()
        packed = np.empty(residues.size, THREE_BYTES)
        packed["low"], packed["high"] = residues, residues >> np.uint32(16)
        return packed.tobytes()

    def packed(self, size: int, blocks: Iterable[Residues]) -> bytearray:
        """Return the bytes of so many numbers, which come in blocks."""
        packed, end = bytearray(self.bytes_of(size)), 0
        for block in blocks:
            start, end = end, end + self.bytes_of(block.size)
            packed[start:end] = self.pack(block)
        return packed

    def unpack(self, payload: memoryview, size: int) -> Residues:
        """Return the numbers in these bytes. Raises ValueError when the bytes are not those of `size`."""
        self._require_bytes_of(size, payload)
        if self.bits in OF_NUMPY:
            return np.frombuffer(payload, OF_NUMPY[self.bits]).astype(np.uint32)
        numbers = np.empty(size, np.uint32)
        if size:
            # Each number is read with the first byte of the next one. There is none behind the last.
            overlapping: Residues = np.ndarray((size - 1,), "<u4", payload, strides=(3,))
            np.bitwise_and(overlapping, np.uint32(2**24 - 1), out=numbers[:-1])
            numbers[-1] = int.from_bytes(payload[-3:], "little")
        return numbers

    def add_packed(self, total: Residues, payload: memoryview, factor: int = 1) -> None:
        """Add factor * the numbers in these bytes to `total` in place, modulo 2**32.

        Raises ValueError when there are not as many.
        """
        self._require_bytes_of(total.size, payload)
        for start in range(0, total.size, BLOCK_SIZE):
            block = total[start : start + BLOCK_SIZE]
            packed = payload[self.bytes_of(start) :][: self.bytes_of(block.size)]
            numbers = self.unpack(packed, block.size)
            if factor != 1:
                np.multiply(numbers, np.uint32(factor % 2**32), out=numbers)
            np.add(block, numbers, out=block)

    def signed(self, residues: Residues) -> Signed:
        """Return the number from -2**(bits - 1) to 2**(bits - 1) - 1 that each stands for."""
        sign = np.uint32(1 << self.bits - 1)
        signed = residues & np.uint32(2**self.bits - 1)
        # Numpy's shifts take ten times as long. What wraps here modulo 2**32 is the sign.
        signed ^= sign
        signed -= sign
        return signed.view(np.int32)

    def _require_bytes_of(self, size: int, payload: memoryview) -> None:
        if len(payload) != self.bytes_of(size):
            raise ValueError(
                f"{size} numbers modulo 2**{self.bits} take {self.bytes_of(size)} bytes, not {len(payload)}"
            )


def add_multiple(total: Residues, residues: Residues, factor: int = 1) -> None:
    """Add factor * residues to `total` in place, modulo 2**32. Raises ValueError when the sizes differ.

    A factor of -1 subtracts them.
    """
    if total.shape != residues.shape:
        raise ValueError(f"{residues.size} numbers cannot be added to {total.size}")
    for start in range(0, total.size, BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        product = residues[block] if factor == 1 else residues[block] * np.uint32(factor % 2**32)
        np.add(total[block], product, out=total[block])
