"""Reading a sealed version: the key that workers and evaluators share, and what it makes of ciphertexts.

This module does without the library of ciphers: `fluffle.sealed.keys` has the key itself.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from fluffle.errors import ConfigError
from fluffle.record import ModelVersion
from fluffle.sealed.part import sealed_part
from fluffle.sealed.plan import SealedPlan
from fluffle.sealed.residues import Residues, unpack

SETTING: Final = "--sealed-secret"
Values = npt.NDArray[np.float64]


class SharedKey(Protocol):
    """The key that the workers and evaluators of a sealed federation share."""

    @property
    def key_id(self) -> str:
        """The name of this key."""

    def encrypt(self, vector: npt.NDArray[np.floating[Any]]) -> Residues:
        """Encrypt a vector. Raises ValueError when an element is not finite, or too large."""

    def decrypt(self, residues: Residues, size: int) -> Values:
        """Decrypt so many values."""


def read_key(file: Path | None) -> SharedKey | None:
    """Read the file sealed.secret, if one is given. Raises ConfigError when it holds no key."""
    if file is None:
        return None
    try:
        # It loads SEAL, which most installations do without.
        from fluffle.sealed.keys import SealedKeys
    except ModuleNotFoundError as error:
        raise ConfigError(f"{SETTING} needs TenSEAL: pip install 'fluffle[sealed]' ({error})") from error
    return SealedKeys.read(file)


def require_key(plan: SealedPlan, key: SharedKey | None, *, federation: str, who: str) -> SharedKey:
    """Return the key. Raises ConfigError when there is none, or another one than that of the plan."""
    if key is None:
        raise ConfigError(
            f"{federation} is sealed, and this {who} has no key: give {SETTING} the sealed.secret that its "
            "workers have"
        )
    if key.key_id != plan.key:
        raise ConfigError(
            f"{federation} is sealed with the key {plan.key}, and {SETTING} has the key {key.key_id}: give "
            "the sealed.secret that its workers have"
        )
    return key


def opened(version: ModelVersion, plan: SealedPlan, key: SharedKey) -> ModelVersion:
    """Return a sealed version with the values of its model, decrypted, and without the ciphertexts.

    Raises ConfigError when no honest federation can have such a sum.
    """
    if not version.sealed_sum:
        return version
    vector = version.vector.copy()
    sealed_part(version.layout, plan.only).add_sealed(vector, plan.step * sum_of(version, plan, key))
    # The ciphertexts are much larger than the model.
    return replace(version, vector=vector, sealed_sum=b"")


def sum_of(version: ModelVersion, plan: SealedPlan, key: SharedKey) -> Values:
    """Decrypt the sum of all updates. Raises ConfigError when honest updates cannot come to it."""
    size = sealed_part(version.layout, plan.only).size
    values = key.decrypt(unpack(version.sealed_sum, size), size)
    largest, bound = largest_of(values), version.sealed.bound(plan) if version.sealed else 0.0
    if largest > bound:
        raise ConfigError(
            f"version {version.rank} of {version.federation} decrypts to values up to {largest:.4g}, and "
            f"honest updates come to {bound:.4g} at most: another worker has another key, or has spoiled the "
            "sum. Compare sealed.secret at all sites, and go back to a version of before (docs/sealed.md)"
        )
    return values


def largest_of(values: Values) -> float:
    """Return the largest absolute value."""
    return float(np.abs(values).max(initial=0.0))
