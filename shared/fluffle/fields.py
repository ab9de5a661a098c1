"""Reads a message's header field by field: the right type, the right range, and none too many. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from fluffle.errors import WireError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,127}")
INT64_MAX = 2**63 - 1


class Fields:
    """A header map that is emptied field by field; every error names the field."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        self._left = dict(header)

    def take(self, name: str, kinds: type | tuple[type, ...]) -> Any:
        """Take a field of one of these types."""
        if name not in self._left:
            raise WireError(f"field {name} is missing")
        value = self._left.pop(name)
        # bool is an int for Python, not for the protocol.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            expected = (
                kinds.__name__ if isinstance(kinds, type) else " or ".join(kind.__name__ for kind in kinds)
            )
            raise WireError(f"field {name}: expected {expected}, found {type(value).__name__}")
        return value

    def text(self, name: str, max_length: int) -> str:
        """Take a string of at most `max_length` characters."""
        value: str = self.take(name, str)
        if len(value) > max_length:
            raise WireError(f"field {name}: {len(value)} characters, at most {max_length} are allowed")
        return value

    def name(self, name: str) -> str:
        """Take a name that is safe to print, to log and to use in a queue's name."""
        value = self.text(name, 128)
        if not NAME.fullmatch(value):
            raise WireError(f"field {name}: {value[:40]!r} is no name (letters, digits and _ . @ : - only)")
        return value

    def choice(self, name: str, known: Collection[str]) -> str:
        """Take one of the known words."""
        value = self.text(name, 64)
        if value not in known:
            raise WireError(f"field {name}: unknown {value[:40]!r}, known are {', '.join(known)}")
        return value

    def integer(self, name: str, low: int = -INT64_MAX, high: int = 2 * INT64_MAX + 1) -> int:
        """Take an integer from `low` to `high`."""
        value: int = self.take(name, int)
        if not low <= value <= high:
            raise WireError(f"field {name}: {value} is not from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        """Take a finite number."""
        value = float(self.take(name, (int, float)))
        if not math.isfinite(value):
            raise WireError(f"field {name}: {value} is not finite")
        return value

    def numbers(self, name: str, max_count: int) -> dict[str, float]:
        """Take a small map from names to numbers; a NaN among them is dropped, since it says nothing."""
        value: dict[str, object] = self.take(name, dict)
        if len(value) > max_count:
            raise WireError(f"field {name}: {len(value)} entries, at most {max_count} are allowed")
        numbers: dict[str, float] = {}
        for key, number in value.items():
            if len(key) > 64 or isinstance(number, bool) or not isinstance(number, int | float):
                raise WireError(f"field {name}: {key[:64]!r} must be a short name with a number")
            if math.isfinite(number):
                numbers[key] = float(number)
        return numbers

    def empty_payload(self, payload: memoryview) -> None:
        """Require that a message of this kind carries no payload."""
        if len(payload):
            raise WireError(f"the payload must be empty, but has {len(payload)} bytes")

    def rest(self) -> dict[str, Any]:
        """Return what has not been taken yet."""
        return self._left

    def done(self) -> None:
        """Require that nothing is left: the schema is closed."""
        if self._left:
            raise WireError(f"unknown field {next(iter(self._left))[:64]!r}")
