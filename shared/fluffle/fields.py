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
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from fluffle.errors import LayoutError, WireError

# Worker, run and sequence together must fit into AMQP's short strings (255 bytes).
MAX_NAME_LENGTH: Final = 100
MAX_METRIC_NAME_LENGTH: Final = 64
MAX_METRICS: Final = 256
MAX_WORD_LENGTH: Final = 64
# How workers, evaluators and runs may be called: safe to print, to log, and in AMQP's short strings.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]*")
INT64_MAX: Final = 2**63 - 1
UINT64_MAX: Final = 2**64 - 1
# msgpack gives lists; what is about to be sent has tuples too.
_LISTS: Final = (list, tuple)


def is_name(text: str) -> bool:
    """Return whether workers, evaluators and runs may be called so."""
    return len(text) <= MAX_NAME_LENGTH and NAME.fullmatch(text) is not None


def is_metric_name(name: object) -> bool:
    """Return whether a metric may be called so: a short text that is safe on a terminal."""
    return isinstance(name, str) and 0 < len(name) <= MAX_METRIC_NAME_LENGTH and name.isprintable()


def quoted(found: object) -> str:
    """Quote what a sender wrote: short, and on one line."""
    return repr(found[:64] if isinstance(found, str | bytes) else found)


class FieldError(WireError):
    """What is wrong with a value; each field around it adds its own name, from the inside out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self._problem = problem
        self._field = ""

    def inside(self, field: str) -> "FieldError":
        """Return the error with one more field around it."""
        self._field = field + self._field
        return self

    def __str__(self) -> str:
        return f"field {self._field.removeprefix('.')}: {self._problem}"


Read = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is read, and how it is written; without `write` the value is written as it is.

    `read` raises FieldError for anything but a value of this kind.
    """

    read: Read
    write: Callable[[Any], Any] | None = None

    def written(self, value: Any) -> Any:
        """Return the value as it stands in a header."""
        return value if self.write is None else self.write(value)


class Table:
    """The fields of a dataclass by name, but those that do not travel in the header."""

    def __init__(self, of: type, *, without: Collection[str] = ()) -> None:
        annotations = get_type_hints(of, include_extras=True)
        self.kinds = {
            each.name: kind_of(annotations[each.name]) for each in fields(of) if each.name not in without
        }

    def write(self, value: object) -> dict[str, Any]:
        """Return the fields of a value as they stand in a header."""
        return {name: kind.written(getattr(value, name)) for name, kind in self.kinds.items()}

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
        return _checked(kind, checks) if checks else kind
    if origin is Literal:
        return one_of(arguments)
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return _or_nil(kind_of(arguments[0]))
    if origin is tuple and arguments[1:] == (...,):
        return _many(kind_of(arguments[0]))
    if origin is tuple:
        columns = [str(place) for place in range(len(arguments))]
        return _row(columns, [kind_of(each) for each in arguments], lambda *row: row)
    if origin is Mapping:
        return _by_name(kind_of(arguments[0]), kind_of(arguments[1]))
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _dataclass(annotation)
    raise TypeError(f"nothing says how {annotation} travels")


def of_type(expected: type) -> Kind:
    """Return the kind of any value of this type."""

    def read(found: Any) -> Any:
        if type(found) is not expected:
            raise unexpected(expected.__name__, found)
        return found

    return Kind(read)


def integer(low: int = -INT64_MAX, high: int = UINT64_MAX) -> Kind:
    """Return the kind of an integer from `low` to `high`."""

    def read(found: Any) -> int:
        # bool is an int for Python, not for the protocol.
        if type(found) is not int:
            raise unexpected("int", found)
        if not low <= found <= high:
            raise FieldError(f"{found} is not from {low} to {high}")
        return found

    return Kind(read)


def text(max_length: int) -> Kind:
    """Return the kind of a text of at most `max_length` characters."""

    def read(found: Any) -> str:
        if type(found) is not str:
            raise unexpected("str", found)
        if len(found) > max_length:
            raise FieldError(f"{len(found)} characters, at most {max_length} are allowed")
        return found

    return Kind(read)


def one_of(known: Collection[str]) -> Kind:
    """Return the kind of a word that is one of the known ones."""
    word = text(MAX_WORD_LENGTH)

    def read(found: Any) -> str:
        if word.read(found) not in known:
            raise FieldError(f"unknown {quoted(found)}, known are {', '.join(known)}")
        return str(found)

    return Kind(read)


def parsed(parse: Callable[[str], str]) -> Kind:
    """Return the kind of a short text of which `parse` makes the value, or raises ValueError."""
    word = text(MAX_WORD_LENGTH)

    def read(found: Any) -> str:
        try:
            return parse(word.read(found))
        except ValueError as error:
            raise FieldError(str(error)) from error

    return Kind(read)


def at_most(count: int) -> Callable[[Any], None]:
    """Return a check that a list or map has at most so many entries."""

    def check(found: Collection[object]) -> None:
        if len(found) > count:
            raise FieldError(f"{len(found)} entries, at most {count} are allowed")

    return check


