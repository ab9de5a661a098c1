"""How much memory there is: what this machine and this process's container can still give."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Return how much memory can still be had, as Linux estimates it; None on other systems.

    That is what the machine has, or less where the container or another control group has a limit.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    of_machine = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*of_machine, *_left_in_groups(own)], default=None)


def _left_in_groups(own: str) -> Iterator[int]:
    """Yield what is left of each limit of the process's control group, and of those that it is in."""
    # "0::/system.slice/worker.service"; in a container often "0::/".
    paths = [line.partition("::")[2] for line in own.splitlines() if line.startswith("0::")]
    for path in paths:
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            try:
                limit = (CGROUPS / each / "memory.max").read_text(encoding="ascii").strip()
                used = int((CGROUPS / each / "memory.current").read_text(encoding="ascii"))
                facts = (CGROUPS / each / "memory.stat").read_text(encoding="ascii").splitlines()
            except (OSError, ValueError):
                continue
            if limit.isdecimal():
                # What files fill can be given back.
                of_files = sum(int(line.split()[1]) for line in facts if line.startswith("inactive_file "))
                yield max(0, int(limit) - used + of_files)
