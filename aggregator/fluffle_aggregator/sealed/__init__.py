"""Sealed federations in the aggregator, which adds up ciphertexts and has no key for them."""
