"""The aggregator and the evaluator beside the driver, each a process of its own without Spark."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.settings import env_name, known_names

log = get_logger(__name__)

# How long the aggregator gets to finish after the last site, and any part to stop.
FINISH_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0


@contextmanager
def parts_beside(
    parts: Mapping[str, Mapping[str, object]], on_failure: Callable[[str], None]
) -> Iterator[None]:
    """Run parts, such as an aggregator, by their names and settings while the block lasts.

    Their settings travel in their environment, since a command line can be read by all users of a machine.
    `on_failure` is called with a sentence when one ends too early. After the block they get some time to end
    by themselves, as they do when the federation has finished.
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
    log.info("starting", part=part)
    return subprocess.Popen(
        [sys.executable, "-m", "fluffle_cli", part],
        # The task's module may be where the driver alone looks for it.
        env=os.environ | given | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        # Ctrl-C reaches the driver alone, which stops its parts in their order.
        start_new_session=True,
    )


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
    code = process.wait()
    if code and not over.is_set():
        on_failure(f"the {part} beside the driver ended with exit code {code}: see its last lines above")


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
