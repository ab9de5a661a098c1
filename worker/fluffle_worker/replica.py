"""Which of the replicas of a compose service this container is, so that each takes a shard of its own."""

from __future__ import annotations

import re
import socket
from functools import cache

import dns.exception
import dns.resolver

_TIMEOUT_S = 2.0

# Docker names the containers of a scaled service PROJECT-SERVICE-1, -2 and so on, and its DNS server tells a
# container that name for its own address: PROJECT-SERVICE-2.NETWORK. The system's resolver
# (socket.gethostbyaddr) never asks it: /etc/hosts comes first, where Docker writes the container's id.
_DOCKER_DNS = "127.0.0.11"
_CONTAINER = re.compile(r"[\w.-]+-(?P<number>\d+)")


@cache
def replica_number() -> int:
    """Return this container's number among its replicas, from 0; 0 anywhere else."""
    try:
        resolver = dns.resolver.Resolver()
        if _DOCKER_DNS not in resolver.nameservers:
            return 0
        address = socket.gethostbyname(socket.gethostname())
        names = resolver.resolve_address(address, lifetime=_TIMEOUT_S)
    except (OSError, dns.exception.DNSException):
        return 0
    return number_in(str(names[0].target))


def number_in(container: str) -> int:
    """Return the replica's number, from 0, that a container's full name says; 0 when it says none."""
    found = _CONTAINER.fullmatch(container.partition(".")[0])
    return max(0, int(found["number"]) - 1) if found else 0
