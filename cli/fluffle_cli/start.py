"""The entry point of `fluffle`: it handles Ctrl-C before the imports, which take a second or more."""

import importlib
import os
import signal
import sys

EXIT_INTERRUPTED = 130
# These start faster, and need less memory, without what the other commands import.
PARTS = {
    "aggregator": ("fluffle_aggregator.__main__", "command"),
    "worker": ("fluffle_worker.__main__", "command"),
    "evaluator": ("fluffle_worker.__main__", "evaluator_command"),
    "helper": ("fluffle_helper.__main__", "command"),
}


def run() -> None:
    """Import the command line, or one part alone, and run it; until then, Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, _leave)
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    module, command = PARTS.get(part, ("fluffle_cli.main", ""))
    imported = importlib.import_module(module)
    command_line = importlib.import_module("fluffle.command_line")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if command:
        command_line.run_program(f"fluffle {part}", getattr(imported, command), sys.argv[2:])
    else:
        imported.run()


def _leave(*_: object) -> None:
    # Not with an exception, which a module might take for a failed import.
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
