"""Which replica of a compose service a container is; the answers are those that Docker's DNS server gave."""

from __future__ import annotations

import pytest

from fluffle_worker import replica

QUESTION = replica.ptr_question("172.18.0.3")
NAME_IN_FULL = b"\x013\x010\x0218\x03172\x07in-addr\x04arpa\x00"


def answer(name: bytes, *, owner: bytes = NAME_IN_FULL, count: int = 1) -> bytes:
    header = b"\xfbq\x81\x80\x00\x01" + count.to_bytes(2, "big") + bytes(4)
    record = owner + b"\x00\x0c\x00\x01\x00\x00\x02X" + len(name).to_bytes(2, "big") + name
    return header + QUESTION + (record if count else b"")


def test_the_question_is_the_address_backwards() -> None:
    assert NAME_IN_FULL + b"\x00\x0c\x00\x01" == QUESTION
    assert replica.dns_query(QUESTION)[2:] == b"\x01\x00\x00\x01" + bytes(6) + QUESTION


@pytest.mark.parametrize("owner", [NAME_IN_FULL, b"\xc0\x0c"])
def test_the_answers_first_label_is_the_containers_name(owner: bytes) -> None:
    given = answer(b"\x10fluffle-worker-2\x12fluffle_federation\x00", owner=owner)

    assert replica.first_label(given, QUESTION) == b"fluffle-worker-2"


@pytest.mark.parametrize("given", [answer(b"", count=0), b"", answer(b"")])
def test_an_answer_without_a_name_gives_none(given: bytes) -> None:
    assert replica.first_label(given, QUESTION) == b""
