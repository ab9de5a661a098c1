"""Reads and writes the fields of a message as the annotations of its dataclass say. Pure.

A header holds what msgpack knows: None, numbers, texts, lists and maps. A dataclass in a field travels as the
list of its fields, in their order. `Count = Annotated[int, integer(0)]` says how such a field is read;
further functions in an annotation check what was read. Every error names the field, what was found and what
was expected. To add a field to a message, add it to its dataclass (and to docs/protocol.md).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import call
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from fluffle.errors import LayoutError, WireError

# Worker, run and sequence together must fit into AMQP's short strings (255 bytes).
MAX_NAME_LENGTH: Final = 100
MAX_METRIC_NAME_LENGTH: Final = 64
MAX_METRICS: Final = 256
MAX_WORD_LENGTH: Final = 64
INT64_MAX: Final = 2**63 - 1
UINT64_MAX: Final = 2**64 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]*")

Convert = Callable[[Any], Any]
Check = Callable[[Any], None]


def is_name(text: str) -> bool:
    """Return whether this is a valid name of a worker, an evaluator or a run: safe to print and to log."""
    return len(text) <= MAX_NAME_LENGTH and _NAME.fullmatch(text) is not None


def is_metric_name(name: object) -> bool:
    """Return whether this is a valid name of a metric: a short text that is safe on a terminal."""
    return isinstance(name, str) and 0 < len(name) <= MAX_METRIC_NAME_LENGTH and name.isprintable()


def quoted(found: object) -> str:
    """Quote what a sender wrote: short, and on one line."""
    return repr(found[:64] if isinstance(found, str | bytes) else found)


class FieldError(WireError):
    """What is wrong with a value; each field around it adds its own name, from the inside out."""

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(f"field {field.removeprefix('.')}: {problem}")
        self._problem, self._field = problem, field

    def inside(self, field: str) -> "FieldError":
        """Return the error with one more field around it."""
        return FieldError(self._problem, field + self._field)


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is read from a header, and how it is written there.

    `read` raises FieldError for anything but a value of this kind.
    """

    read: Convert
    write: Convert = _as_it_is

    def checked(self, *checks: Check) -> "Kind":
        """Return the kind of those values that pass these checks, which raise FieldError."""

        def read(found: Any) -> Any:
            value = self.read(found)
            for check in checks:
                check(value)
            return value

        return Kind(read, self.write)


class Table:
    """The fields of a dataclass by name, except those that do not travel in the header."""

    def __init__(self, of: type, *, without: Collection[str] = ()) -> None:
        annotations = get_type_hints(of, include_extras=True)
        self.kinds = {
            each.name: kind_of(annotations[each.name]) for each in fields(of) if each.name not in without
        }

    def write(self, value: object) -> dict[str, Any]:
        """Return the fields of a value as they stand in a header."""
        return {name: kind.write(getattr(value, name)) for name, kind in self.kinds.items()}

    def take(self, header: dict[str, Any]) -> dict[str, Any]:
        """Take these fields out of a header, and return their values. Raises FieldError."""
        return {name: take(header, name, kind) for name, kind in self.kinds.items()}


def take(header: dict[str, Any], name: str, kind: Kind) -> Any:
    """Take one field out of a header, and return its value. Raises FieldError."""
    if name not in header:
        raise FieldError("it is missing").inside(name)
    try:
        return kind.read(header.pop(name))
    except FieldError as error:
        raise error.inside(name) from None


def kind_of(annotation: Any) -> Kind:
    """Return how a field with this annotation is read and written."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _KINDS:
        return _KINDS[annotation]
    if origin is Annotated:
        kinds = [each for each in annotation.__metadata__ if isinstance(each, Kind)]
        checks = [each for each in annotation.__metadata__ if not isinstance(each, Kind)]
        kind = kinds[0] if kinds else kind_of(arguments[0])
        return kind.checked(*checks) if checks else kind
    if origin is Literal:
        return one_of(arguments)
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return _optional(kind_of(arguments[0]))
    if origin is tuple and arguments[1:] == (...,):
        return _list_of(kind_of(arguments[0]))
    if origin is tuple:
        columns = [str(place) for place in range(len(arguments))]
        return _row(columns, [kind_of(each) for each in arguments], lambda *row: row)
    if origin is Mapping:
        return _map_of(kind_of(arguments[0]), kind_of(arguments[1]))
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _dataclass(annotation)
    raise TypeError(f"there is no rule for a field of type {annotation}")


def of_type(*types: type) -> Kind:
    """Return the kind of any value of exactly one of these types: a bool is no int for the protocol."""
    expected = " or ".join(each.__name__ for each in types)

    def read(found: Any) -> Any:
        if type(found) not in types:
            raise FieldError(f"expected {expected}, found {type(found).__name__}")
        return found

    return Kind(read)


def integer(low: int = -INT64_MAX, high: int = UINT64_MAX) -> Kind:
    """Return the kind of an integer from `low` to `high`."""

    def read(found: Any) -> int:
        if type(found) is int and low <= found <= high:
            return found
        raise FieldError(f"{_INT.read(found)} is not from {low} to {high}")

    return Kind(read)


def text(max_length: int) -> Kind:
    """Return the kind of a text of at most `max_length` characters."""

    def read(found: Any) -> str:
        if type(found) is str and len(found) <= max_length:
            return found
        raise FieldError(f"{len(_STR.read(found))} characters, at most {max_length} are allowed")

    return Kind(read)


def one_of(known: Collection[str]) -> Kind:
    """Return the kind of a word that is one of the known ones."""
    return text(MAX_WORD_LENGTH).checked(
        must(known.__contains__, f"unknown {{}}, known are {', '.join(known)}")
    )


def parsed(parse: Callable[[str], str]) -> Kind:
    """Return the kind of a short text that `parse` turns into the value; it raises ValueError for others."""
    word = text(MAX_WORD_LENGTH)

    def read(found: Any) -> str:
        try:
            return parse(word.read(found))
        except ValueError as error:
            raise FieldError(str(error)) from error

    return Kind(read)


def at_most(count: int) -> Check:
    """Return a check that a list or map has at most so many entries."""

    def check(found: Collection[object]) -> None:
        if len(found) > count:
            raise FieldError(f"{len(found)} entries, at most {count} are allowed")

    return check


def must(test: Callable[[Any], bool], problem: str) -> Check:
    """Return a check of one value; in its error's text, {} stands for what was found."""

    def check(found: Any) -> None:
        if not test(found):
            raise FieldError(problem.format(quoted(found)))

    return check


