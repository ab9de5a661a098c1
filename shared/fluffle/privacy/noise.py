"""The noise of a federation: normal numbers that whoever has the secret makes again, to the last bit.

The noise of a version is the key stream of AES-128 in counter mode, whose key is HKDF-SHA256 of the secret,
of the version's rank and of what its leader has drawn at random when it began. A standby goes on with the
noise of the leader before it, on any machine. The same noise must never be added to two different sums, or
their difference would be known exactly. Therefore not the term alone tells leaders apart: a broker whose disk
was put back to an older state gives out a term twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fluffle.privacy.grid import Steps, add_rounded
from fluffle.privacy.normals import PIECE as NORMALS_PIECE
from fluffle.privacy.normals import Floats, normals_from
from fluffle.record import Rank

SECRET_BYTES: Final = 32
KEY_BYTES: Final = 16
PURPOSE: Final = b"fluffle privacy noise 1"
AES_BLOCK: Final = 16
BITS_BYTES: Final = 8
# A few arrays of so many float64 stay in the cache of one core; a whole number of blocks of AES.
PIECE: Final = 4 * NORMALS_PIECE
ZEROS: Final = memoryview(bytes(BITS_BYTES * PIECE))

Use = Literal["updates", "share"]


@dataclass(frozen=True, slots=True)
class NoiseSecret:
    """What all aggregators of a federation share, and nobody else has. Raises ValueError unless 32 bytes."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise ValueError(f"the secret of the noise must be {SECRET_BYTES} bytes, not {len(self.secret)}")

    @property
    def commitment(self) -> str:
        """A public text by which a leader and its standby tell that they have the same secret."""
        return self._derive(b"commitment", length=SECRET_BYTES).hex()

    def key(self, federation: str, drawn: bytes, rank: Rank, use: Use = "updates") -> bytes:
        """Return the key of the noise in one version: in the sum of its updates, or in the share that fits.

        `drawn` are the random bytes of the leader of that term.
        """
        numbers = (number.to_bytes(8, "big") for number in (rank.term, rank.version))
        return self._derive(use.encode(), federation.encode(), drawn, *numbers, length=KEY_BYTES)

    def _derive(self, *parts: bytes, length: int) -> bytes:
        # Each part follows its length, so that it has one end.
        info = b"".join(len(part).to_bytes(2, "big") + part for part in (PURPOSE, *parts))
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self.secret)


def standard_normals(key: bytes, start: int, size: int) -> Floats:
    """Return elements `start` to `start + size` of the standard normal vector that a key stands for.

    Raises ValueError when `start` is odd: a block of AES makes two elements.
    """
    found = np.empty(size)
    for at in range(0, size, PIECE):
        _draw(key, start + at, found[at : at + PIECE])
    return found


def _draw(key: bytes, start: int, out: Floats) -> None:
    """Write the elements from `start` on to `out`, which is no longer than a piece."""
    first, odd = divmod(start * BITS_BYTES, AES_BLOCK)
    if odd:
        raise ValueError(f"normal numbers must be taken from an even element on, not from {start}")
    stream = Cipher(AES(key), CTR(first.to_bytes(AES_BLOCK, "big"))).encryptor()
    bits = out.view("<u8")
    stream.update_into(ZEROS[: bits.nbytes], bits.view(np.uint8).data)
    normals_from(bits.astype(np.uint64, copy=False), out)


class NoiseSequence:
    """The noise of one buffer after the other, for sums in whole steps of a grid.

    Only the keys of the last buffers are needed to go on: a standby that takes over has them from the head.
    The normal numbers of the last `kept` buffers are kept, 8 bytes for each element and buffer. Those of
    earlier ones are made again where they are needed, which gives the same bits and takes longer.
    """

    def __init__(
        self, coefficients: Sequence[float], std: float, size: int, *, past: Sequence[bytes] = (), kept: int
    ) -> None:
        """Go on after buffers with these keys, oldest first; `std` is that of z_t, in steps."""
        self._coefficients, self._std, self._size, self._kept = tuple(coefficients), std, size, kept
        # With the newest first, each is one lag later than the one before it.
        remembered: list[tuple[bytes, Floats | None]] = [(key, None) for key in reversed(past)]
        self._past = remembered[: len(self._coefficients) - 1]

    def add_next(self, key: bytes, total: Steps) -> None:
        """Add the noise of the next buffer to its sum, in place. Raises ValueError for another size.

        The same key must never be used for two sums.
        """
        if total.size != self._size:
            raise ValueError(f"noise of {self._size} elements cannot be added to {total.size}")
        most = len(self._coefficients) - 1
        fresh = np.empty(self._size) if min(most, self._kept) else None
        noises, scratch = np.empty((2, min(self._size, PIECE)))
        for start in range(0, self._size, PIECE):
            piece = slice(start, min(start + PIECE, self._size))
            noise, z = noises[: piece.stop - start], scratch[: piece.stop - start]
            _draw(key, start, noise)
            if fresh is not None:
                fresh[piece] = noise
            for coefficient, (past, normals) in zip(self._coefficients[1:], self._past, strict=False):
                if normals is None:
                    _draw(past, start, z)
                noise += np.multiply(z if normals is None else normals[piece], coefficient, out=z)
            noise *= self._std
            add_rounded(total[piece], noise)
        self._past = [(key, fresh), *self._past][:most]
        self._past[self._kept :] = [(past, None) for past, _ in self._past[self._kept :]]
