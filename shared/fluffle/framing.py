"""A header and a payload as the bytes of one message, and back: the only module that knows msgpack. Pure.

A message is a msgpack map, the header, and one msgpack bin, the payload; docs/protocol.md describes both. The
header is bounded in its bytes and its items, and the payload must have the announced length and checksum.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import msgpack
import xxhash

from fluffle.errors import MessageTooLarge, ProtocolMismatch, WireError
from fluffle.fields import integer, is_name, of_type, quoted, take
from fluffle.message_size import require_message_fits
from fluffle.pieces import Body, Pieces
from fluffle.topology import MAX_MESSAGE_BYTES

PROTOCOL: Final = 5
# Of a float32 and of a masked number; a body itself begins at a multiple of 16 bytes in Python.
ALIGNMENT: Final = 4
BIN32_PREFIX_BYTES: Final = 5
NO_PAYLOAD: Final = b"\xc6\x00\x00\x00\x00"
PROTOCOL_FIELD: Final = "fluffle"
# A header is read in pieces of this size: most end in the first.
READ_BYTES: Final = 8 * 1024
# The longest text of any header: the name of a tensor, of 1024 characters with up to four bytes each.
MAX_TEXT_BYTES: Final = 4096

Header = dict[str, Any]
T = TypeVar("T")


class HeaderLimits(NamedTuple):
    """The most bytes of a header, and the most items of all its lists and maps together.

    A map counts as four items, and each of its entries as three: it takes as much memory.
    """

    size_bytes: int
    items: int


def join(header: Header, payload: list[memoryview], limits: HeaderLimits) -> Pieces:
    """Return a message; the payload is not copied.

    Raises MessageTooLarge when it is more than may be sent or read, WireError when msgpack cannot hold it.
    """
    what, length = f"this {header['kind']}", sum(part.nbytes for part in payload)
    whole = {PROTOCOL_FIELD: PROTOCOL, **header, "checksum": checksum(payload), "pad": b""}
    try:
        packed = msgpack.packb(whole)
    except OverflowError as error:
        raise WireError(f"{what} has a number of more than 64 bits") from error
    padding = -(len(packed) + BIN32_PREFIX_BYTES) % ALIGNMENT
    # The last byte of what was packed is the length of the padding.
    start = b"".join((packed[:-1], bytes([padding]), bytes(padding), b"\xc6", length.to_bytes(4, "big")))
    require_message_fits(what, len(start) + length, MAX_MESSAGE_BYTES)
    # Each item takes a byte at least: a short header is within its limits.
    if len(start) > min(limits):
        try:
            HeaderReader(start, limits).whole()
        except (WireError, ValueError) as error:
            unreadable = f"nobody could read {what} again: {_in_words(error, limits)}"
            raise MessageTooLarge(unreadable, limits.size_bytes) from error
    return Pieces(start, tuple(payload))


def split(body: bytes, limits: HeaderLimits) -> tuple[Header, memoryview]:
    """Return the header of a message, without what all messages have in theirs, and the payload.

    Raises WireError that says what is wrong, and in which field.
    """
    header, end = _read_header(body, limits)
    prefix = body[end : end + BIN32_PREFIX_BYTES]
    payload = memoryview(body)[end + BIN32_PREFIX_BYTES :]
    if len(prefix) != BIN32_PREFIX_BYTES or prefix[0] != 0xC6:
        raise WireError("the payload is not one msgpack bin 32 right after the header")
    if (announced := int.from_bytes(prefix[1:], "big")) != len(payload):
        raise WireError(f"the payload announces {announced} bytes, but {len(payload)} follow")
    if _take_framing(header) != checksum([payload]):
        raise WireError("field checksum: the payload's bytes are not those that were sent")
    return header, payload


def split_without_payload(body: bytes, limits: HeaderLimits) -> Header:
    """Return the header of a message whose payload was taken away; see `split`."""
    header, end = _read_header(body, limits)
    if body[end:] != NO_PAYLOAD:
        raise WireError("the payload must be empty here")
    _take_framing(header)
    return header


def _read_header(body: bytes, limits: HeaderLimits) -> tuple[Header, int]:
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(f"the message has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}")
    reader, header = HeaderReader(body, limits), None
    with suppress(WireError, ValueError):
        header = reader.whole()
    if header is None:
        # Once more, field by field, to say which one is at fault.
        reader, header = HeaderReader(body, limits), {}
        for name, value in reader.fields():
            if name in header:
                raise WireError(f"{_field(name)}: it stands there twice")
            header[name] = value
    return header, reader.at


def _take_framing(header: Header) -> int:
    """Take the fields that all messages have out of a header, and return the checksum."""
    take(header, PROTOCOL_FIELD, _INTEGER)
    take(header, "pad", _BYTES)
    found: int = take(header, "checksum", _INTEGER)
    return found


def checksum(payload: Iterable[memoryview]) -> int:
    """Return the checksum of a payload in one or more parts."""
    running = xxhash.xxh3_64()
    for part in payload:
        running.update(part)
    return running.intdigest()


def record_digest(body: Body) -> str:
    """Return the digest by which the next record names this one as its parent.

    It covers the header, which holds the checksum of the payload.
    """
    return hashlib.sha256(header_bytes(body)).hexdigest()


def header_bytes(body: Body) -> bytes:
    """Return the header of a message that was read before, or is about to be sent, as its bytes."""
    if isinstance(body, Pieces):
        return body.start[:-BIN32_PREFIX_BYTES]
    reader = HeaderReader(body, HeaderLimits(len(body), len(body)))
    reader.skip()
    return body[: reader.at]


class HeaderReader:
    """Reads the header of a message, and no more of the body than it takes.

    msgpack bounds each list and map before it makes room for it, and how deep they lie in each other; what
    is counted here bounds all of them together.
    """

    def __init__(self, body: bytes, limits: HeaderLimits) -> None:
        self._body = memoryview(body)[: limits.size_bytes]
        self._fed = 0
        self._limits = limits
        # Hooks of this reader would make a cycle with the unpacker, and keep the body until it is collected.
        self._items = _ItemCount(limits)
        self._unpacker = msgpack.Unpacker(
            read_size=min(READ_BYTES, limits.size_bytes),
            max_buffer_size=limits.size_bytes,
            max_array_len=limits.items,
            max_map_len=limits.items // 2,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_TEXT_BYTES,
            max_ext_len=0,
            list_hook=self._items.counted,
            object_pairs_hook=self._items.unique,
        )

    @property
    def at(self) -> int:
        """Where the next object begins."""
        return int(self._unpacker.tell())

    def whole(self) -> Header:
        """Return the header. Raises WireError or ValueError, which do not name the field at fault."""
        header: object = self._step(self._unpacker.unpack)
        if not isinstance(header, dict):
            raise WireError("the message does not begin with a map")
        _require_protocol(header.get(PROTOCOL_FIELD))
        return header

    def fields(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields one by one. Raises WireError that names the one at fault."""
        try:
            count = self._step(self._unpacker.read_map_header)
        except ValueError as error:
            raise WireError("the message does not begin with a map") from error
        self._items.count(4 + 3 * count)
        for _ in range(count):
            name = self._object("the name of a field")
            if type(name) is not str:
                raise WireError(f"the name of a field must be str, not {type(name).__name__}")
            value = self._object(_field(name))
            if name == PROTOCOL_FIELD:
                _require_protocol(value)
            yield name, value

    def skip(self) -> None:
        """Step over the header, which was read before."""
        self._step(self._unpacker.skip)

    def _object(self, what: str) -> Any:
        try:
            return self._step(self._unpacker.unpack)
        except (WireError, ValueError) as error:
            raise WireError(f"{what}: {_in_words(error, self._limits)}") from error

    def _step(self, step: Callable[[], T]) -> T:
        """Take a step, and feed more of the body for as long as it ends too early."""
        while True:
            try:
                return step()
            except msgpack.OutOfData:
                if self._fed == len(self._body):
                    raise WireError(f"the header does not end within {self._fed} bytes") from None
            piece = self._body[self._fed : self._fed + READ_BYTES]
            self._unpacker.feed(piece)
            self._fed += len(piece)