def _read_any_number(found: Any) -> float:
    return found if type(found) is float else float(_INT_OR_FLOAT.read(found))


def _unless_as_it_is(parts: Sequence[Convert], write: Convert) -> Convert:
    """Return how a whole is written: as it is when all of its parts are, which takes no time."""
    return _as_it_is if all(each is _as_it_is for each in parts) else write


def _optional(kind: Kind) -> Kind:
    read, write = kind.read, kind.write
    return Kind(
        lambda found: None if found is None else read(found),
        _unless_as_it_is([write], lambda value: None if value is None else write(value)),
    )


def _list_of(kind: Kind) -> Kind:
    read_one, write = kind.read, kind.write

    def read(found: Any) -> tuple[Any, ...]:
        values: list[Any] = []
        try:
            values.extend(map(read_one, _LIST.read(found)))
        except FieldError as error:
            raise error.inside(f"[{len(values)}]") from None
        return tuple(values)

    return Kind(read, _unless_as_it_is([write], lambda values: list(map(write, values))))


def _row(columns: Sequence[str], kinds: Sequence[Kind], make: Callable[..., Any]) -> Kind:
    """Return the kind of a list with these columns, which `make` turns into the value."""
    reads, writes = [kind.read for kind in kinds], [kind.write for kind in kinds]

    def read(found: Any) -> Any:
        if not isinstance(found, list | tuple) or len(found) != len(reads):
            raise FieldError(f"expected a list of {', '.join(columns)}")
        values: list[Any] = []
        try:
            values.extend(map(call, reads, found))
        except FieldError as error:
            raise error.inside(f".{columns[len(values)]}") from None
        try:
            return make(*values)
        except LayoutError as error:
            raise FieldError(str(error)) from error

    return Kind(read, _unless_as_it_is(writes, lambda row: list(map(call, writes, row))))


def _dataclass(of: type) -> Kind:
    kinds = Table(of).kinds
    columns = list(kinds)

    def make(*values: Any) -> Any:
        return of(**dict(zip(columns, values, strict=True)))

    by_name = any(each.kw_only for each in fields(of))
    row = _row(columns, list(kinds.values()), make if by_name else of)
    return Kind(row.read, lambda value: row.write([getattr(value, name) for name in columns]))


def _map_of(name: Kind, kind: Kind) -> Kind:
    read_name, read_one, write = name.read, kind.read, kind.write

    def read(found: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, each in _MAP.read(found).items():
            read_name(key)
            try:
                values[key] = read_one(each)
            except FieldError as error:
                raise error.inside(f"[{key}]") from None
        return values

    each_written = _unless_as_it_is(
        [write], lambda values: {key: write(each) for key, each in values.items()}
    )
    return Kind(read, each_written)


# msgpack gives lists; what is about to be sent has tuples too.
_LIST: Final = of_type(list, tuple)
_MAP: Final = of_type(dict)
_INT: Final = of_type(int)
_STR: Final = of_type(str)
_INT_OR_FLOAT: Final = of_type(int, float)
_ANY_NUMBER: Final = Kind(_read_any_number)
_KINDS: Final[Mapping[Any, Kind]] = {
    int: integer(),
    float: _ANY_NUMBER.checked(must(math.isfinite, "{} is not finite")),
    bool: of_type(bool),
}

Count = Annotated[int, integer(0)]
Positive = Annotated[int, integer(1)]
# NaN and infinity too; a float without this must be finite.
AnyNumber = Annotated[float, _ANY_NUMBER]
Magnitude = Annotated[float, must(lambda number: number >= 0, "{} is less than 0")]
# Safe to print, to log and to use in a queue's name.
Name = Annotated[
    str, text(MAX_NAME_LENGTH), must(is_name, "{} is no name (letters, digits and _ . @ : - only)")
]
# A federation's name, a digest.
ShortText = Annotated[str, text(64)]
MetricName = Annotated[str, Kind(_as_it_is), must(is_metric_name, "{} is no short name")]
Metrics = Annotated[Mapping[MetricName, AnyNumber], at_most(MAX_METRICS)]
