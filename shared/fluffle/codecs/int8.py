"""The codec int8: blocks of 1,024 elements, one float32 scale for each, stochastic rounding. Pure.

An element is scale * q with q from -127 to 127. It is rounded up or down at random, so that it is right on
average, and so are sums over many workers. Source: Alistarh et al., "QSGD" (2017, arXiv
1610.02132), section 3.1, with the largest magnitude of each block for the norm.

The payload has all scales, and then all q.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from fluffle.codecs.compressed import CompressedVector, require_length
from fluffle.model import Vector
from fluffle.vector_math import BLOCK_SIZE

GROUP: Final = 1024
LEVELS: Final = 127
GROUPS_AT_ONCE: Final = BLOCK_SIZE // GROUP
SMALLEST_NORMAL: Final = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True, slots=True)
class Int8Vector(CompressedVector):
    """A byte for each element, and a scale for each 1,024."""

    @staticmethod
    def most_bytes(size: int) -> int:
        """Return how many bytes a vector takes."""
        return 4 * groups_of(size) + size

    @classmethod
    def of(cls, vector: Vector, random: np.random.Generator) -> Self:
        """Return a vector, rounded at random.

        A group that holds a NaN or an infinity gets a scale that is not finite, so that its reader notices. A
        group whose scale would not be a normal float32 becomes zero.
        """
        payload = np.empty(cls.most_bytes(vector.size), np.uint8)
        scales, levels = _parts(vector.size, payload)
        chances = _chances(min(scales.size, GROUPS_AT_ONCE), random)
        scratch = np.empty_like(chances)
        for group, start in zip(*_starts(vector.size), strict=True):
            part = slice(start, start + BLOCK_SIZE)
            found = _quantize(vector[part], levels[part], chances, scratch)
            scales[group : group + GROUPS_AT_ONCE] = found
        return cls(vector.size, payload.data.toreadonly())

    @classmethod
    def read(cls, size: int, payload: memoryview) -> Self:
        """Return the vector in these bytes; raises ValueError when they are none."""
        require_length(cls.most_bytes(size), payload)
        vector = cls(size, payload)
        scales, _ = vector.parts
        if np.any(scales < 0):
            raise ValueError(f"a scale of {scales.min():.3g} is less than 0")
        return vector

    @property
    def parts(self) -> tuple[Vector, npt.NDArray[np.int8]]:
        """The scales and the levels, as views of the bytes."""
        return _parts(self.size, np.frombuffer(self.payload, np.uint8))

    def magnitude_bound(self) -> float:
        """Return the largest scale times what a byte can hold at most; NaN or infinity if a scale is."""
        scales, _ = self.parts
        return float(np.max(scales, initial=0.0)) * (LEVELS + 1)

    def blocks(self) -> Iterator[Vector]:
        """Yield the vector in blocks."""
        scales, levels = self.parts
        scratch = np.empty((min(scales.size, GROUPS_AT_ONCE), GROUP), np.float32)
        for group, start in zip(*_starts(self.size), strict=True):
            rounded = levels[start : start + BLOCK_SIZE]
            flat = scratch.reshape(-1)[: rounded.size]
            np.copyto(flat, rounded)
            # The last group may be short: the rest of its row is not used.
            rows = scratch[: groups_of(rounded.size)]
            rows.reshape(-1)[rounded.size :] = 0.0
            # Scales that are not finite, or so large that the product is not, are refused at admission.
            with np.errstate(invalid="ignore", over="ignore"):
                np.multiply(rows, scales[group : group + GROUPS_AT_ONCE, np.newaxis], out=rows)
            yield flat


def groups_of(size: int) -> int:
    """Return how many scales a vector has."""
    return -(-size // GROUP)


def _starts(size: int) -> tuple[range, range]:
    """Return where each block begins, in groups and in elements."""
    return range(0, groups_of(size), GROUPS_AT_ONCE), range(0, size, BLOCK_SIZE)


def _parts(size: int, payload: npt.NDArray[np.uint8]) -> tuple[Vector, npt.NDArray[np.int8]]:
    """Return the scales and the levels as views of a payload."""
    ends = 4 * groups_of(size)
    return payload[:ends].view("<f4"), payload[ends:].view(np.int8)


def _chances(groups: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return numbers in (0, 1) for the elements of a block.

    All blocks of a vector are rounded by the same ones, since to draw them takes longer than all the rest:
    each element is right on average all the same.
    """
    drawn = np.frombuffer(random.bytes(2 * groups * GROUP), "<u2").reshape(groups, GROUP)
    # As fine as float32 is near LEVELS. Halfway into its 2**-16th, so that none is preferred.
    return drawn * np.float32(2**-16) + np.float32(2**-17)


def _quantize(
    values: Vector,
    levels: npt.NDArray[np.int8],
    chances: npt.NDArray[np.float32],
    scratch: npt.NDArray[np.float32],
) -> Vector:
    """Write the levels of some groups, and return their scales; `scratch` is overwritten."""
    groups = groups_of(values.size)
    rows = scratch[:groups]
    flat = rows.reshape(-1)
    if values.size == flat.size:
        given = values.reshape(groups, GROUP)
    else:
        # The last group is short.
        given = rows
        flat[: values.size], flat[values.size :] = values, 0.0
    largest = np.maximum(given.max(axis=1), -given.min(axis=1))
    # A hair more than largest / LEVELS, so that rounding up never comes to LEVELS + 1.
    scales: Vector = largest * np.float32((1 + 2**-22) / LEVELS)
    scales[largest < SMALLEST_NORMAL * LEVELS * 2] = 0.0
    usable = np.isfinite(scales) & (scales > 0)
    if usable.all():
        np.divide(given, scales[:, np.newaxis], out=rows)
    else:
        np.divide(given, np.where(usable, scales, np.float32(1))[:, np.newaxis], out=rows)
        rows[~usable] = 0.0
    np.add(rows, chances[:groups], out=rows)
    np.floor(rows, out=rows)
    levels[:] = flat[: values.size]
    return scales
