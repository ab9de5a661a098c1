"""Masks: the stream of a cipher under a key that one worker and one group of helpers agree on.

A key is HKDF-SHA256 of what X25519 makes of the one's private and the other's public key. What is masked is
part of that, so that no two messages have the same mask. A mask is the key stream of AES-128 in counter mode,
read as numbers of 32 bits, of which the low ones count. All of this is done by the library `cryptography`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fluffle.secure.modulus import Residues
from fluffle.update import UpdateId
from fluffle.vector_math import BLOCK_SIZE

KEY_BYTES: Final = 16
PURPOSE: Final = b"fluffle secure aggregation 1"
# update_into wants room for one more block than it writes.
AES_BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class Masked:
    """What is masked: an update that began from a version, in an epoch of a federation.

    With shares of noise it says how many workers of its sum are to be `honest`: whoever tells the helpers of
    fewer gets other masks from them.
    """

    federation: str
    epoch: int
    id: UpdateId
    base_term: int
    base_version: int
    honest: int = 0

    def info(self, group: int) -> bytes:
        """Return what the key of a group depends on: each part follows its length, so that it has one end."""
        parts = [
            PURPOSE,
            *(text.encode() for text in (self.federation, self.id.worker, self.id.run)),
            *(
                number.to_bytes(8, "big")
                for number in (self.epoch, self.id.sequence, self.base_term, self.base_version, group)
            ),
        ]
        if self.honest:
            parts.append(self.honest.to_bytes(8, "big"))
        return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def mask_key(own: X25519PrivateKey, other: X25519PublicKey, masked: Masked, group: int) -> bytes:
    """Return the key of a mask: the worker and the helpers of a group get the same one.

    Raises ValueError for a public key with which nothing can be agreed on.
    """
    hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=masked.info(group))
    return hkdf.derive(own.exchange(other))


def sums_of_masks(size: int, keys: Iterable[tuple[bytes, int]]) -> Iterator[Residues]:
    """Yield the sum of factor * mask over keys and their factors: `size` numbers modulo 2**32, in blocks.

    A block is overwritten when the next one is asked for.
    """
    streams = [(Cipher(AES(key), CTR(bytes(AES_BLOCK))).encryptor(), factor) for key, factor in keys]
    most = min(size, BLOCK_SIZE)
    zeros, stream = bytes(4 * most), bytearray(4 * most + AES_BLOCK - 1)
    # Numbers of 32 bits whatever the modulus: those of three bytes would take twice as long to add up.
    numbers, total = np.frombuffer(stream, "<u4", most), np.empty(most, np.uint32)
    for start in range(0, size, BLOCK_SIZE):
        count = min(most, size - start)
        mask, block = numbers[:count], total[:count]
        block.fill(0)
        for encryptor, factor in streams:
            encryptor.update_into(memoryview(zeros)[: 4 * count], stream)
            if factor != 1:
                np.multiply(mask, np.uint32(factor % 2**32), out=mask)
            np.add(block, mask, out=block)
        yield block


def add_masks(total: Residues, keys: Iterable[bytes], factor: int = 1) -> None:
    """Add factor * the mask of each key to `total` in place; a factor of -1 takes them off."""
    start = 0
    for masks in sums_of_masks(total.size, [(key, factor) for key in keys]):
        block = total[start : start + masks.size]
        np.add(block, masks, out=block)
        start += masks.size
