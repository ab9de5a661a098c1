"""A message as several pieces of memory, so that a model is sent without being copied. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pieces:
    """The start of a message, and the rest in other memory, which must not change before it is sent."""

    start: bytes
    rest: tuple[memoryview, ...] = ()

    def __len__(self) -> int:
        return len(self.start) + sum(map(len, self.rest))

    def __bytes__(self) -> bytes:
        return b"".join((self.start, *self.rest))

    def cut(self, size: int) -> Iterator[list[memoryview]]:
        """Yield runs of `size` bytes, the last one shorter; each is a list of views."""
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


# The body of a message.
Body = bytes | Pieces
