"""Which of the replicas of a compose service this container is, so that each takes a shard of its own."""

from __future__ import annotations

import re
import secrets
import socket
import struct
from functools import cache
from pathlib import Path

_TIMEOUT_S = 2.0
_POINTER_TO_A_NAME = 0xC0
_PTR, _INTERNET, _RECURSION_DESIRED = 12, 1, 0x0100

# Docker names the containers of a scaled service PROJECT-SERVICE-1, -2 and so on, and its DNS server tells a
# container that name for its own address: PROJECT-SERVICE-2.NETWORK. The resolver (socket.gethostbyaddr)
# never asks it: /etc/hosts comes first, where Docker writes the container's id for the same address.
_DOCKER_DNS = "127.0.0.11"
_CONTAINER = re.compile(rb"[\w.-]+-(?P<number>\d+)")


@cache
def replica_number() -> int:
    """Return this container's number among its replicas, from 0; 0 anywhere else."""
    try:
        if _DOCKER_DNS not in Path("/etc/resolv.conf").read_text(encoding="utf-8").split():
            return 0
        question = ptr_question(socket.gethostbyname(socket.gethostname()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(_TIMEOUT_S)
            asking.connect((_DOCKER_DNS, 53))
            asking.send(dns_query(question))
            answer = asking.recv(4096)
    except (OSError, UnicodeDecodeError):
        return 0
    found = _CONTAINER.fullmatch(first_label(answer, question))
    return max(0, int(found["number"]) - 1) if found else 0


def ptr_question(address: str) -> bytes:
    """Return the question of RFC 1035 for the name of an IPv4 address."""
    labels = [*reversed(address.split(".")), "in-addr", "arpa"]
    name = b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels) + b"\0"
    return name + struct.pack(">2H", _PTR, _INTERNET)


def dns_query(question: bytes) -> bytes:
    """Return a query of RFC 1035 with one question: an id, flags, and the number of entries of each kind."""
    return secrets.token_bytes(2) + struct.pack(">5H", _RECURSION_DESIRED, 1, 0, 0, 0) + question


def first_label(answer: bytes, question: bytes) -> bytes:
    """Return the first label of the name that the answer to a PTR question gives; b"" when it gives none."""
    if int.from_bytes(answer[6:8], "big") == 0:
        return b""
    record = answer[12 + len(question) :]
    # It begins with the name that was asked for, in full or as two bytes that point to it; then come its
    # type, class, time to live and length, ten bytes; then the name that it gives.
    asked = 2 if record[:1] >= bytes([_POINTER_TO_A_NAME]) else len(question) - 4
    given = record[asked + 10 :]
    return given[1 : 1 + given[0]] if given else b""
