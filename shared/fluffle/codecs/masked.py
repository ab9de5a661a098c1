"""The codecs masked16, masked24 and masked32: whole numbers under masks, for sums alone. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from fluffle.codecs.compressed import CompressedVector, require_length
from fluffle.model import Vector
from fluffle.secure.modulus import Modulus, Residues


@dataclass(frozen=True, slots=True)
class MaskedVector(CompressedVector):
    """Numbers modulo 2**bits under masks: a single one means nothing, and any bytes are a valid vector."""

    modulus: Modulus

    def add_multiple_to(self, total: Residues, factor: int) -> None:
        """Add factor * the numbers to `total` in place. Raises ValueError when that has another size."""
        self.modulus.add_packed(total, self.payload, factor)

    def magnitude_bound(self) -> float:
        """Return 0: what is masked is of no size."""
        return 0.0

    def blocks(self) -> Iterator[Vector]:
        """Raise TypeError: nobody may compute with masked numbers as if they were values."""
        raise TypeError("a masked vector has no values: only a sum that the helpers have opened has")

    @classmethod
    def masking(cls, modulus: Modulus, residues: Residues) -> Self:
        """Return a vector of numbers that are masked already."""
        return cls(residues.size, memoryview(modulus.pack(residues)), modulus)


@dataclass(frozen=True, slots=True)
class MaskedCodec:
    """Reads the numbers of one modulus."""

    modulus: Modulus

    def most_bytes(self, size: int) -> int:
        """Return how many bytes a vector takes."""
        return self.modulus.bytes_of(size)

    def of(self, *_: object) -> NoReturn:
        """Raise TypeError: only a worker that has keys makes masked vectors."""
        raise TypeError("no vector becomes a masked one without keys: see fluffle.secure.masking")

    def read(self, size: int, payload: memoryview) -> MaskedVector:
        """Return the vector in these bytes. Raises ValueError when they are none of this size."""
        require_length(self.most_bytes(size), payload)
        return MaskedVector(size, payload, self.modulus)
