"""Run all benchmarks but the fleet, one after the other; `make bench`.

    python -m benchmarks.bench fold latency

Each is a program of its own (`python -m benchmarks.NAME --help`), prints its table and appends lines of JSON
to benchmarks/results. All of them take some 15 minutes on two cores.
"""

import argparse
import subprocess
import sys
import time

from benchmarks.measuring import OtherWork
from fluffle.consoles import PlainConsole

STEPS = {
    "fold": ("--sizes", "10", "100", "--repeats", "3"),
    "ingest": ("--effort", "0.3"),
    "watched": (),
    "latency": ("--updates", "20", "--repeats", "3"),
    "memory": (),
    "join": (),
    "codecs": (),
    "stragglers": (),
}


def main() -> None:
    """Run what was named, or all; end with 1 when one fails."""
    parser = argparse.ArgumentParser(prog="bench", description="Run the benchmarks one after the other.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STEPS)} (default: all)")
    names = parser.parse_args().names or list(STEPS)
    if unknown := set(names) - set(STEPS):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(STEPS)}")
    console, began, failed = PlainConsole(), time.monotonic(), []
    for name in names:
        others, started = OtherWork(), time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *STEPS[name]]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        console.print(
            f"{name}: {time.monotonic() - started:.0f} s; others had {others.share:.0%} of the CPU\n"
        )
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
