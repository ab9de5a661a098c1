"""The key of a sealed federation: what it encrypts and decrypts, its two files, and `fluffle keys sealed`."""

import json
import stat
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fluffle.errors import ConfigError
from fluffle.sealed import seal as seal_module
from fluffle.sealed.keys import SealedKeys, new_secret
from fluffle.sealed.parameters import DEGREE, LARGEST_VALUE, POLYNOMIALS, PRIME, SLOTS
from fluffle.sealed.plan import MOST_ERROR
from fluffle.sealed.public_file import read_public
from fluffle.sealed.residues import Residues, add_weighted, negated, pack, unpack, zeros
from fluffle.sealed.secret_file import read_secret
from fluffle_cli.main import app

KEYS = SealedKeys(new_secret())


def values(count: int, *, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-size, size, count).astype(np.float32)


def make(folder: Path) -> Result:
    return CliRunner().invoke(app, ["keys", "sealed", str(folder)])


@pytest.mark.parametrize("count", [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, 5 * SLOTS - 7])
def test_a_vector_of_any_size_comes_back_but_for_the_noise(count: int) -> None:
    vector = values(count)

    sealed = KEYS.encrypt(vector)

    assert sealed.dtype == np.uint64
    assert sealed.shape == (-(-count // SLOTS), POLYNOMIALS, DEGREE)
    assert int(sealed.max(initial=0)) < PRIME
    np.testing.assert_allclose(KEYS.decrypt(sealed, count), vector, rtol=0, atol=MOST_ERROR)


def test_the_same_values_are_encrypted_to_other_numbers_each_time() -> None:
    vector = np.zeros(SLOTS, np.float32)

    one, other = KEYS.encrypt(vector), KEYS.encrypt(vector)

    assert np.count_nonzero(one == other) < 3
    # Such numbers tell nothing: they lie everywhere below the prime.
    assert np.histogram(one, bins=16, range=(0, PRIME))[0].min() > one.size / 16 * 0.7


def test_the_largest_values_come_back_and_larger_ones_are_refused() -> None:
    largest = np.float32(LARGEST_VALUE) * np.float32(1 - 2**-20)
    vector = np.array([largest, -largest] * SLOTS, np.float32)

    found = KEYS.decrypt(KEYS.encrypt(vector), vector.size)

    np.testing.assert_allclose(found, vector, rtol=1e-12, atol=MOST_ERROR)

    # SEAL itself computes with what is beyond its range: github.com/microsoft/SEAL/issues/732.
    for beyond in (2 * LARGEST_VALUE, -2 * LARGEST_VALUE, -8.65801e306, np.inf, np.nan):
        with pytest.raises(ValueError, match="cannot be encrypted: the most is"):
            KEYS.encrypt(np.array([0.0, beyond]))


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.integers(1, 64), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_adding_residues_with_integer_weights_is_what_seal_does_with_ciphertexts(
    weights: list[int], seed: int
) -> None:
    ours, theirs, exact = zeros(SLOTS), SealsOwn(), np.zeros(SLOTS)

    for number, weight in enumerate(weights):
        vector = values(SLOTS, seed=seed + number)
        sealed = KEYS.encrypt(vector)
        add_weighted(ours, sealed, weight)
        theirs.add(sealed, weight)
        exact += weight * vector.astype(np.float64)

    assert np.array_equal(ours, theirs.residues)
    np.testing.assert_allclose(KEYS.decrypt(ours, SLOTS), exact, rtol=0, atol=sum(weights) * MOST_ERROR)


def test_a_refresh_is_an_encryption_of_nothing_that_takes_the_noise_of_the_old_sum_away() -> None:
    vector = values(3 * SLOTS, size=1000.0)
    before = KEYS.encrypt(vector)
    later = before.copy()
    add_weighted(later, KEYS.encrypt(vector), 64)

    difference = KEYS.encrypt(KEYS.decrypt(before, vector.size))
    add_weighted(difference, negated(before), 1)
    add_weighted(later, difference, 1)

    np.testing.assert_allclose(
        KEYS.decrypt(later, vector.size), 65.0 * vector, rtol=1e-7, atol=64 * MOST_ERROR
    )


def test_another_key_decrypts_to_values_that_no_sum_has() -> None:
    sealed = KEYS.encrypt(values(SLOTS))

    found = SealedKeys(new_secret()).decrypt(sealed, SLOTS)

    assert np.abs(found).max() > 1000


def test_residues_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4096 values take residues of shape \(2, 2, 4096\), not"):
        KEYS.decrypt(KEYS.encrypt(values(SLOTS)), 2 * SLOTS)


def test_the_command_makes_a_secret_file_for_its_owner_alone_and_a_public_one(tmp_path: Path) -> None:
    done = make(tmp_path / "keys")

    assert done.exit_code == 0, done.stderr
    secret, public = tmp_path / "keys/sealed.secret", tmp_path / "keys/sealed.public"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    keys = SealedKeys.read(secret)
    assert read_public(public).key == keys.key_id
    assert keys.key_id in done.stdout
    key = json.loads(secret.read_text())["secret_key"]
    assert key[:40] not in done.output + public.read_text() + repr(read_secret(secret)) + repr(vars(keys))
    sealed = unpack(pack(keys.encrypt(values(10))), 10)
    np.testing.assert_allclose(SealedKeys.read(secret).decrypt(sealed, 10), values(10), atol=MOST_ERROR)


def test_a_key_is_never_overwritten_and_a_public_file_that_is_missing_is_made_again(tmp_path: Path) -> None:
    make(tmp_path)
    secret, public = tmp_path / "sealed.secret", tmp_path / "sealed.public"
    before, said = secret.read_bytes(), public.read_bytes()

    again = make(tmp_path)
    public.unlink()
    third = make(tmp_path)

    assert again.exit_code == 2
    assert "exists, and secrets are never overwritten: move it away first" in again.stderr
    assert third.exit_code == 0, third.stderr
    assert (secret.read_bytes(), public.read_bytes()) == (before, said)


def test_the_public_file_where_the_secret_one_is_needed_and_the_other_way_round_is_a_sentence(
    tmp_path: Path,
) -> None:
    make(tmp_path)

    with pytest.raises(ConfigError, match=r"sealed\.public is the public file.*give the sealed\.secret"):
        SealedKeys.read(tmp_path / "sealed.public")
    with pytest.raises(
        ConfigError, match=r"sealed\.secret is no public file of a sealed federation"
    ) as raised:
        read_public(tmp_path / "sealed.secret")

    assert "secret_key" not in str(raised.value)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "sealed.secret").chmod(0o644)

    with pytest.raises(ConfigError, match=r"others may read the secret in .*: chmod 600"):
        SealedKeys.read(tmp_path / "sealed.secret")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": "other"}', b"[" * 100_000])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sealed.secret"
    path.touch(mode=0o600)
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"is no secret file of a sealed federation"):
        SealedKeys.read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"secret_key": None}, "is damaged: copy it again"),
        ({"secret_key": "AAA!"}, "is damaged: copy it again"),
        ({"secret_key": ""}, "SEAL cannot read the secret key"),
        ({"secret_key": "AAAA"}, "SEAL cannot read the secret key"),
        ({"scale": 2.0**30}, "has a key with another scale than this Fluffle seals with"),
    ],
    ids=str,
)
def test_a_damaged_key_is_refused_without_what_is_in_it(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    make(tmp_path)
    path = tmp_path / "sealed.secret"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change}))

    with pytest.raises(ConfigError, match=says) as raised:
        SealedKeys.read(path)

    assert content["secret_key"][:20] not in str(raised.value)


