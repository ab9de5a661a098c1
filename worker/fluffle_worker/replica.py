"""Which of the replicas of a compose service this container is, so that each takes a shard of its own."""

from __future__ import annotations

import re
import socket
from functools import cache

# Docker names the containers of a scaled service PROJECT-SERVICE-1, -2 and so on, and its DNS server tells a
# container that name for its own address: PROJECT-SERVICE-2.NETWORK.
_CONTAINER = re.compile(r"[\w.-]+-(?P<number>\d+)\.[\w-]+")


@cache
def replica_number() -> int:
    """Return this container's number among its replicas, from 0; 0 anywhere else."""
    try:
        address = socket.gethostbyname(socket.gethostname())
        names = socket.gethostbyaddr(address)
    except OSError:
        return 0
    found = _CONTAINER.fullmatch(names[0])
    return int(found["number"]) - 1 if found else 0
