"""What a process is about, told from the lines that it adds to its log."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

LogLine = Mapping[str, object]

# By the event of a line: the state that begins with it. Other lines change nothing.
States = Mapping[str, Callable[[LogLine], str]]
WORKER_STATES: States = {
    "waiting for the broker": lambda _: "starting",
    "waiting for the federation": lambda _: "starting",
    "fetching the newest version": lambda _: "fetching",
    "waiting for a new version": lambda _: "waiting",
    "round started": lambda _: "training",
    "idling": lambda line: f"idle for {line.get('seconds')} s",
    "round trained": lambda _: "publishing",
    "lost the broker; connecting again": lambda _: "reconnecting",
    "the federation has finished": lambda _: "done",
}
AGGREGATOR_STATES: States = {
    "lost the broker; starting again from the head": lambda _: "reconnecting",
    "standing by": lambda _: "standing by",
    "leading": lambda _: "leading",
    "the federation has finished": lambda _: "done",
    "the federation has finished already: to train on, export its model and start another one": (
        lambda _: "done"
    ),
}
EVALUATOR_STATES: States = {
    "lost the broker; connecting again": lambda _: "reconnecting",
    "evaluated": lambda line: f"at version {line.get('version')}",
    "the federation has finished": lambda _: "done",
}
# What a worker or an evaluator says when it is connected and looks for a version to begin with.
READY_EVENTS = frozenset({"fetching the newest version", "waiting for a new version"})


class LogTail:
    """Follows one log file of JSON lines; lines of another form are kept for `last_line` only."""

    def __init__(self, path: Path, states: States) -> None:
        self._path = path
        self._states = states
        self._offset = 0
        self._unfinished = b""
        self.state = "starting"
        self.events: set[str] = set()
        self.last_line = ""

    @property
    def is_ready(self) -> bool:
        """Whether a worker or an evaluator has got as far as looking for a version."""
        return not self.events.isdisjoint(READY_EVENTS)

    def read(self) -> None:
        """Take in what was written since the last time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        self._offset += len(new)
        *lines, self._unfinished = (self._unfinished + new).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        if not line:
            return
        fields = _parsed(line)
        if str(fields.get("logger", "")).startswith("pika"):
            return
        event = str(fields.get("event", ""))
        self.last_line = _as_sentence(fields) or line
        self.events.add(event)
        if event in self._states:
            self.state = self._states[event](fields)


def _parsed(line: str) -> LogLine:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_sentence(fields: LogLine) -> str:
    """Return a line's event and what caused it, without the fields that only a log store needs."""
    said = [str(fields[name]) for name in ("event", "because", "error") if name in fields]
    return ": ".join(said)
