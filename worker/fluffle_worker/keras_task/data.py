"""What a task's data functions return, as minibatches.

Accepted are arrays, lists, data frames and sparse matrices in a tuple (x, y) or (x, y, sample_weight), which
are shuffled and cut; a finite `tf.data.Dataset`; a `PyDataset`; and other collections of minibatches that can
be read again and again, such as PyTorch's DataLoader. An error names the function that returned the data.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.task_errors import blamed_on
from fluffle_worker.keras_task.backend import import_keras, require_tensorflow

log = get_logger(__name__)

Minibatch = tuple[object, ...]

# The minibatches of a data set of unknown length are counted up to here; longer ones are taken for endless.
MAX_MINIBATCHES = 100_000
LOG_EVERY_MINIBATCHES = 10_000
# The values of tf.data's cardinality().
INFINITE, UNKNOWN = -1, -2
WANTED = "a tuple (x, y) or (x, y, sample_weight) of arrays, a finite tf.data.Dataset, or a PyDataset"
PARTS = ("x", "y", "sample_weight")


@runtime_checkable
class _Sparse(Protocol):
    """A scipy matrix or array in one of the sparse formats."""

    def tocsr(self) -> Any: ...

    def toarray(self) -> Any: ...


class ArrayData:
    """Arrays with the examples along the first axis; `parts` are (x,), (x, y) or (x, y, sample_weight).

    `counted` is how many of the examples count as the site's own.
    """

    def __init__(self, function: str, parts: Minibatch) -> None:
        self._tree = import_keras().tree
        named = zip(PARTS, parts, strict=False)
        self.parts = tuple(_converted(function, name, part) for name, part in named)
        arrays = self._tree.flatten(self.parts)
        self.is_sparse = any(isinstance(array, _Sparse) for array in arrays)
        lengths = sorted({int(array.shape[0]) for array in arrays})
        if len(lengths) != 1:
            raise TaskError(
                f"{function} must return arrays of one length, not of {lengths} (a list of arrays is one "
                "array for each input of the model; np.stack makes one array of it)"
            )
        self.examples = self.counted = lengths[0]

    def taken(self, function: str, which: NDArray[np.bool_]) -> "ArrayData":
        """Return some of the examples."""
        return ArrayData(function, self._tree.map_structure(lambda array: array[which], self.parts))

    def per_epoch(self, batch_size: int) -> int:
        """Return how many minibatches one pass over the data has."""
        return -(-self.examples // batch_size)

    def one_pass(self, batch_size: int, rng: np.random.Generator | None) -> Iterator[Minibatch]:
        """Pass over the data once, in an order drawn from `rng`, or in its own order without."""
        for rows in rows_of_one_pass(self.examples, batch_size, rng):
            yield self._tree.map_structure(lambda array, rows=rows: _dense(array[rows]), self.parts)


def joined(parts: Sequence[ArrayData]) -> ArrayData:
    """Return the data of several sites as one, in their order."""
    tree = import_keras().tree
    arrays = tree.map_structure(lambda *each: np.concatenate(each), *(one.parts for one in parts))
    return ArrayData("train_data", arrays)


@dataclass(slots=True)
class LabelRange:
    """The lowest and the highest of the labels or targets in y, and one of them where they are text.

    Several outputs, and what no array can be made of, are not looked at.
    """

    lowest: float = np.inf
    highest: float = -np.inf
    text: str = ""

    @classmethod
    def of(cls, parts: Minibatch) -> "LabelRange":
        """Return the range of one minibatch, or of all rows."""
        found = cls()
        found.add(parts)
        return found

    def add(self, parts: Minibatch) -> None:
        """Look at one more minibatch."""
        y = np.asarray(parts[1]) if len(parts) > 1 and hasattr(parts[1], "shape") else np.zeros(0)
        if not y.size:
            return
        if y.dtype.kind in "biuf":
            # Where a label is missing, a float is NaN.
            self.lowest = min(self.lowest, np.fmin.reduce(y, axis=None).item())
            self.highest = max(self.highest, np.fmax.reduce(y, axis=None).item())
        elif isinstance(first := y.reshape(-1)[0], str | bytes):
            self.text = first.decode(errors="replace") if isinstance(first, bytes) else str(first)


class BatchedData:
    """A data set that is divided into minibatches already; they are counted once.

    `labels` is the range of their labels, which is found in the same pass.
    """

    def __init__(self, function: str, data: Any) -> None:
        self.data = data
        self._function = function
        self._per_epoch = 0
        self.labels = LabelRange()
        rows: list[int] = []
        for minibatch in self.one_pass(0, None):
            if len(rows) == MAX_MINIBATCHES:
                raise TaskError(
                    f"{function} returned a data set that has not ended after {MAX_MINIBATCHES:,} "
                    "minibatches: is it endless? Cut it with take(n), or, if it does end, say its length "
                    "with apply(tf.data.experimental.assert_cardinality(n))"
                )
            for part in import_keras().tree.flatten(minibatch):
                if not getattr(part, "shape", ()):
                    raise TaskError(
                        f"{function} returned a data set that gives {type(part).__name__} in place of a "
                        "minibatch of arrays: it must give tuples (x, y) of arrays with the examples along "
                        "the first axis"
                    )
            rows.append(rows_of(minibatch))
            self.labels.add(minibatch)
            if len(rows) % LOG_EVERY_MINIBATCHES == 0:
                log.info("counting the examples of a data set", function=function, minibatches=len(rows))
        self._per_epoch, self.examples = len(rows), sum(rows)
        self.counted = self.examples

    @property
    def is_for_keras(self) -> bool:
        """Whether Keras itself can read it, on any backend and again and again."""
        return isinstance(self.data, import_keras().utils.PyDataset) or _cardinality(self.data) >= 0

    def per_epoch(self, _batch_size: int) -> int:
        """Return how many minibatches one pass has; the data set has its own batch size."""
        return self._per_epoch

    def one_pass(self, _batch_size: int, rng: np.random.Generator | None) -> Iterator[Minibatch]:
        """Pass over the data once; a data set that is not a sequence keeps its own order.

        Raises TaskError when the data set has become empty.
        """
        if hasattr(self.data, "__getitem__") and hasattr(self.data, "__len__"):
            length = len(self.data)
            for index in range(length) if rng is None else rng.permutation(length):
                yield _as_minibatch(self.data[int(index)])
            if rng is not None and hasattr(self.data, "on_epoch_end"):
                self.data.on_epoch_end()
            return
        is_empty = True
        for minibatch in self.data:
            is_empty = False
            yield _as_minibatch(minibatch)
        if is_empty and self._per_epoch:
            raise TaskError(
                f"the data set that {self._function} returned gave {self._per_epoch} minibatches once, and "
                "then none: it must give them each time that it is iterated"
            )


Minibatches: TypeAlias = ArrayData | BatchedData


def read_data(
    function: str, call: Callable[[], object], change: Callable[[Minibatch], Minibatch] = lambda parts: parts
) -> Minibatches:
    """Call one of a task's data functions, and return its data as minibatches.

    `change` gets the parts of arrays, (x,), (x, y) or (x, y, sample_weight), and returns others; it is not
    called for a data set that is divided into minibatches already.

    Raises TaskError that names the function when it raises, or returns data that cannot be used.
    """
    with blamed_on(function):
        try:
            data = call()
        except OSError as error:
            raise TaskError(f"{function} cannot read its data: {error}") from error
    with blamed_on(f"the data of {function}"):
        minibatches = _minibatches(function, data, change)
    if minibatches.examples == 0:
        raise TaskError(f"{function} returned no examples")
    return minibatches


def rows_of_one_pass(
    examples: int, batch_size: int, rng: np.random.Generator | None
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the examples in each minibatch of one pass over arrays."""
    order = np.arange(examples) if rng is None else rng.permutation(examples)
    for start in range(0, examples, batch_size):
        yield order[start : start + batch_size]


