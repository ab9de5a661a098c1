"""Measures a header before anything is made of it: where it ends, how deep it goes, how much is in it. Pure.

msgpack's own limits hold for each list and map by itself. A few bytes can announce lists in lists in lists,
each of the largest size, and one byte is an empty map of 64 bytes in memory: what bounds the memory is only
what all of them come to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fluffle.errors import WireError

MAX_DEPTH: Final = 6


class _Token(NamedTuple):
    """What a first byte says: so many bytes and items follow, or a count of them in `count_bytes` bytes."""

    size: int = 0
    items: int = 0
    count_bytes: int = 0
    bytes_each: int = 0
    items_each: int = 0


def _tokens() -> Iterator[tuple[int, _Token]]:
    for first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        yield first, _Token()
    for count in range(16):
        yield 0x80 + count, _Token(items=2 * count)
        yield 0x90 + count, _Token(items=count)
    for count in range(32):
        yield 0xA0 + count, _Token(size=count)
    for first, size in zip((0xCA, 0xCB, *range(0xCC, 0xD4)), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True):
        yield first, _Token(size=size)
    for first, size in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):
        yield first, _Token(count_bytes=size, bytes_each=1)
    for first, size in ((0xDC, 2), (0xDD, 4)):
        yield first, _Token(count_bytes=size, items_each=1)
        yield first + 2, _Token(count_bytes=size, items_each=2)


# Extension types and 0xc1, which begins nothing, are missing on purpose.
_TOKENS: Final = dict(_tokens())
# What takes so many bytes with the first one, and has nothing in it; 0 for all else.
_PLAIN_SIZES: Final = [
    0 if token is None or token.items or token.count_bytes else 1 + token.size
    for token in map(_TOKENS.get, range(256))
]
_FIRST_OF_MAPS: Final = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))


class HeaderLimits(NamedTuple):
    """What a header may take: its bytes, and the items of all its lists and maps together.

    The key and the value of a map's entry are two items.
    """

    size_bytes: int
    items: int


def require_readable(header: bytes, limits: HeaderLimits) -> None:
    """Raise WireError when a header, which is sound otherwise, is more than may be read."""
    # Each item takes a byte at least.
    if len(header) <= min(limits):
        return
    scan = HeaderScan(header, limits)
    for _ in range(2 * scan.open_map()):
        scan.next_object()


class HeaderScan:
    """Walks over a header, object by object; `at` is where the next one begins."""

    def __init__(self, body: bytes, limits: HeaderLimits) -> None:
        self.at = 0
        self._body = memoryview(body)[: limits.size_bytes]
        self._end = len(self._body)
        self._limits = limits
        self._items_left = limits.items

    def open_map(self) -> int:
        """Step over the beginning of a map and return how many entries it announces."""
        if self._body and self._body[0] not in _FIRST_OF_MAPS:
            raise WireError("the message does not begin with a map")
        return self._step() // 2

    def next_object(self) -> memoryview:
        """Step over one object with all that is in it, and return its bytes.

        Raises WireError when it ends too late, goes too deep, holds too much or an extension type.
        """
        start = self.at
        items = self._step()
        left = [items] if items else []
        while left:
            if left[-1] == 0:
                left.pop()
                continue
            self._step_over_plain(left)
            if left[-1] == 0:
                continue
            left[-1] -= 1
            inside = self._step()
            if inside:
                left.append(inside)
                if len(left) >= MAX_DEPTH:
                    raise WireError(f"its lists and maps lie more than {MAX_DEPTH} deep in each other")
        return self._body[start : self.at]

    def _step_over_plain(self, left: list[int]) -> None:
        """Step over the short strings and the numbers that come next in the innermost list or map.

        A record of hundreds of workers has thousands of them, and no more than their length matters.
        """
        at, body, end, plain = self.at, self._body, self._end, left[-1]
        while plain and at < end and (size := _PLAIN_SIZES[body[at]]):
            at += size
            plain -= 1
        if at > end:
            raise self._too_short()
        self.at, left[-1] = at, plain

    def _step(self) -> int:
        """Step over one string or number, or the beginning of a list or map; return the items in it."""
        if self.at >= self._end:
            raise self._too_short()
        token = _TOKENS.get(self._body[self.at])
        if token is None:
            raise WireError("extension types are not allowed")
        size, items, count_bytes, bytes_each, items_each = token
        self.at += 1 + size
        if count_bytes:
            count = int.from_bytes(self._body[self.at : self.at + count_bytes], "big")
            self.at += count_bytes + count * bytes_each
            items += count * items_each
        self._items_left -= items
        if self._items_left < 0:
            raise WireError(f"its lists and maps hold more than {self._limits.items} items")
        if self.at > self._end:
            raise self._too_short()
        return items

    def _too_short(self) -> WireError:
        return WireError(f"the header does not end within {self._end} bytes")
