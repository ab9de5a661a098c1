"""Where the command `fluffle` begins: before all that it imports, which takes a second or more."""

from __future__ import annotations

import importlib
import os
import signal

EXIT_INTERRUPTED = 130


def run() -> None:
    """Import the command line and run it; until it runs, Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, _leave)
    command_line = importlib.import_module("fluffle_cli.main")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line.run()


def _leave(*_: object) -> None:
    # Not by an exception, which some module would take for a failed import.
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
