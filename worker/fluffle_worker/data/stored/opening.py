"""Opening the files of a data set, and noticing when one is not what it was."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fluffle.errors import TaskError
from fluffle.storage import Location, StoredFile
from fluffle_worker.data.stored.cache import Cache


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """The files of a data set, each of which must stay as it was when it was found."""

    location: Location
    cache: Cache | None = None

    def is_read_through_python(self, file: StoredFile) -> bool:
        """Whether pyarrow would call back into Python for each read of a file."""
        return self.location.filesystem.type_name.startswith("py::") and not self._is_cached(file)

    @contextmanager
    def open(self, file: StoredFile) -> Iterator[Any]:
        """Open a file, or its local copy, to read it. Raises TaskError when the file has changed."""
        self._require_same(file)
        if self.cache is None or not self._is_cached(file):
            with self._open_remote(file) as stream:
                yield stream
            return
        descriptor = self.cache.copy_of(file, self._open_remote)
        try:
            copy = pa.OSFile(f"/dev/fd/{descriptor}", "r")
        finally:
            os.close(descriptor)
        with copy:
            yield copy

    @contextmanager
    def _open_remote(self, file: StoredFile) -> Iterator[Any]:
        with self.location.open(file) as stream:
            yield stream
        # It may have been written while it was read.
        self._require_same(file)

    def _is_cached(self, file: StoredFile) -> bool:
        is_local = self.location.filesystem.type_name == "local"
        return self.cache is not None and not is_local and self.cache.holds(file)

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
