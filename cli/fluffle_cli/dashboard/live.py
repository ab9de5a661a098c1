"""What each part is about at the moment, as far as it tells. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fluffle.events import Event, Joined, Left, Progressed, Published, Started, Trained, TurnedAway

# More than one federation has; beyond it, whoever was silent for longest is forgotten.
MOST_PARTS: Final = 10_000


@dataclass(slots=True)
class Live:
    """One worker, evaluator or aggregator; the times are Unix time by the clock of whoever listens.

    `rival` is the other process that last wanted its name.
    """

    state: str = "connected"
    heard_at: float = 0.0
    round_s: float | None = None
    rival: str = ""
    rival_at: float = 0.0

    @property
    def has_left(self) -> bool:
        """Whether it ended in good order."""
        return self.state.startswith("left")


class LiveParts:
    """The parts of one role by their names, in the order in which they were last heard of."""

    def __init__(self, most: int = MOST_PARTS) -> None:
        self._parts: dict[str, Live] = {}
        self._most = most

    def get(self, name: str) -> Live | None:
        """Return a part, if it was heard of."""
        return self._parts.get(name)

    def names(self) -> list[str]:
        """Return all that were heard of."""
        return list(self._parts)

    def present(self) -> list[str]:
        """Return those that have not left."""
        return [name for name, part in self._parts.items() if not part.has_left]

    def hear(self, name: str, event: Event, now: float) -> None:
        """Take in what a part tells of itself."""
        live = self._parts.pop(name, None) or Live()
        self._parts[name] = live
        if len(self._parts) > self._most:
            del self._parts[next(iter(self._parts))]
        live.heard_at = now
        match event:
            case Joined():
                live.state = "connected"
            case Started():
                live.state = f"training from version {event.version}"
            case Progressed():
                live.state = f"training, {event.done} of {event.total}"
            case Trained():
                live.state, live.round_s = "publishing", event.seconds
            case Published():
                live.state = "has published"
            case TurnedAway():
                live.rival, live.rival_at = event.other, now
            case Left():
                live.state = f"left: {event.because}"
            case _:
                pass

    def rivals(self, since: float) -> dict[str, str]:
        """Return who wanted the name of a part that is present, since a time."""
        return {
            name: part.rival
            for name, part in self._parts.items()
            if part.rival and part.rival_at >= since and not part.has_left
        }

    def forget(self, name: str) -> None:
        """Forget a part, until it is heard of again."""
        self._parts.pop(name, None)
