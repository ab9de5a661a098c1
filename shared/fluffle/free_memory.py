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
    return min([*of_machine, *left_in_groups(own, CGROUPS)], default=None)


def left_in_groups(own: str, root: Path) -> Iterator[int]:
    """Yield what is left of the limit of a control group (version 2), and of each group that it is in.

    `own` is what Linux says of a process's groups in /proc/PID/cgroup, such as "0::/system.slice", and `root`
    the folder of all groups.
    """
    for path in (line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")):
        group = Path(path.lstrip("/"))
        for each in dict.fromkeys((group, *group.parents)):
            try:
                limit = (root / each / "memory.max").read_text(encoding="ascii").strip()
                used = int((root / each / "memory.current").read_text(encoding="ascii"))
                facts = (root / each / "memory.stat").read_text(encoding="ascii").splitlines()
            except (OSError, ValueError):
                continue
            if limit.isdecimal():
                # What files fill can be given back.
                of_files = sum(int(line.split()[1]) for line in facts if line.startswith("inactive_file "))
                yield max(0, int(limit) - used + of_files)
