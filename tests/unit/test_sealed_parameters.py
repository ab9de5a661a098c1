"""Sealed federations: Fluffle's parameters are those that SEAL itself chooses and accepts."""

import tenseal.sealapi as seal

from fluffle.sealed.parameters import DEGREE, PRIME, RESIDUE_BITS, SECURITY_BITS, bytes_of, ciphertexts_of


def test_the_prime_is_the_one_that_seal_chooses_and_finds_secure() -> None:
    settings = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    settings.set_poly_modulus_degree(DEGREE)
    settings.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [RESIDUE_BITS, RESIDUE_BITS]))

    context = seal.SEALContext(settings, True, getattr(seal.SEC_LEVEL_TYPE, f"TC{SECURITY_BITS}"))

    assert context.parameters_set(), context.parameters_error_message()
    of_ciphertexts = context.first_context_data().parms().coeff_modulus()
    assert [modulus.value() for modulus in of_ciphertexts] == [PRIME]
    assert PRIME.bit_length() == RESIDUE_BITS


def test_a_ciphertext_holds_2048_values_of_27_bytes_each() -> None:
    assert [ciphertexts_of(size) for size in (0, 1, 2048, 2049, 1_000_000)] == [0, 1, 1, 2, 489]
    assert bytes_of(2048) == 27 * 2048
    assert bytes_of(1) == bytes_of(2048)
    assert bytes_of(1_000_000) / 1_000_000 < 27.05
