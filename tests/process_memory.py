"""What a process has in memory, as the kernel counts it; on Linux alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal


def memory_bytes(process_id: int, which: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident memory of a process, now (VmRSS) or at its highest (VmHWM); 0 when it is gone."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