@pytest.mark.parametrize("keep", [100, 30_000, -100])
def test_a_key_that_was_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    make(tmp_path)
    path = tmp_path / "sealed.secret"
    content = json.loads(path.read_text())
    content["secret_key"] = content["secret_key"][: keep // 4 * 4]
    path.write_text(json.dumps(content))

    with pytest.raises(ConfigError, match="SEAL cannot read the secret key"):
        SealedKeys.read(path)


def test_without_tenseal_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("fluffle.sealed.keys", "fluffle.sealed.seal"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tenseal", None)

    done = make(tmp_path)

    assert done.exit_code == 2
    assert "needs TenSEAL: pip install 'fluffle[sealed]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tenseal_that_saves_ciphertexts_in_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = seal_module._saved
    monkeypatch.setattr(seal_module, "_saved", lambda *given: memoryview(bytes(1) + bytes(saved(*given))))

    with pytest.raises(ConfigError, match=r"in a form that Fluffle does not know: install tenseal 0\.3\.18"):
        SealedKeys(new_secret())


class SealsOwn:
    """A sum of ciphertexts that SEAL itself adds up, each as often as its weight says."""

    def __init__(self) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [54, 54]))
        self._context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        self._evaluator = seal.Evaluator(self._context)
        self._sum: seal.Ciphertext | None = None

    def add(self, residues: Residues, weight: int) -> None:
        """Add one ciphertext so many times."""
        one = self._ciphertext(residues)
        for _ in range(weight):
            if self._sum is None:
                self._sum = self._ciphertext(residues)
            else:
                self._evaluator.add_inplace(self._sum, one)

    def _ciphertext(self, residues: Residues) -> seal.Ciphertext:
        found = seal.Ciphertext()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "ciphertext"
            path.write_bytes(KEYS._seal.saved(residues))
            found.load(self._context, str(path))
        return found

    @property
    def residues(self) -> Residues:
        """The numbers of the sum, as SEAL shows them one by one."""
        assert self._sum is not None
        numbers = [self._sum[place] for place in range(POLYNOMIALS * DEGREE)]
        return np.array(numbers, np.uint64).reshape(1, POLYNOMIALS, DEGREE)
