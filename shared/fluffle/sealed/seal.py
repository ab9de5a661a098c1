"""Microsoft SEAL through TenSEAL: values to residues and back. The only module that knows either.

SEAL saves an object to a file: a header with a magic number, its version and how the rest is packed, and then
the object. Ciphertexts are read from what this process has just saved. To SEAL go a secret key of the user's
own file, and residues of ciphertexts that were checked to be below the prime: SEAL parses nothing of
strangers.
"""

import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from tenseal import sealapi

from fluffle.compression import unpacked
from fluffle.errors import ConfigError
from fluffle.sealed.parameters import DEGREE, POLYNOMIALS, RESIDUE_BITS, SCALE, SECURITY_BITS
from fluffle.sealed.residues import Residues

# Magic number, bytes of this header, SEAL's version, how the rest is packed, nothing, bytes of all.
_HEADER: Final = struct.Struct("<HBBBBHQ")
_MAGIC: Final = 0xA15E
_PLAIN, _ZSTD = 0, 2
# Digest of the parameters, whether in the transform's form, polynomials, degree, primes, scale, factor.
_CIPHERTEXT: Final = struct.Struct("<4Q?QQQdQ")
_COUNT: Final = struct.Struct("<Q")
_RESIDUES: Final = POLYNOMIALS * DEGREE
_RESIDUE_BYTES: Final = 8 * _RESIDUES
_MOST_BYTES: Final = 2 * _RESIDUE_BYTES


class Seal:
    """SEAL with one secret key, as SEAL has saved it. Raises ConfigError when these bytes are none."""

    def __init__(self, secret: bytes) -> None:
        context = _context()
        key = sealapi.SecretKey()
        with _scratch_file() as path:
            path.write_bytes(secret)
            try:
                key.load(context, str(path))
            except (RuntimeError, ValueError) as error:
                raise ConfigError(f"SEAL cannot read the secret key: {error}") from error
        self._context = context
        self._encoder = sealapi.CKKSEncoder(context)
        self._encryptor = sealapi.Encryptor(context, key)
        self._decryptor = sealapi.Decryptor(context, key)
        self._prefix = self._require_known_format()

    def encrypt(self, blocks: Iterator[Sequence[float]], into: Residues) -> None:
        """Encrypt each block of values, of at most as many as there are slots, into one ciphertext."""
        plain, sealed = sealapi.Plaintext(), sealapi.Ciphertext()
        with _scratch_file() as path:
            for block, residues in zip(blocks, into, strict=True):
                self._encoder.encode(block, SCALE, plain)
                self._encryptor.encrypt_symmetric(plain, sealed)
                body = _saved(sealed, path)
                residues[:] = np.frombuffer(body[-_RESIDUE_BYTES:], np.uint64).reshape(residues.shape)

    def decrypt(self, residues: Residues) -> Iterator[Sequence[float]]:
        """Return the values in the slots of each ciphertext."""
        plain, sealed = sealapi.Plaintext(), sealapi.Ciphertext()
        with _scratch_file() as path:
            for each in residues:
                path.write_bytes(self.saved(each))
                sealed.load(self._context, str(path))
                self._decryptor.decrypt(sealed, plain)
                yield self._encoder.decode_double(plain)

    def saved(self, residues: Residues) -> bytes:
        """Return the bytes of a ciphertext of these residues, as SEAL itself would save it unpacked."""
        return self._prefix + residues.tobytes()

    def _require_known_format(self) -> bytes:
        """Return what stands before the residues of a ciphertext, when SEAL saves it as we read it."""
        plain, sealed = sealapi.Plaintext(), sealapi.Ciphertext()
        self._encoder.encode([], SCALE, plain)
        self._encryptor.encrypt_symmetric(plain, sealed)
        with _scratch_file() as path:
            found = bytes(_saved(sealed, path)[:-_RESIDUE_BYTES])
            _, _, *version, _, _, _ = _HEADER.unpack_from(path.read_bytes())
        before = _CIPHERTEXT.pack(*sealed.parms_id(), True, POLYNOMIALS, DEGREE, 1, SCALE, 1)
        array = _header(version, _COUNT.size + _RESIDUE_BYTES) + _COUNT.pack(_RESIDUES)
        if found != before + array:
            raise ConfigError(
                "this TenSEAL saves ciphertexts in a form that Fluffle does not know: install tenseal 0.3.18"
            )
        return _header(version, len(found) + _RESIDUE_BYTES) + found


def new_secret_key() -> bytes:
    """Return a new secret key, as SEAL saves it."""
    with _scratch_file() as path:
        sealapi.KeyGenerator(_context()).secret_key().save(str(path))
        return path.read_bytes()


def _context() -> Any:
    settings = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    settings.set_poly_modulus_degree(DEGREE)
    settings.set_coeff_modulus(sealapi.CoeffModulus.Create(DEGREE, [RESIDUE_BITS, RESIDUE_BITS]))
    # SEAL itself refuses parameters of less security.
    security = getattr(sealapi.SEC_LEVEL_TYPE, f"TC{SECURITY_BITS}")
    return sealapi.SEALContext(settings, True, security)


def _header(version: Sequence[int], size_bytes: int) -> bytes:
    """Return the header of something that is not packed."""
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _PLAIN, 0, _HEADER.size + size_bytes)


def _saved(ciphertext: Any, path: Path) -> memoryview:
    """Return the bytes of a ciphertext behind the header, unpacked."""
    ciphertext.save(str(path))
    content = memoryview(path.read_bytes())
    packing = _HEADER.unpack_from(content)[4]
    body = content[_HEADER.size :]
    return unpacked(body, _MOST_BYTES) if packing == _ZSTD else body


@contextmanager
def _scratch_file() -> Iterator[Path]:
    """Yield a file for what SEAL writes and reads: in memory where the system has such files."""
    if sys.platform == "linux":
        number = os.memfd_create("fluffle-sealed")
        try:
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
    else:
        with TemporaryDirectory(prefix="fluffle-") as folder:
            yield Path(folder) / "seal"
