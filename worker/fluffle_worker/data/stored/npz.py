"""NPZ: arrays of numpy in one file, read in pieces even where they are compressed."""

import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fluffle.errors import ConfigError, TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.sharding import row_ranges, whole_units
from fluffle_worker.data.stored.source import BLOCK_BYTES, Part, RowForm, Wanted, require_float32

X, Y = "x", "y"
SKIP_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Array:
    """What the head of an array says: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class NumpyBlock:
    """Rows that are arrays already."""

    x: NDArray[Any]
    y: NDArray[Any] | None
    file: str
    names: tuple[str, str | None]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def write(self, x: NDArray[np.float32], y: NDArray[Any] | None) -> None:
        """Write them into arrays of this length. Raises TaskError for a number too large for float32."""
        try:
            with np.errstate(over="raise"):
                x[:] = self.x
                if y is not None:
                    y[:] = self.y
        except FloatingPointError:
            for numbers, name in zip((self.x, self.y), self.names, strict=True):
                if numbers is not None:
                    require_float32(numbers, f"the array {name!r} of {self.file}")
            raise


class NpzSource:
    """The rows that a site reads of the arrays x and y, or of those that `columns` and `label` name."""

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        if wanted.classes or (wanted.columns and len(wanted.columns) > 1):
            raise ConfigError(
                "of NPZ files, columns= names the one array of inputs and label= that of labels, which are "
                "numbers: leave classes= and other columns out"
            )
        self._files, self._wanted = files, wanted
        self._heads: dict[str, tuple[_Array, _Array | None]] = {}
        self.parts = self._divided(found, shard)
        if not self.parts:
            raise TaskError(f"{files.location.url} has no row for site {shard.index} of {shard.count}")
        own = {part.file for part in self.parts}
        with_rows = (file for file in found if self._rows_of(file))
        first = next(with_rows)
        x, y = self._heads_of(first)
        is_whole = self._is_whole(first)
        for file in with_rows:
            # The labels of all sites have one dtype, so those of other sites count until one is not whole.
            if file in own or is_whole:
                self._require_like(first, file)
                is_whole &= self._is_whole(file)
        dtype = None if y is None else np.int64 if is_whole else np.float32
        shape = x.shape[1:] or (1,)
        self.form = RowForm((x.name,), shape, y.name if y else None, y.shape[1:] if y else (), dtype, ())

    def blocks(self, parts: Iterable[Part]) -> Generator[NumpyBlock, None, None]:
        """Read some rows of some files."""
        for part in parts:
            yield from self._blocks_of(part)

    def _blocks_of(self, part: Part) -> Iterator[NumpyBlock]:
        x, y = self._heads_of(part.file)
        end = part.end or 0
        some = max(1, BLOCK_BYTES // max(1, x.row_bytes))
        with ExitStack() as stack:
            archive = stack.enter_context(self._archive(part.file))
            streams = [
                (each, stack.enter_context(archive.open(f"{each.name}.npy"))) for each in (x, y) if each
            ]
            for each, stream in streams:
                _head(each.name, stream, part.file)
                _skip(stream, part.begin * each.row_bytes)
            for begin in range(part.begin, end, some):
                rows = min(some, end - begin)
                read = [_rows(each, stream, rows) for each, stream in streams]
                yield NumpyBlock(
                    read[0].reshape(rows, *self.form.row_shape),
                    read[1] if y else None,
                    part.file.url,
                    (x.name, y.name if y else None),
                )

    def _divided(self, found: Sequence[StoredFile], shard: Site) -> list[Part]:
        own = whole_units([file.size_bytes for file in found], index=shard.index, count=shard.count)
        if own is not None:
            parts = [Part(found[unit], end=self._rows_of(found[unit])) for unit in own]
            return [part for part in parts if part.rows]
        rows = [self._rows_of(file) for file in found]
        return [
            Part(found[unit], begin=begin, end=end)
            for unit, begin, end in row_ranges(rows, index=shard.index, count=shard.count)
        ]

    def _rows_of(self, file: StoredFile) -> int:
        return self._heads_of(file)[0].shape[0]

    def _is_whole(self, file: StoredFile) -> bool:
        y = self._heads_of(file)[1]
        return y is not None and y.dtype.kind in "biu"

    def _heads_of(self, file: StoredFile) -> tuple[_Array, _Array | None]:
        """Return what the arrays of a file are, without their rows."""
        if file.path in self._heads:
            return self._heads[file.path]
        with self._archive(file) as archive:
            known = [name.removesuffix(".npy") for name in archive.namelist()]
            x_name = self._wanted.columns[0] if self._wanted.columns else X
            y_name = self._wanted.label or (Y if Y in known else None)
            heads = []
            for name in (x_name, y_name):
                if name is None:
                    continue
                if name not in known:
                    raise TaskError(
                        f"{file.url} has no array {name!r}: it has {', '.join(map(repr, known))}; name the "
                        "array of inputs with columns= and that of labels with label="
                    )
                with archive.open(f"{name}.npy") as stream:
                    heads.append(_head(name, stream, file))
        x, y = heads[0], heads[1] if len(heads) > 1 else None
        if not x.shape or (y is not None and y.shape[:1] != x.shape[:1]):
            also = "" if y is None else f" and {y.name!r} {y.shape}"
            raise TaskError(
                f"{file.url}: the array {x.name!r} has the shape {x.shape}{also}, and both must have one "
                "entry for each row along the first axis"
            )
        self._heads[file.path] = (x, y)
        return x, y

    def _require_like(self, first: StoredFile, other: StoredFile) -> None:
        mine, theirs = (
            {each.name: each.shape[1:] for each in self._heads_of(file) if each} for file in (first, other)
        )
        if mine != theirs:
            raise TaskError(
                f"a row of {first.url} has arrays of the shapes {mine}, and a row of {other.url} {theirs}: "
                "write all files in the same way"
            )

    @contextmanager
    def _archive(self, file: StoredFile) -> Iterator[zipfile.ZipFile]:
        with self._files.open(file) as stream:
            try:
                with zipfile.ZipFile(stream) as archive:
                    yield archive
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                raise TaskError(f"{file.url} is no readable NPZ file: write it again ({error})") from error


def _head(name: str, stream: IO[bytes], file: StoredFile) -> _Array:
    """Read the head of an array; the stream is at its first row then."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.kind not in "biuf":
        raise TaskError(
            f"the array {name!r} of {file.url} holds {dtype} where numbers are expected: write it as numbers"
        )
    if is_fortran and len(shape) > 1:
        raise TaskError(
            f"the array {name!r} of {file.url} is stored column by column: save numpy.ascontiguousarray of it"
        )
    return _Array(name, shape, dtype)


def _skip(stream: IO[bytes], size: int) -> None:
    # A seek in a compressed stream reads as well, with smaller pieces.
    while size > 0 and (read := stream.read(min(size, SKIP_BYTES))):
        size -= len(read)


def _rows(array: _Array, stream: IO[bytes], rows: int) -> NDArray[Any]:
    size = rows * array.row_bytes
    content = stream.read(size)
    if len(content) != size:
        raise EOFError(f"the array {array.name!r} ends too early")
    return np.frombuffer(content, array.dtype).reshape(rows, *array.shape[1:])