class _ItemCount:
    """Counts the items of all lists and maps of a header together, as msgpack makes them."""

    def __init__(self, limits: HeaderLimits) -> None:
        self._limits = limits
        self._left = limits.items

    def counted(self, found: list[object]) -> list[object]:
        """Count a list."""
        self.count(len(found))
        return found

    def unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Count a map, and refuse a key that stands there twice."""
        self.count(4 + 3 * len(pairs))
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise WireError(f"the key {quoted(twice)} stands there twice")
        return found

    def count(self, items: int) -> None:
        """Count items; WireError when they are too many."""
        self._left -= items
        if self._left < 0:
            raise WireError(_too_many(self._limits))


_INTEGER: Final = integer()
_BYTES: Final = of_type(bytes)


def _too_many(limits: HeaderLimits) -> str:
    return f"its lists and maps hold more than {limits.items} items"


def _in_words(error: Exception, limits: HeaderLimits) -> str:
    """Say what is wrong with an object; msgpack says little of some faults."""
    if isinstance(error, msgpack.StackError):
        return "its lists and maps lie too deep in each other"
    if isinstance(error, msgpack.FormatError):
        return "its bytes are not msgpack"
    if "max_ext_len" in str(error):
        return "extension types are not allowed"
    if "max_str_len" in str(error) or "max_bin_len" in str(error):
        return f"a text has more than {MAX_TEXT_BYTES} bytes"
    if "max_array_len" in str(error) or "max_map_len" in str(error):
        return _too_many(limits)
    return str(error)


def _require_protocol(found: object) -> None:
    """Raise ProtocolMismatch for another protocol, of which nothing else would be understood."""
    if type(found) is int and found != PROTOCOL:
        raise ProtocolMismatch(
            f"the message is of protocol {found}, and this Fluffle speaks protocol {PROTOCOL}: run the same "
            "version of Fluffle at every site"
        )


def _field(name: str) -> str:
    return f"field {name if is_name(name) else quoted(name)}"
