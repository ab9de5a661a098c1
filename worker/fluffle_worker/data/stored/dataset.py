"""A data set in files as arrays, or as minibatches that can be read again and again."""

import importlib
import mmap
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import ConfigError, TaskError
from fluffle.free_memory import available_bytes
from fluffle.storage import Location, StoredFile, locate
from fluffle.task import Site
from fluffle_worker.data.stored.cache import Cache
from fluffle_worker.data.stored.following import followed
from fluffle_worker.data.stored.prefetch import read_ahead
from fluffle_worker.data.stored.source import Block, Part, RowForm, Source, Wanted, is_whole_number

if TYPE_CHECKING:
    from fluffle_worker.data.stored.table import Columns

# (x, y), or (x,) where there is no label.
Arrays: TypeAlias = tuple[NDArray[Any], ...]

Item = TypeVar("Item")

# The formats by the end of a file's name: the module and the class that reads it.
_MODULES = "fluffle_worker.data.stored"
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
FORMATS = {
    ".parquet": (f"{_MODULES}.parquet", "ParquetSource"),
    **dict.fromkeys((".csv", ".csv.gz"), (f"{_MODULES}.csv_files", "CsvSource")),
    ".npz": (f"{_MODULES}.npz", "NpzSource"),
    **dict.fromkeys(_IMAGES, (f"{_MODULES}.images", "ImageSource")),
}
# So many rows are mixed with each other where minibatches come in a random order.
MIXED_BYTES = 32 << 20
# Arrays of unknown length begin with so many rows, and double.
FIRST_ROWS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """The rows of one site, in files; nothing but their form is in memory."""

    url: str
    source: Source

    @property
    def form(self) -> RowForm:
        """What a row becomes."""
        return self.source.form

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns in `x`, in their order."""
        return self.form.features

    @property
    def label(self) -> str | None:
        """The name of the column in `y`; None where there is none."""
        return self.form.label

    @property
    def classes(self) -> tuple[str | int, ...]:
        """The classes whose numbers `y` holds; empty where `y` holds what the files hold."""
        return self.form.classes

    @property
    def rows(self) -> int | None:
        """How many rows the site has, those without a label too; None where only reading them would tell."""
        known = [part.rows for part in self.source.parts]
        return None if None in known else sum(each or 0 for each in known)

    def blocks(self, parts: Iterable[Part], *, is_first: bool = True) -> Generator[Block, None, None]:
        """Read the rows of some parts, with lines in the log where that takes long."""
        return followed(self.source.blocks(parts), url=self.url, rows=self.rows, is_first=is_first)

    def arrays(self) -> Arrays:
        """Read all rows: (x, y), or (x,) without a label; little more memory is needed than they take.

        `x` is float32 [rows, ...], and `y` int64 for classes and whole numbers, float32 for targets. Missing
        values are NaN. Rows without a label are left out. Raises TaskError, StorageError.
        """
        rows = self.rows
        self._require_room(rows or FIRST_ROWS)
        x, y = self.form.empty(rows or FIRST_ROWS)
        if rows:
            x = on_plain_pages(x.shape)
        at = 0
        for block in read_ahead(self.blocks(self.source.parts)):
            end = at + len(block)
            while end > len(x):  # only where nobody knew how many rows there are
                self._require_room(len(x))
                _resize(x, 2 * len(x))
                _resize(y, 2 * len(x))
            block.write(x[at:end], None if y is None else y[at:end])
            at = end
        if not at:
            what = "row" if y is None else f"row with a value in the label column {self.label!r}"
            raise TaskError(f"{self.url} has no {what}: put the data there first, or name another label")
        if not rows:
            _resize(x, at)
            _resize(y, at)
        return (x[:at],) if y is None else (x[:at], y[:at])

    def minibatches(self, batch_size: int, *, shuffle_seed: int | None = None) -> "StoredMinibatches":
        """Return the rows as minibatches, which are read anew each time that they are iterated.

        With a seed, each pass has another random order: of the files and row groups, and of the rows within
        some 32 MB. Without one, rows come in the order of the files.
        """
        if not is_whole_number(batch_size, least=1):
            raise ConfigError(f"batch_size must be a whole number and at least 1, not {batch_size!r}")
        if shuffle_seed is not None and not is_whole_number(shuffle_seed, least=0):
            raise ConfigError(f"shuffle_seed must be a whole number from 0, or None, not {shuffle_seed!r}")
        return StoredMinibatches(self, batch_size, shuffle_seed)

    def _require_room(self, rows: int) -> None:
        wanted, free = rows * self.form.row_bytes, available_bytes()
        if free is not None and wanted > free:
            raise TaskError(
                f"{self.url} takes {wanted / 1e9:.1f} GB as arrays, and {free / 1e9:.1f} GB of memory are "
                "free: read it minibatch by minibatch, with open_dataset(...).minibatches(32), or read "
                "fewer columns"
            )


class StoredMinibatches:
    """Minibatches (x, y), or (x,), of a data set in files: a new pass over the files for each iteration."""

    def __init__(self, dataset: Dataset, batch_size: int, shuffle_seed: int | None) -> None:
        self.dataset = dataset
        self._batch_size = batch_size
        self._seed = shuffle_seed
        self._passes = count()

    def __iter__(self) -> Iterator[Arrays]:
        """Read all rows once. Raises TaskError when a file has changed since the data set was opened."""
        form, source = self.dataset.form, self.dataset.source
        order = np.arange(len(source.parts))
        number = next(self._passes)
        rng = None if self._seed is None else np.random.default_rng([self._seed, number])
        rows = self._batch_size
        if rng is not None:
            rng.shuffle(order)
            rows *= max(1, MIXED_BYTES // form.row_bytes // self._batch_size)
        parts = (source.parts[int(at)] for at in order)
        return self._cut(read_ahead(self.dataset.blocks(parts, is_first=number == 0)), rows, rng)

    def _cut(self, blocks: Iterator[Any], rows: int, rng: np.random.Generator | None) -> Iterator[Arrays]:
        """Collect rows in arrays of a fixed length, and yield minibatches of them when they are full."""
        form = self.dataset.form
        x, y = form.empty(rows)
        filled = 0
        for block in blocks:
            more_x, more_y = form.empty(len(block))
            block.write(more_x, more_y)
            at = 0
            while at < len(block):
                some = min(rows - filled, len(block) - at)
                x[filled : filled + some] = more_x[at : at + some]
                if y is not None and more_y is not None:
                    y[filled : filled + some] = more_y[at : at + some]
                filled, at = filled + some, at + some
                if filled == rows:
                    yield from self._batches(x, y, filled, rng)
                    filled = 0
        yield from self._batches(x, y, filled, rng)

    def _batches(
        self, x: NDArray[np.float32], y: NDArray[Any] | None, rows: int, rng: np.random.Generator | None
    ) -> Iterator[Arrays]:
        order = np.arange(rows) if rng is None else rng.permutation(rows)
        for begin in range(0, rows, self._batch_size):
            some = order[begin : begin + self._batch_size]
            yield (x[some],) if y is None else (x[some], y[some])


def open_dataset(
    url: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    classes: Sequence[str | int] = (),
    shard: Site | None = None,
    image_size: tuple[int, int] | None = None,
    cache: Cache | None = None,
) -> Dataset:
    """Open a data set in files, without reading its rows yet.

    `url` names a file, a folder or a pattern at `hdfs://`, `webhdfs://`, `s3://` or on this machine.
    `columns` are the features in their order, all but the label where they are not given. `classes` are the
    values of the label in the order of their numbers; without them, `y` holds the label's own numbers. Of
    `shard.count` sites that read the same data, each row belongs to exactly one. Images are scaled to
    `image_size`, height and width, where it is given. With a `cache`, remote files are read from local
    copies.

    Raises StorageError where the files cannot be read, TaskError for what they hold, and ConfigError for a
    request that makes no sense.
    """
    for name, given, kind in (("shard", shard, Site), ("cache", cache, Cache)):
        if not isinstance(given, (kind, type(None))):
            raise ConfigError(f"{name}= must be a {kind.__name__}, not {given!r}")
    names = None if columns is None else _in_order("columns", columns)
    return opened(url, Wanted(names, label, _in_order("classes", classes), image_size), shard, cache)


def _in_order(argument: str, given: Sequence[Item]) -> tuple[Item, ...]:
    # A set is in another order in each process.
    if isinstance(given, (list, tuple)):
        return tuple(given)
    raise ConfigError(f"{argument}= must be a list, since its order counts, not {given!r}")


def opened(
    url: str | os.PathLike[str], wanted: Wanted, shard: Site | None = None, cache: Cache | None = None
) -> Dataset:
    """Open a data set as `open_dataset` does."""
    location = locate(url)
    found = location.files()
    module, name = _format(found)
    if wanted.image_size and name != "ImageSource":
        raise ConfigError(f"image_size= scales images, and {found[0].url} is none: leave it out")
    source: Source = getattr(module, name)(_files(location, cache), found, wanted, shard or Site())
    return Dataset(location.url, source)


def columns_in(url: str | os.PathLike[str]) -> "Columns":
    """Return the columns of the first file of a data set by name, and what each holds.

    Raises TaskError, StorageError as `open_dataset` does.
    """
    location = locate(url)
    found = location.files()
    module, _ = _format(found)
    if not hasattr(module, "columns_in"):
        raise TaskError(f"{found[0].url} is no table of columns: name Parquet or CSV files")
    columns: Columns = module.columns_in(_files(location, None), found)
    return columns


def _files(location: Location, cache: Cache | None) -> Any:
    """Return the files; their module knows pyarrow, which `locate` has found to be there."""
    return importlib.import_module(f"{_MODULES}.opening").Files(location, cache)


def _format(files: Sequence[StoredFile]) -> tuple[Any, str]:
    """Return the module and the name of what reads these files.

    Raises TaskError for several formats and for an unknown one, ConfigError for a library that is missing.
    """
    formats = {_reader_of(file): file for file in files}
    if len(formats) > 1:
        one, other = list(formats.values())[:2]
        raise TaskError(
            f"{one.url} and {other.url} are of two formats: name the files of one, as in *.parquet"
        )
    [(module, name)] = formats
    try:
        return importlib.import_module(module), name
    except ImportError as error:
        raise ConfigError(
            f"{files[0].url} needs a library that is not installed: pip install 'fluffle[storage]' ({error})"
        ) from error


def _reader_of(file: StoredFile) -> tuple[str, str]:
    for end, reader in FORMATS.items():
        if file.path.lower().endswith(end):
            return reader
    raise TaskError(
        f"{file.url} is of no known format: the name of a file must end with {', '.join(FORMATS)}"
    )


def on_plain_pages(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a new array on pages of ordinary size.

    numpy asks Linux for huge ones, and with these it takes a third longer to read 1 GB into an array.
    """
    size_bytes = prod(shape) * np.dtype(np.float32).itemsize
    memory = mmap.mmap(-1, max(1, size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float32, prod(shape)).reshape(shape)


def _resize(array: NDArray[Any] | None, rows: int) -> None:
    """Change the number of rows in place: the system moves pages, and nothing is copied twice."""
    if array is not None and len(array) != rows:
        array.resize((rows, *array.shape[1:]), refcheck=False)
