"""What all kinds of messages share: a header with the fields of a dataclass, and a payload. Pure."""

from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.errors import WireError
from fluffle.fields import Table, one_of, quoted, take
from fluffle.framing import Header, HeaderLimits, split
from fluffle.model import Vector

T = TypeVar("T")
Read = Callable[[Header, memoryview], T]
IN_PAYLOAD: Final = ("vector", "average", "sealed_sum", "statistics", "integers")


class BareMessage(Generic[T]):
    """A message without payload: its header has the fields of a dataclass."""

    def __init__(self, kind: str, of: type[T]) -> None:
        self._kind = kind
        self._of = of
        self._table = Table(of)

    def header(self, message: T) -> Header:
        """Return the header of a message."""
        return {"kind": self._kind, **self._table.write(message)}

    def read(self, header: Header, payload: memoryview) -> T:
        """Read a message; each field that is read is taken out of the header."""
        require_empty(payload)
        return self._of(**self._table.take(header))


def decode(body: bytes, limits: HeaderLimits, readers: Mapping[str, Read[T]]) -> T:
    """Read a whole message of one of these kinds. Raises WireError that names the field."""
    return read_message(*split(body, limits), readers)


def read_message(header: Header, payload: memoryview, readers: Mapping[str, Read[T]]) -> T:
    """Read a message of one of these kinds, in which no field may be left over."""
    message = readers[take(header, "kind", one_of(readers))](header, payload)
    if header:
        raise WireError(f"unknown field {quoted(next(iter(header)))}")
    return message


def require_readable(header: Header, payload: memoryview, read: Read[object]) -> None:
    """Raise WireError for a message that its reader would refuse, before anybody sends it."""
    try:
        read(dict(header), payload)
    except WireError as error:
        raise WireError(f"nobody could read this {header['kind']}: {error}") from error


def require_empty(payload: memoryview) -> None:
    """Raise WireError when there is a payload."""
    if len(payload):
        raise WireError(f"the payload must be empty, but has {len(payload)} bytes")


def payload_of(vectors: list[memoryview], statistics: Vector, integers: bytes) -> list[memoryview]:
    """Return the parts of a payload in their order; nothing is copied."""
    return [*vectors, Float32Vector.of(statistics).payload, memoryview(integers)]


def after_vector(rest: memoryview, statistics: int) -> tuple[Vector, bytes]:
    """Read the float statistics, of so many elements, and the integers that follow them."""
    # A copy, since the statistics may lie unaligned behind a compressed vector.
    return np.frombuffer(rest[: 4 * statistics], "<f4").astype(np.float32), bytes(rest[4 * statistics :])
