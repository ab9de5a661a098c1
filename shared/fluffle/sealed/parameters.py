"""The one set of CKKS parameters of sealed federations, and what a model takes with them. Pure.

A ciphertext is two polynomials with DEGREE coefficients modulo PRIME, in the number-theoretic transform's
form, so that adding ciphertexts is adding numbers modulo PRIME. It holds SLOTS values. PRIME is what SEAL
chooses for coefficients of [54, 54] bits; the second prime stays in the key, and no ciphertext has it.

Source: Cheon, Kim, Kim and Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers" (2017). The
security of 128 bits is that of the table of HomomorphicEncryption.org (2018): a degree of 4096 allows primes
of 109 bits in all.
"""

from typing import Final

DEGREE: Final = 4096
SLOTS: Final = DEGREE // 2
POLYNOMIALS: Final = 2
RESIDUE_BITS: Final = 54
# SEAL's CoeffModulus::Create(4096, {54, 54}); a test compares.
PRIME: Final = 18_014_398_509_293_569
SECURITY_BITS: Final = 128
# A value is multiplied by it and rounded.
SCALE: Final = 2.0**32
# No coefficient of a sum may come to half of the prime; the last bit is for noise.
LARGEST_VALUE: Final = PRIME / 4 / SCALE


def ciphertexts_of(size: int) -> int:
    """Return how many ciphertexts so many values take."""
    return -(-size // SLOTS)


def bytes_of(size: int) -> int:
    """Return how many bytes the packed ciphertexts of so many values take: 27 a value, for whole ones."""
    return ciphertexts_of(size) * POLYNOMIALS * DEGREE * RESIDUE_BITS // 8
