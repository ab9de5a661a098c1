"""File operations that fail, or that a process does not survive."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch


class Crash(BaseException):
    """The process is killed."""


@contextmanager
def failing(after: int | None, error: Callable[[], BaseException]) -> Iterator[None]:
    """Let something happen instead of the next file operation after so many; None is never."""
    left = [after]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            if left[0] is not None:
                if left[0] <= 0:
                    raise error()
                left[0] -= 1
            return real(*arguments, **options)

        return operation

    with (
        patch.object(os, "open", counted(os.open)),
        patch.object(os, "fsync", counted(os.fsync)),
        patch.object(Path, "replace", counted(Path.replace)),
        patch.object(Path, "unlink", counted(Path.unlink)),
    ):
        yield
