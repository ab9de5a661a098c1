"""The digest by which one record names another."""

from dataclasses import replace

from builders import a_vector, a_version

from fluffle.framing import record_digest
from fluffle.record_wire import encode_version, version_pieces


def test_a_digest_names_a_record_by_its_header_and_its_vector() -> None:
    version = a_version(values=[1, 2, 3, 4])

    digests = {
        record_digest(encode_version(each))
        for each in (
            version,
            replace(version, vector=a_vector(1, 2, 3, 4)),
            replace(version, term=2),
            replace(version, vector=a_vector(1, 2, 3, 5)),
        )
    }

    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_a_digest_is_the_same_of_a_record_about_to_be_sent_and_of_its_bytes() -> None:
    version = a_version(values=[1, 2, 3, 4])

    assert record_digest(version_pieces(version)) == record_digest(encode_version(version))
