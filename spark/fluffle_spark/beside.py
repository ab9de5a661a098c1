"""The aggregator and the evaluator beside the driver, each a process of its own without Spark."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from fluffle import guard, logs
from fluffle.errors import ConfigError
from fluffle.settings import env_name, known_names

log = logs.get_logger(__name__)

# How long the aggregator gets to finish after the last site, and any part to stop.
FINISH_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0


@contextmanager
def parts_beside(
    parts: Mapping[str, Mapping[str, object]], on_failure: Callable[[str], None]
) -> Iterator[None]:
    """Run parts, such as an aggregator, by their names and settings while the block lasts.

    Their settings travel in their environment, since a command line can be read by all users of a machine.
    Their log goes to this process's standard error, which a notebook shows. `on_failure` is called with a
    sentence when one ends too early. After the block they get some time to end by themselves, as they do when
    the federation has finished. If this process is killed, they are too.
    """
    for part, settings in parts.items():
        if unknown := [name for name in settings if env_name(name) not in known_names("variables")]:
            raise ConfigError(
                f"unknown setting {unknown[0]!r} of the {part}: `fluffle {part} --help` lists them"
            )
    processes: dict[str, subprocess.Popen[bytes]] = {}
    watchers: list[threading.Thread] = []
    over = threading.Event()
    is_clean = False
    try:
        for part, settings in parts.items():
            processes[part] = _started(part, settings)
            given = (part, processes[part], over, on_failure)
            watchers.append(threading.Thread(target=_watch, args=given, name=part, daemon=True))
            watchers[-1].start()
        yield
        is_clean = True
    finally:
        over.set()
        for part, process in processes.items():
            _end(part, process, FINISH_WITHIN_S if is_clean else 0.0)
        for watcher in watchers:
            watcher.join()


def _started(part: str, settings: Mapping[str, object]) -> "subprocess.Popen[bytes]":
    given = {env_name(name): _as_text(value) for name, value in settings.items()}
    own_format = {env_name("log_format"): "json" if logs.is_json() else "pretty"}
    log.info("starting", part=part)
    process = subprocess.Popen(
        [sys.executable, "-m", "fluffle_cli", part],
        # The task's module may be where the driver alone looks for it.
        env=own_format | os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Ctrl-C reaches the driver alone, which stops its parts in their order.
        start_new_session=True,
    )
    guard.watch(process.pid)
    return process


def _as_text(value: object) -> str:
    """Return a setting as a variable has it; that of None is empty, which means that it is not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _watch(
    part: str,
    process: "subprocess.Popen[bytes]",
    over: threading.Event,
    on_failure: Callable[[str], None],
) -> None:
    error = ""
    # Closes the pipe when the last process that has it has ended.
    with process:
        for line in process.stderr or ():
            text = line.decode(errors="replace")
            sys.stderr.write(text)
            error = _error_in(text) or error
    code = process.wait()
    if code and not over.is_set():
        why = error or f"exit code {code}, see its last lines above"
        on_failure(f"the {part} beside the driver has ended: {why}")


def _error_in(line: str) -> str:
    """Return the error that a line of a log tells; empty for any other line."""
    if line.startswith("{"):
        with suppress(ValueError):
            said = json.loads(line)
            return str(said["event"]) if said.get("level") == "error" else ""
    return line.removeprefix("error: ").strip() if line.startswith("error: ") else ""


def _end(part: str, process: "subprocess.Popen[bytes]", finish_within_s: float) -> None:
    try:
        process.wait(finish_within_s)
    except subprocess.TimeoutExpired:
        log.info("stopping", part=part)
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    guard.release(process.pid)
