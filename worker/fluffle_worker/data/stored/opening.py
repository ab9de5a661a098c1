"""Opening the files of a data set, and noticing when one is not what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fluffle.errors import TaskError
from fluffle.storage import Location, StoredFile


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """The files of a data set, each of which must stay as it was when it was found."""

    location: Location

    @contextmanager
    def open(self, file: StoredFile) -> Iterator[Any]:
        """Open a file to read it. Raises TaskError when it has changed, also while it was read."""
        self._require_same(file)
        with self.location.open(file) as stream:
            yield stream
        self._require_same(file)

    def _require_same(self, file: StoredFile) -> None:
        now = self.location.now(file)
        if now is None:
            raise TaskError(f"{file.url} has vanished since the task began: put it back, and start again")
        if now != file:
            raise TaskError(
                f"{file.url} has changed since the task began ({file.size_bytes:,} bytes then, "
                f"{now.size_bytes:,} now): start again to train on the new content, and let data that "
                "is still written have another name"
            )