def endless(minibatches: Minibatches, batch_size: int, rng: np.random.Generator) -> Iterator[Minibatch]:
    """Pass over the data again and again, each time in another order."""
    while True:
        yield from minibatches.one_pass(batch_size, rng)


def rows_of(minibatch: Minibatch) -> int:
    """Return the number of examples in a minibatch."""
    return int(import_keras().tree.flatten(minibatch)[0].shape[0])


def _minibatches(function: str, data: Any, change: Callable[[Minibatch], Minibatch]) -> Minibatches:
    if isinstance(data, dict) or _is_array(data):
        data = (data,)
    if isinstance(data, tuple):
        return ArrayData(function, change(_given_parts(function, data)))
    if refusal := _refusal(data):
        raise TaskError(f"{function} returned {refusal}")
    return BatchedData(function, data)


def _refusal(data: Any) -> str:
    """Return what is wrong with data that is no tuple of arrays; empty for a finite data set."""
    if data is None:
        return f"None (no return statement?); it must return {WANTED}"
    if isinstance(data, list):
        return f"a list of {len(data)}; it must return {WANTED}: (x, y), not [x, y]"
    if isinstance(data, Iterator):
        return f"a {type(data).__name__}, which can be read only once; it must return {WANTED}"
    if _cardinality(data) == INFINITE:
        return "a tf.data.Dataset that never ends: leave out its repeat()"
    if getattr(data, "num_batches", 0) is None:
        return "a PyDataset that never ends: give it a length (num_batches, __len__)"
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        return f"{type(data).__name__}; it must return {WANTED}"
    leaves = import_keras().tree.flatten(getattr(data, "element_spec", None) or ())
    if any(hasattr(leaf, "shape") and leaf.shape.rank == 0 for leaf in leaves):
        return "a tf.data.Dataset of single examples: call batch(32) on it"
    return ""


