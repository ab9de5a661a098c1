"""Certificates that have expired, by an authority of `fluffle broker certs`."""

from datetime import UTC, datetime

import trustme

from fluffle_cli.certificates import Pair

ENDED = datetime(2024, 5, 17, 12, tzinfo=UTC)


def issue_expired(pair: Pair, authority: Pair, host: str, *, user: str | None = None) -> None:
    """Write a key and a certificate that ended at ENDED: of a host, or of a user with any host."""
    signer = trustme.CA.from_pem(authority.certificate.read_bytes(), authority.key.read_bytes())
    leaf = signer.issue_cert(host, common_name=user, not_after=ENDED)
    pair.certificate.parent.mkdir(exist_ok=True)
    leaf.private_key_pem.write_to_path(pair.key)
    leaf.cert_chain_pems[0].write_to_path(pair.certificate)
