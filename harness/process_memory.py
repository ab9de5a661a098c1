"""What a process has in memory, as the kernel counts it; on Linux alone."""

import re
from pathlib import Path
from typing import Literal


def memory_bytes(process_id: int, which: Literal["VmRSS", "VmHWM", "RssFile"]) -> int:
    """Return the resident memory of a process; 0 when it is gone.

    VmRSS is what there is now, and VmHWM what there was at the most. RssFile is the part of VmRSS that is
    pages of files, such as libraries: processes share them, the system may drop them at any time, and how
    many pages of a library are there depends on the kernel and the file system.
    """
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
