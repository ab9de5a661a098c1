"""The codec sealed: encrypted values, which whoever has no key can only add up. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from fluffle.codecs.compressed import CompressedVector, require_length
from fluffle.codecs.floats import Float32Vector
from fluffle.model import Vector
from fluffle.sealed.parameters import bytes_of
from fluffle.sealed.residues import Residues, pack, require_residues


@dataclass(frozen=True, slots=True)
class SealedVector(CompressedVector):
    """A vector of which `sealed_size` elements are encrypted, and the others follow as float32."""

    sealed_size: int

    @property
    def sealed(self) -> memoryview:
        """The packed ciphertexts."""
        return self.payload[: bytes_of(self.sealed_size)]

    @property
    def open(self) -> Float32Vector:
        """The elements that are not encrypted."""
        open_size = self.size - self.sealed_size
        return Float32Vector(open_size, self.payload[bytes_of(self.sealed_size) :])

    def magnitude_bound(self) -> float:
        """Return a bound of the elements that are not encrypted; nobody knows one of the others."""
        return self.open.magnitude_bound()

    def blocks(self) -> Iterator[Vector]:
        """Raise TypeError: nobody may compute with ciphertexts as if they were values."""
        raise TypeError("a sealed vector has no values: only who has the key decrypts it")

    @classmethod
    def of(cls, residues: Residues, sealed_size: int, others: Vector) -> Self:
        """Return a vector of ciphertexts, which hold so many values, and of float32s."""
        payload = pack(residues) + bytes(Float32Vector.of(others).payload)
        return cls.read(sealed_size, others.size, memoryview(payload))

    @classmethod
    def read(cls, sealed_size: int, open_size: int, payload: memoryview) -> Self:
        """Return the vector in these bytes. Raises ValueError when they are none of these sizes."""
        require_length(bytes_of(sealed_size) + 4 * open_size, payload)
        require_residues(payload[: bytes_of(sealed_size)], sealed_size)
        return cls(sealed_size + open_size, payload, sealed_size)


@dataclass(frozen=True, slots=True)
class SealedCodec:
    """Reads vectors all of whose elements are encrypted."""

    def most_bytes(self, size: int) -> int:
        """Return how many bytes a vector takes."""
        return bytes_of(size)

    def of(self, *_: object) -> NoReturn:
        """Raise TypeError: only a worker that has the key makes sealed vectors."""
        raise TypeError("no vector becomes a sealed one without a key: see fluffle.sealed.keys")

    def read(self, size: int, payload: memoryview) -> SealedVector:
        """Return the vector in these bytes. Raises ValueError when they are none of this size."""
        return SealedVector.read(size, 0, payload)
