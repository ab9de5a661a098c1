"""What each part of a federation does at the moment, as far as it says so. Pure."""

from dataclasses import dataclass
from typing import Final

from fluffle import events

# More parts than any federation has. Beyond it, the one that was silent for longest is forgotten.
MOST_PARTS: Final = 10_000


@dataclass(slots=True)
class Part:
    """One worker, evaluator or aggregator; times are Unix time in seconds by the listener's clock.

    `state` is a word, and mostly a detail behind a colon. `rival` is the other process that last wanted its
    name.
    """

    state: str = ""
    heard_at: float = 0.0
    rival: str = ""
    rival_at: float = 0.0

    @property
    def has_left(self) -> bool:
        """Whether it ended as it should."""
        return self.state.startswith("left")


class Parts(dict[str, Part]):
    """The parts of one role by name, in the order in which they were last heard of."""

    def hear(self, name: str, event: events.Event, role: events.Role, now: float) -> None:
        """Take in what a part says of itself."""
        part = self.pop(name, None) or Part()
        self[name] = part
        if len(self) > MOST_PARTS:
            del self[next(iter(self))]
        part.heard_at = now
        part.state = state_after(event, role) or part.state
        if isinstance(event, events.TurnedAway):
            part.rival, part.rival_at = event.other, now

    @property
    def present(self) -> list[str]:
        """The names of those that have not left."""
        return [name for name, part in self.items() if not part.has_left]


def state_after(event: events.Event, role: events.Role) -> str:
    """Return the state that begins with an event; empty if it changes nothing."""
    match event:
        case events.Joined():
            return "standing by" if role == "aggregator" else "connected"
        case events.Started():
            return f"training: from version {event.version}"
        case events.Progressed():
            return f"training: {event.done} of {event.total} minibatches"
        case events.Trained():
            return "publishing"
        case events.Published():
            return "published"
        case events.Measured():
            return f"evaluated: version {event.version}"
        case events.TookOver():
            return "leading"
        case events.Left():
            return f"left: {event.because}"
    return ""
