"""How much memory this process has taken, and may take."""

import sys

from fluffle.free_memory import available_bytes
from fluffle.topology import MIB
from fluffle_worker.pace.batch import Memory

if sys.platform != "win32":
    import resource


def memory_of_process(limit_mib: int | None) -> Memory:
    """Return what this process has taken at most so far, and may take: `limit_mib`, or half of what is free.

    Half, since other programs want some of it too. Memory of a GPU is not a part of it.
    """
    most = _most_bytes()
    if limit_mib is not None:
        return Memory(most, limit_mib * MIB)
    free = available_bytes()
    return Memory(most, None if most is None or free is None else most + free // 2)


def _most_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    # In KiB, but on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
