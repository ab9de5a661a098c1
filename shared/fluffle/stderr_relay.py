"""Filters what libraries write directly to stderr (file descriptor 2), and turns it into log lines.

TensorFlow and others write to descriptor 2 from C++, past Python's logging. Inside `relayed_stderr` that
descriptor leads to a small process, which passes each line on to the real stderr: as one JSON object where
the log is JSON, else as it came. It is a separate process so that the last lines of a process that crashes
are passed on too. Messages for the developers of a C++ library are debug lines, shown with `verbose`.

This file is also the program of that process, so it imports only the standard library.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import BinaryIO, TextIO

STDERR = 2
# Short enough to be written in one piece, even to a pipe: a byte may take six in JSON, and PIPE_BUF is 4096.
MOST_BYTES = 600
LONGEST = 2**20
END_S = 2.0

# The formats of absl and glog, and of older TensorFlow: level, place in the source, text.
_C_PLUS_PLUS = (
    re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([^\]\s]+:\d+)\] (.*)", re.DOTALL),
    re.compile(r"\d{4}-\d\d-\d\d [\d:.]+: ([IWEF]) ([^\]\s]+:\d+)\] (.*)", re.DOTALL),
)
_BEFORE_THE_FIRST = "WARNING: All log messages before absl::InitializeLog()"
# TensorFlow logs a missing GPU as an error.
_NO_GPU = re.compile(r"cuda|cuinit|cudnn|cublas|cufft|gpu|tensorrt|rocm", re.IGNORECASE)
_LEVELS = {"I": "debug", "W": "debug", "E": "warning", "F": "error"}


def level_of(line: str) -> str:
    """Return the log level of a line from a library: "debug" for messages that only its developers read."""
    if line.startswith(_BEFORE_THE_FIRST):
        return "debug"
    for form in _C_PLUS_PLUS:
        if found := form.match(line):
            letter, place, text = found.groups()
            is_about_gpu = letter == "E" and _NO_GPU.search(f"{place} {text}")
            return "debug" if is_about_gpu else _LEVELS[letter]
    return "info"


@contextmanager
def relayed_stderr(*, as_json: bool, verbose: bool, fields: Mapping[str, str]) -> Iterator[TextIO]:
    """Relay descriptor 2 until the end of the block, and yield a stream to the real stderr for our own lines.

    With `as_json`, `sys.stderr` is relayed too, and each line becomes one JSON object with `fields`.
    Without it, `sys.stderr` is the real stderr, so that code can see whether it is a terminal.
    """
    python_stderr = sys.stderr
    python_stderr.flush()
    real = os.dup(STDERR)
    program = [sys.executable, "-I", "-S", __file__, json.dumps([as_json, verbose, dict(fields)])]
    relay = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=real, stderr=real, cwd="/")
    if relay.stdin is None:  # which Popen never does with a PIPE
        raise RuntimeError("the process that relays stderr has no pipe")
    os.dup2(relay.stdin.fileno(), STDERR)
    relay.stdin.close()
    own = os.fdopen(real, "w", buffering=1, encoding=python_stderr.encoding, errors="backslashreplace")
    if not as_json:
        sys.stderr = own
    try:
        yield own
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr
        os.dup2(own.fileno(), STDERR)
        # The relay ends with the last process that has the descriptor open, which may be a child of ours.
        with suppress(subprocess.TimeoutExpired):
            relay.wait(END_S)


def relay_lines(source: BinaryIO, *, as_json: bool, verbose: bool, fields: Mapping[str, str]) -> None:
    """Pass on every line until the end of `source`; a line that is longer than LONGEST becomes several."""
    while line := source.readline(LONGEST).replace(b"\r\n", b"\n"):
        text = line.decode(errors="replace").rstrip()
        level = level_of(text)
        if level == "debug" and not verbose:
            continue
        if not as_json or _is_json(text):
            os.write(1, line.removesuffix(b"\n") + b"\n")
            continue
        for start in range(0, len(line), MOST_BYTES):
            if piece := line[start : start + MOST_BYTES].decode(errors="replace").rstrip():
                time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                said = {"time": time, "level": level, **fields, "event": piece, "logger": "stderr"}
                os.write(1, json.dumps(said).encode() + b"\n")


def _is_json(text: str) -> bool:
    """Return whether a line is already a JSON object, such as a child process of ours writes."""
    try:
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _as_json, _verbose, _fields = json.loads(sys.argv[1])
    relay_lines(sys.stdin.buffer, as_json=_as_json, verbose=_verbose, fields=_fields)
