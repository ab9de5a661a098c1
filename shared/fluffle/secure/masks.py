"""Masks: the stream of a cipher under a key that one worker and one group of helpers agree on.

A key is HKDF-SHA256 of what X25519 makes of the one's private and the other's public key. What is masked is
part of that, so that no two messages have the same mask. A mask is the key stream of AES-128 in counter mode,
read as numbers modulo 2**bits. All of this is done by the library `cryptography`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fluffle.secure.modulus import Modulus, Residues, add_multiple
from fluffle.update import UpdateId
from fluffle.vector_math import BLOCK_SIZE

KEY_BYTES: Final = 16
PURPOSE: Final = b"fluffle secure aggregation 1"
# update_into wants room for one more block than it writes.
AES_BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class Masked:
    """What is masked: an update that began from a version, in an epoch of a federation."""

    federation: str
    epoch: int
    id: UpdateId
    base_term: int
    base_version: int

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
        return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def mask_key(own: X25519PrivateKey, other: X25519PublicKey, masked: Masked, group: int) -> bytes:
    """Return the key of a mask: the worker and the helpers of a group get the same one.

    Raises ValueError for a public key with which nothing can be agreed on.
    """
    hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=masked.info(group))
    return hkdf.derive(own.exchange(other))


def add_masks(total: Residues, keys: Iterable[bytes], modulus: Modulus, factor: int = 1) -> None:
    """Add factor * the mask of each key to `total` in place; a factor of -1 takes them off."""
    streams = [Cipher(AES(key), CTR(bytes(AES_BLOCK))).encryptor() for key in keys]
    zeros = bytes(modulus.bytes_of(BLOCK_SIZE))
    stream = bytearray(len(zeros) + AES_BLOCK - 1)
    for start in range(0, total.size, BLOCK_SIZE):
        block = total[start : start + BLOCK_SIZE]
        length = modulus.bytes_of(block.size)
        for each in streams:
            each.update_into(memoryview(zeros)[:length], stream)
            mask = modulus.unpack(memoryview(stream)[:length], block.size)
            add_multiple(block, mask, factor)