def unexpected(expected: str, found: object) -> FieldError:
    """Return the error that a value is of another type."""
    return FieldError(f"expected {expected}, found {type(found).__name__}")


def _read_any_number(found: Any) -> float:
    if type(found) is not float and type(found) is not int:
        raise unexpected("int or float", found)
    return float(found)


def _read_number(found: Any) -> float:
    if type(found) is float and math.isfinite(found):
        return found
    number = _read_any_number(found)
    if not math.isfinite(number):
        raise FieldError(f"{number} is not finite")
    return number


def _read_magnitude(found: Any) -> float:
    number = _read_number(found)
    if number < 0:
        raise FieldError(f"{number} is less than 0")
    return number


def _read_name(found: Any) -> str:
    if not is_name(_SHORT.read(found)):
        raise FieldError(f"{quoted(found)} is no name (letters, digits and _ . @ : - only)")
    return str(found)


def _read_metric_name(found: Any) -> str:
    if not is_metric_name(found):
        raise FieldError(f"{quoted(found)} is no short name")
    return str(found)


def _checked(kind: Kind, checks: Sequence[Callable[[Any], None]]) -> Kind:
    def read(found: Any) -> Any:
        value = kind.read(found)
        for check in checks:
            check(value)
        return value

    return Kind(read, kind.write)


def _or_nil(kind: Kind) -> Kind:
    read, write = kind.read, kind.write
    return Kind(
        lambda found: None if found is None else read(found),
        write and (lambda value: None if value is None else write(value)),
    )


def _many(kind: Kind) -> Kind:
    read_one, write = kind.read, kind.write

    def read(found: Any) -> tuple[Any, ...]:
        if not isinstance(found, _LISTS):
            raise unexpected("list", found)
        values: list[Any] = []
        try:
            values.extend(map(read_one, found))
        except FieldError as error:
            raise error.inside(f"[{len(values)}]") from None
        return tuple(values)

    return Kind(read, write and (lambda values: [write(each) for each in values]))


def _row(columns: Sequence[str], kinds: Sequence[Kind], make: Callable[..., Any]) -> Kind:
    """Return the kind of a list with these columns, of which `make` makes the value; a row is written."""
    reads = [kind.read for kind in kinds]

    def read(found: Any) -> Any:
        if not isinstance(found, _LISTS) or len(found) != len(reads):
            raise FieldError(f"expected a list of {', '.join(columns)}")
        try:
            return make(*[read_one(each) for read_one, each in zip(reads, found, strict=True)])
        except FieldError:
            _read_again(columns, reads, found)
            raise
        except LayoutError as error:
            raise FieldError(str(error)) from error

    def write(row: Sequence[Any]) -> list[Any]:
        return [kind.written(each) for kind, each in zip(kinds, row, strict=True)]

    return Kind(read, None if all(kind.write is None for kind in kinds) else write)


def _read_again(columns: Sequence[str], reads: Sequence[Read], row: Sequence[Any]) -> None:
    """Raise the error of the column of a row that is at fault, with the column's name."""
    for name, read, each in zip(columns, reads, row, strict=True):
        try:
            read(each)
        except FieldError as error:
            raise error.inside(f".{name}") from None


def _dataclass(of: type) -> Kind:
    kinds = Table(of).kinds
    columns = list(kinds)

    def make(*values: Any) -> Any:
        return of(**dict(zip(columns, values, strict=True)))

    by_name = any(each.kw_only for each in fields(of))
    row = _row(columns, list(kinds.values()), make if by_name else of)
    return Kind(row.read, lambda value: row.written([getattr(value, name) for name in columns]))


def _by_name(name: Kind, kind: Kind) -> Kind:
    read_name, read_one, write = name.read, kind.read, kind.write

    def read(found: Any) -> dict[str, Any]:
        if type(found) is not dict:
            raise unexpected("dict", found)
        values: dict[str, Any] = {}
        for key, each in found.items():
            read_name(key)
            try:
                values[key] = read_one(each)
            except FieldError as error:
                raise error.inside(f"[{key}]") from None
        return values

    return Kind(read, write and (lambda values: {key: write(each) for key, each in values.items()}))


_SHORT: Final = text(MAX_NAME_LENGTH)
_KINDS: Final[Mapping[Any, Kind]] = {
    int: integer(),
    float: Kind(_read_number),
    bool: of_type(bool),
}

Count = Annotated[int, integer(0)]
Positive = Annotated[int, integer(1)]
# NaN and infinity too; a float without this must be finite.
AnyNumber = Annotated[float, Kind(_read_any_number)]
Magnitude = Annotated[float, Kind(_read_magnitude)]
# Safe to print, to log and to use in a queue's name.
Name = Annotated[str, Kind(_read_name)]
# A federation's name, a digest.
ShortText = Annotated[str, text(64)]
MetricName = Annotated[str, Kind(_read_metric_name)]
Metrics = Annotated[Mapping[MetricName, AnyNumber], at_most(MAX_METRICS)]
