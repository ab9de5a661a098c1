"""The processes of a demo: each in a session of its own, with its output in a log, and none left behind.

They end with the process that started them, however that one ended.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fluffle import guard
from fluffle.settings import ENV_PREFIX
from fluffle_cli.demo.parts import Part

POLL_S = 0.05


@dataclass(slots=True)
class Child:
    """One process."""

    part: Part
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it lives."""
        return self.process.poll()

    @property
    def has_died(self) -> bool:
        """Whether it ended otherwise than it should."""
        return self.exit_code not in (None, 0)

    def cause_of_death(self) -> str:
        """Say how it died, with the last line of its log."""
        code = self.exit_code
        is_signal = code is not None and code < 0
        how = f"was ended by signal {-(code or 0)}" if is_signal else f"ended with exit code {code}"
        return f"{self.part.name} {how}; its log {self.log} ends with: {last_line(self.log) or 'nothing'}"


@dataclass(slots=True)
class Processes:
    """The processes of one federation; `stop` ends them all."""

    logs: Path
    children: dict[str, Child] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def start(self, parts: Iterable[Part]) -> None:
        """Start processes. Ctrl-C in a terminal does not reach them: `stop` ends them."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for part in parts:
            path = self.logs / f"{part.name}.log"
            with path.open("ab") as log:
                process = subprocess.Popen(
                    part.command,
                    env=clean_environment() | dict(part.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            guard.watch(process.pid)
            self.children[part.name] = Child(part, process, path)

    def newly_dead(self) -> list[Child]:
        """Return those that died and were not returned before."""
        for child in self.children.values():
            if child.exit_code is not None:
                guard.release(child.process.pid)
        dead = {name for name, child in self.children.items() if child.has_died} - self._reported
        self._reported |= dead
        return [self.children[name] for name in sorted(dead)]

    @property
    def alive(self) -> list[Child]:
        """Those that have not ended."""
        return [child for child in self.children.values() if child.exit_code is None]

    def stop(self, *, patience_s: float) -> None:
        """End what still lives: asked first, and after `patience_s` killed with all that it has started."""
        for child in self.alive:
            with suppress(ProcessLookupError):
                child.process.terminate()
        self.wait(patience_s)
        for child in self.alive:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        for child in self.children.values():
            guard.release(child.process.pid)

    def wait(self, patience_s: float) -> None:
        """Wait until all have ended by themselves, at most for so long."""
        deadline = time.monotonic() + patience_s
        while self.alive and time.monotonic() < deadline:
            time.sleep(POLL_S)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without Fluffle's settings: a child has only those it is given."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def last_line(log: Path) -> str:
    """Return the last line of a log as a sentence: of a JSON line its event and what caused it."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            fields = {"event": line.strip()}
        said = [str(fields[name]) for name in ("event", "because", "error") if fields.get(name)]
        if said and not str(fields.get("logger", "")).startswith("pika"):
            return ": ".join(said)
    return ""