def _given_parts(function: str, data: Minibatch) -> Minibatch:
    if not 1 <= len(data) <= len(PARTS):
        raise TaskError(f"{function} returned a tuple of {len(data)}; it must return {WANTED}")
    while len(data) > 1 and data[-1] is None:
        data = data[:-1]
    for name, part in zip(PARTS, data, strict=False):
        if part is None:
            raise TaskError(f"{function} returned None for {name}; it must return {WANTED}")
    return data


def _converted(function: str, name: str, part: Any) -> Any:
    """Return a part with arrays at its leaves; as in Keras, a list of arrays is one array for each input."""
    if isinstance(part, dict):
        if name == "sample_weight" and all(np.ndim(each) == 0 for each in part.values()):
            raise TaskError(
                f"{function}: sample_weight is a dictionary of one number for each class; give each example "
                "the weight of its class, as in np.array([weights[label] for label in y])"
            )
        return {key: _converted(function, f"{name}[{key!r}]", each) for key, each in part.items()}
    if isinstance(part, tuple | list) and part and all(np.ndim(each) and _is_array(each) for each in part):
        return tuple(_converted(function, f"{name}[{at}]", each) for at, each in enumerate(part))
    array = part.tocsr() if isinstance(part, _Sparse) else _array(function, name, part)
    # Floats get Keras's own precision, as in `Model.fit`.
    floatx = import_keras().config.floatx()
    return array.astype(floatx) if array.dtype.kind == "f" and array.dtype != floatx else array


def _array(function: str, name: str, part: Any) -> NDArray[np.generic]:
    try:
        array = part.to_numpy() if _is_data_frame(part) else np.asarray(part)
        if array.dtype == object and all(isinstance(each, str) for each in array.reshape(-1)):
            array = array.astype(str)
    except ValueError as error:
        raise TaskError(f"{function}: {name} cannot become an array: {error}") from error
    if array.dtype == object and array.ndim == 0:
        raise TaskError(f"{function}: {name} is a {type(part).__name__}, and must be an array")
    if array.dtype.kind not in "biufcUS":
        columns = [str(column) for column, dtype in getattr(part, "dtypes", {}).items() if dtype.kind == "O"]
        where = f" (in the columns {', '.join(columns[:5])})" if columns else ""
        raise TaskError(
            f"{function}: {name} holds {array.dtype}{where}, and Keras takes numbers or text; turn the rest "
            "into numbers, and fill in what is missing"
        )
    if array.dtype.kind in "US":
        require_tensorflow(f"{function}: {name} is text, which")
    if array.ndim == 0:
        raise TaskError(f"{function}: {name} is a single {array.dtype}; examples stand along the first axis")
    return array


def _is_array(data: object) -> bool:
    return hasattr(data, "__array__") or isinstance(data, _Sparse) or _is_data_frame(data)


def _is_data_frame(data: object) -> bool:
    """Tell whether this is a frame or series of pandas or polars, without importing either."""
    return hasattr(data, "to_numpy") and hasattr(data, "shape")


def _dense(array: Any) -> Any:
    return array.toarray() if isinstance(array, _Sparse) else array


def _cardinality(data: object) -> int:
    """Return how many minibatches a tf.data.Dataset has, INFINITE if it repeats for ever, else UNKNOWN."""
    cardinality = getattr(data, "cardinality", None)
    return int(cardinality()) if callable(cardinality) else UNKNOWN


def _as_minibatch(given: object) -> Minibatch:
    """Return a minibatch as Keras packs it: (x,), (x, y) or (x, y, sample_weight)."""
    if isinstance(given, list):  # as PyTorch's DataLoader gives it
        return tuple(np.asarray(each) for each in given)
    return given if isinstance(given, tuple) else (given,)
