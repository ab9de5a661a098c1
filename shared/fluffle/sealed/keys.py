"""The key of a sealed federation, which its workers and evaluators share: vectors to residues and back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fluffle.errors import ConfigError
from fluffle.sealed.parameters import DEGREE, LARGEST_VALUE, POLYNOMIALS, SLOTS, ciphertexts_of
from fluffle.sealed.residues import Residues
from fluffle.sealed.seal import Seal, new_secret_key
from fluffle.sealed.secret_file import SealedSecret, read_secret

Values = npt.NDArray[np.floating[Any]]


class SealedKeys:
    """The secret key, which encrypts and decrypts. Whoever has it and the traffic sees everything."""

    def __init__(self, secret: SealedSecret) -> None:
        self.key_id = secret.key_id
        self._seal = Seal(secret.secret_key)

    @classmethod
    def read(cls, path: Path) -> "SealedKeys":
        """Read the file sealed.secret. Raises ConfigError when it is another one, or others may read it."""
        secret = read_secret(path)
        try:
            return cls(secret)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; copy it again from who made it") from error

    def encrypt(self, vector: Values) -> Residues:
        """Encrypt a vector: residues of shape [ciphertexts, 2, degree], other ones with each call.

        Raises ValueError when an element is not finite, or above the largest one that can be encrypted.
        """
        # NaN passes through numpy's max and min.
        largest = float(np.maximum(vector.max(initial=0), -vector.min(initial=0)))
        if not largest <= LARGEST_VALUE:
            raise ValueError(f"an element of {largest:g} cannot be encrypted: the most is {LARGEST_VALUE:g}")
        sealed = np.empty((ciphertexts_of(vector.size), POLYNOMIALS, DEGREE), np.uint64)
        self._seal.encrypt(_blocks(vector), sealed)
        return sealed

    def decrypt(self, residues: Residues, size: int) -> npt.NDArray[np.float64]:
        """Decrypt so many values. Raises ValueError when there are not as many ciphertexts as these take."""
        if residues.shape != (expected := (ciphertexts_of(size), POLYNOMIALS, DEGREE)):
            raise ValueError(f"{size} values take residues of shape {expected}, not {residues.shape}")
        values = np.empty(size, np.float64)
        for number, block in enumerate(self._seal.decrypt(residues)):
            start = number * SLOTS
            values[start : start + SLOTS] = block[: size - start]
        return values


def new_secret() -> SealedSecret:
    """Draw a new key."""
    return SealedSecret(new_secret_key())


def _blocks(vector: Values) -> Iterator[Sequence[float]]:
    for start in range(0, vector.size, SLOTS):
        yield vector[start : start + SLOTS].tolist()
