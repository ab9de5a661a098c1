"""A process that reads one message and tells what that took: python decoding.py inbound|record FILE."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fluffle.errors import WireError
from fluffle.record_wire import decode_record
from fluffle.wire import decode_inbound


def resident_bytes(which: str) -> int:
    """Return what /proc says of this process: VmRSS now, or VmHWM at its highest."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status does not tell of memory: this runs on Linux alone")
    return int(found[1]) * 1024


def main() -> None:
    """Read the message and print what came of it."""
    decode: Callable[[bytes], object] = decode_inbound if sys.argv[1] == "inbound" else decode_record
    body = Path(sys.argv[2]).read_bytes()
    before, began = resident_bytes("VmRSS"), time.process_time()
    try:
        decode(body)
        refused = ""
    except WireError as error:
        refused = str(error)
    taken = {"bytes": resident_bytes("VmHWM") - before, "seconds": time.process_time() - began}
    sys.stdout.write(json.dumps({"refused": refused, **taken}))


if __name__ == "__main__":
    main()
