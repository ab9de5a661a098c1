"""What happened in a run besides its versions: one line each in `events.jsonl`, for its time line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from fluffle.broker import Delivery
from fluffle.errors import WireError
from fluffle.events import Event, Joined, Left, Rejected, TookOver
from fluffle.wire import decode_report

FILE = "events.jsonl"
DIED, LEFT, JOINED, REJECTED, TOOK_OVER = "died", "left", "joined", "rejected", "tookover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One line: when, in Unix time in seconds, to which part, and what.

    Of a refused message `name` is its sender and `reason` the word why; `detail` is a sentence.
    """

    at: float
    name: str
    what: str
    reason: str = ""
    detail: str = ""


_LINE = TypeAdapter(Happening)


def happenings_in(delivery: Delivery) -> Iterator[Happening]:
    """Read what a part tells, but for what stands in the records of the versions."""
    try:
        report = decode_report(delivery.body)
    except WireError:
        return
    for each in report.events:
        if isinstance(each.event, Joined | Left | Rejected | TookOver):
            yield _happening(each.event, at=each.at, name=report.name)


def append(path: Path, happenings: Iterable[Happening]) -> None:
    """Add lines to `events.jsonl`."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(each)) + "\n" for each in happenings)


def read_happenings(path: Path) -> list[Happening]:
    """Return the lines of an `events.jsonl` in the order of time, none where there is no file.

    ValueError says what is wrong with one.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return sorted((_LINE.validate_json(line) for line in lines), key=lambda each: each.at)


def _happening(event: Event, *, at: float, name: str) -> Happening:
    match event:
        case Left(because):
            return Happening(at=at, name=name, what=LEFT, detail=because)
        case Rejected(update, worker, reason, detail):
            said = f"{update}: {detail}" if update else detail
            return Happening(at=at, name=worker, what=REJECTED, reason=reason, detail=said)
        case TookOver(term, version):
            detail = f"leads from version {version} on, as term {term}"
            return Happening(at=at, name=name, what=TOOK_OVER, detail=detail)
    return Happening(at=at, name=name, what=JOINED)
