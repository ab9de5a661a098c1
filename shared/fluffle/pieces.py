"""A message's bytes where they lie: what is as large as a model need not be copied to be sent. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pieces:
    """Some bytes, and those that follow in other places; nobody may change them before they are sent."""

    start: bytes
    rest: tuple[memoryview, ...] = ()

    def __len__(self) -> int:
        return len(self.start) + sum(map(len, self.rest))

    def __bytes__(self) -> bytes:
        return b"".join((self.start, *self.rest))

    def cut(self, size: int) -> Iterator[list[memoryview]]:
        """Walk through them in runs of `size` bytes, the last one shorter; each is a list of views."""
        run: list[memoryview] = []
        missing = size
        for part in (memoryview(self.start), *self.rest):
            left = part
            while left:
                run.append(left[:missing])
                left = left[missing:]
                missing -= len(run[-1])
                if not missing:
                    yield run
                    run, missing = [], size
        if run:
            yield run


# What a broker takes.
Body = bytes | Pieces
