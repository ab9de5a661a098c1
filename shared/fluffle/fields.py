"""Reads a message's header field by field: the right type, the right range, and none too many. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar

from fluffle.errors import WireError

# Worker, run and sequence together must fit into AMQP's short strings (255 bytes).
MAX_NAME_LENGTH = 100
MAX_METRIC_NAME_LENGTH = 64
MAX_METRICS = 256
# How workers, evaluators and runs may be called: safe to print, to log, and in AMQP's short strings.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]*")
INT64_MAX = 2**63 - 1
T = TypeVar("T")


def is_name(text: str) -> bool:
    """Tell whether workers, evaluators and runs may be called so."""
    return len(text) <= MAX_NAME_LENGTH and NAME.fullmatch(text) is not None


def is_metric_name(name: object) -> bool:
    """Tell whether a metric may be called so: a short text that is safe on a terminal."""
    return isinstance(name, str) and 0 < len(name) <= MAX_METRIC_NAME_LENGTH and name.isprintable()


def in_words(said: object) -> str:
    """Quote what a sender said: short, and on one line."""
    return repr(said[:64] if isinstance(said, str | bytes) else said)


class Fields:
    """A map that is emptied field by field; every error names the field, and `inside` the field around it."""

    def __init__(self, fields: Mapping[str, Any], *, inside: str = "") -> None:
        self._left = dict(fields)
        self._inside = inside

    def take(self, name: str, kinds: type | tuple[type, ...]) -> Any:
        """Take a field of one of these types."""
        if name not in self._left:
            raise self._fault(name, "it is missing")
        value = self._left.pop(name)
        # bool is an int for Python, not for the protocol.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            expected = (
                kinds.__name__ if isinstance(kinds, type) else " or ".join(kind.__name__ for kind in kinds)
            )
            raise self._fault(name, f"expected {expected}, found {type(value).__name__}")
        return value

    def text(self, name: str, max_length: int) -> str:
        """Take a string of at most `max_length` characters."""
        value: str = self.take(name, str)
        if len(value) > max_length:
            raise self._fault(name, f"{len(value)} characters, at most {max_length} are allowed")
        return value

    def name(self, name: str) -> str:
        """Take a name that is safe to print, to log and to use in a queue's name."""
        value = self.text(name, MAX_NAME_LENGTH)
        if not is_name(value):
            raise self._fault(name, f"{in_words(value)} is no name (letters, digits and _ . @ : - only)")
        return value

    def choice(self, name: str, known: Collection[str]) -> str:
        """Take one of the known words."""
        value = self.text(name, 64)
        if value not in known:
            raise self._fault(name, f"unknown {in_words(value)}, known are {', '.join(known)}")
        return value

    def parsed(self, name: str, parse: Callable[[str], T]) -> T:
        """Take a short text, and return what `parse` makes of it; its ValueError is a fault."""
        value = self.text(name, 64)
        try:
            return parse(value)
        except ValueError as error:
            raise self._fault(name, str(error)) from error

    def integer(self, name: str, low: int = -INT64_MAX, high: int = 2 * INT64_MAX + 1) -> int:
        """Take an integer from `low` to `high`."""
        value: int = self.take(name, int)
        if not low <= value <= high:
            raise self._fault(name, f"{value} is not from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        """Take a finite number."""
        value = float(self.take(name, (int, float)))
        if not math.isfinite(value):
            raise self._fault(name, f"{value} is not finite")
        return value

    def number_or_nil(self, name: str) -> float | None:
        """Take a number, which may be NaN or infinite, or nil."""
        return None if self.is_nil(name) else float(self.take(name, (int, float)))

    def is_nil(self, name: str) -> bool:
        """Tell whether a field is nil; if so, it is taken."""
        if self._left.get(name, "missing") is not None:
            return False
        self.take(name, NoneType)
        return True

    def texts(self, name: str, max_length: int, *, max_count: int) -> list[str]:
        """Take a list of at most `max_count` strings."""
        row = self._list(name, max_count)
        return [row.text(str(place), max_length) for place in range(len(row._left))]

    def integers(self, name: str, low: int, high: int, *, max_count: int) -> list[int]:
        """Take a list of at most `max_count` integers from `low` to `high`."""
        row = self._list(name, max_count)
        return [row.integer(str(place), low, high) for place in range(len(row._left))]

    def magnitudes(self, name: str, *, max_count: int) -> list[float]:
        """Take a list of at most `max_count` finite numbers from 0 up."""
        row = self._list(name, max_count)
        found = [row.number(str(place)) for place in range(len(row._left))]
        if any(number < 0 for number in found):
            raise self._fault(name, f"{min(found)} is less than 0")
        return found

    def map(self, name: str) -> Fields:
        """Take a map."""
        return Fields(self.take(name, dict), inside=f"{self._inside}{name}.")

    def row(self, name: str, columns: Sequence[str]) -> Fields:
        """Take a list with these columns."""
        return self._row(name, self.take(name, list), columns)

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[Fields]:
        """Take a list of lists, each with these columns; one row at a time, since there may be many."""
        rows: list[object] = self.take(name, list)
        return (self._row(f"{name}[{place}]", row, columns) for place, row in enumerate(rows))

    def named_rows(self, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Fields]]:
        """Take a map from names to lists, each with these columns."""
        rows: dict[object, object] = self.take(name, dict)
        for key, row in rows.items():
            if not isinstance(key, str) or not is_name(key):
                raise self._fault(name, f"{in_words(key)} is no name")
            yield key, self._row(f"{name}[{key}]", row, columns)

    def _row(self, name: str, row: object, columns: Sequence[str]) -> Fields:
        if not isinstance(row, list) or len(row) != len(columns):
            raise self._fault(name, f"expected a list of {', '.join(columns)}")
        return Fields(dict(zip(columns, row, strict=True)), inside=f"{self._inside}{name}.")

    def _list(self, name: str, max_count: int) -> Fields:
        """Take a short list as fields that are numbered."""
        found: list[object] = self.take(name, list)
        if len(found) > max_count:
            raise self._fault(name, f"{len(found)} entries, at most {max_count} are allowed")
        numbered = {str(place): each for place, each in enumerate(found)}
        return Fields(numbered, inside=f"{self._inside}{name}.")

    def numbers(self, name: str, max_count: int) -> dict[str, float]:
        """Take a small map from names to numbers; NaN and infinity stay what they are."""
        value: dict[object, object] = self.take(name, dict)
        if len(value) > max_count:
            raise self._fault(name, f"{len(value)} entries, at most {max_count} are allowed")
        numbers: dict[str, float] = {}
        for key, number in value.items():
            if not is_metric_name(key):
                raise self._fault(name, f"{in_words(key)} is no short name")
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise self._fault(name, f"{in_words(key)} is no number")
            numbers[str(key)] = float(number)
        return numbers

    def empty_payload(self, payload: memoryview) -> None:
        """Require that a message of this kind carries no payload."""
        if len(payload):
            raise WireError(f"the payload must be empty, but has {len(payload)} bytes")

    def done(self) -> None:
        """Require that nothing is left: the schema is closed."""
        if self._left:
            raise WireError(f"unknown field {self._inside}{in_words(next(iter(self._left)))}")

    def _fault(self, name: str, what: str) -> WireError:
        return WireError(f"field {self._inside}{name}: {what}")
