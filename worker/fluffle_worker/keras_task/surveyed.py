"""The statistics of a site's training data for a survey: after the cleaning steps, and before rows are drawn.

Rows that the steps drop or hold out are not in them. Values that a step has filled count as missing.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.survey.columns import ColumnSums, is_of_input
from fluffle.survey.statistics import DataStatistics, statistics_of_chunks
from fluffle.task import Site
from fluffle_worker.data import DataSteps
from fluffle_worker.data.holding_out import held_out_rows
from fluffle_worker.data.missing import labelled
from fluffle_worker.data.pipeline import take_steps
from fluffle_worker.data.rows import Rows, labels_of, read_rows
from fluffle_worker.keras_task.backend import KerasModel
from fluffle_worker.keras_task.data import BatchedData, Minibatch, read_data
from fluffle_worker.keras_task.losses import name_of_loss

log = get_logger(__name__)

ROWS_AT_ONCE = 2**14
NO_NUMBERS = "a survey needs inputs that are numbers, and train_data returned none"
_WARNED_OF: set[int] = set()
Leaf = NDArray[np.generic]
# The inputs of some rows, by name: one without a name, or those of a tuple or a dictionary.
Inputs = dict[str, Leaf]
Chunks = Callable[[], Iterator[Inputs]]


@dataclass(frozen=True, slots=True, eq=False)
class _Arrays:
    """The inputs of all rows as numbers, the names of their columns, and the labels."""

    inputs: dict[str, Any]
    columns: dict[str, tuple[str, ...]]
    y: Any


def statistics_of_site(
    call: Callable[[], object], steps: DataSteps | None, *, site: Site, classes: int
) -> DataStatistics:
    """Call `train_data`, and return the statistics of what it returns; `classes` is 0 for data without them.

    Raises TaskError, which says what was expected, for data that cannot be surveyed.
    """
    found: list[_Arrays] = []

    def note(parts: Minibatch) -> Minibatch:
        found.append(_cleaned(parts, steps, site))
        # Nobody reads what becomes of it.
        return (np.zeros(1, np.float32),)

    training = read_data("train_data", call, note)
    if isinstance(training, BatchedData):
        statistics = _of_stream(training, classes)
    else:
        statistics = _of_arrays(found[0], classes)
    if beyond := statistics.beyond_float32:
        raise TaskError(
            f"train_data returned values in the column {beyond[0]!r} that are too large for float32, in "
            "which models compute: correct them, or clip them with the data step outliers"
        )
    return statistics


def classes_of(model: KerasModel) -> int:
    """Return how many classes a compiled model tells apart; 0 for a regression, and for several outputs."""
    shape, loss = getattr(model, "output_shape", None), name_of_loss(model.loss)
    if "crossentropy" not in loss or not isinstance(shape, tuple) or len(shape) != 2:
        return 0
    # Several outputs of a binary loss are labels that do not exclude each other.
    is_multi_label = loss.startswith("binary") and shape[-1] > 1
    return 0 if is_multi_label else max(2, int(shape[-1]))


def require_fit(model: KerasModel, statistics: DataStatistics) -> None:
    """Raise TaskError when a SurveyNormalization of a model is for another number of columns."""
    for layer in _normalizations(model):
        columns = [each for each in statistics.names if is_of_input(each, layer.of)]
        if len(columns) != layer.mean.shape[0]:
            whose = f"the input {layer.of!r} of train_data" if layer.of else "train_data"
            raise TaskError(
                f"the layer {layer.name} scales {layer.mean.shape[0]} columns, and {whose} has "
                f"{len(columns)}: put it directly behind its input, and name that in "
                "SurveyNormalization(of=...) where there are several"
            )


def warn_if_unset(model: KerasModel) -> None:
    """Warn, once for each process, of layers that scale by a survey where there is none."""
    for layer in _normalizations(model):
        if id(layer) not in _WARNED_OF and layer.changes_nothing:
            _WARNED_OF.add(id(layer))
            log.warning(
                "a layer changes nothing, since this federation has no survey: start its aggregator with "
                "--survey",
                layer=layer.name,
            )


def _normalizations(model: KerasModel) -> list[Any]:
    # Whoever has such a layer has imported its module.
    module = sys.modules.get("fluffle_worker.keras_task.normalization")
    return [
        each for each in model._flatten_layers() if module and isinstance(each, module.SurveyNormalization)
    ]


def _cleaned(parts: Minibatch, steps: DataSteps | None, site: Site) -> _Arrays:
    if steps is not None:
        prepared = take_steps(
            read_rows(parts),
            steps.model_copy(update={"balance": "none"}),
            site=site.index,
            share=site.validation,
            split_seed=site.seed,
        )
        rows, filled = prepared.train, prepared.missing
        inputs = dict(_without_texts(_inputs(rows.x, lambda leaf: leaf)))
        if filled is not None:
            # Only floats have values that are missing.
            inputs = {"": np.where(filled.reshape(rows.x.shape), rows.x.dtype.type(np.nan), rows.x)}
        return _Arrays(inputs, {"": rows.columns}, rows.y)
    columns: dict[str, tuple[str, ...]] = {}
    inputs = {}
    read = _inputs(parts[0], lambda leaf: read_rows((leaf,)))
    for name, rows in read:
        for _, leaf in _without_texts([(name, rows.x)]):
            inputs[name], columns[name] = leaf, rows.columns
    y = read_rows((parts[1],)).x if len(parts) > 1 and not _is_text(parts[1]) else None
    if site.validation and inputs:
        given = np.asarray(parts[1]) if len(parts) > 1 and hasattr(parts[1], "__array__") else None
        count = next(iter(inputs.values())).shape[0]
        trained = ~held_out_rows(given, count, site.validation, split_seed=site.seed, site=site.index)
        inputs = {name: each[trained] for name, each in inputs.items()}
        y = y[trained] if isinstance(y, np.ndarray) else None
    if isinstance(y, np.ndarray):
        has_label = labelled(Rows(y, y))
        inputs, y = {name: each[has_label] for name, each in inputs.items()}, y[has_label]
    return _Arrays(inputs, columns, y)


def _of_arrays(arrays: _Arrays, classes: int) -> DataStatistics:
    if not arrays.inputs:
        raise TaskError(NO_NUMBERS)
    counts = _class_counts([arrays.y], classes) if classes else None
    return _merged_inputs(lambda: _slices(arrays.inputs), arrays.columns, counts)


def _of_stream(training: BatchedData, classes: int) -> DataStatistics:
    def chunks() -> Iterator[Inputs]:
        for x, *_ in training.one_pass(0, None):
            yield {name: leaf for name, leaf in _inputs(x, np.asarray) if not _is_text(leaf)}

    labels = (minibatch[1] if len(minibatch) > 1 else None for minibatch in training.one_pass(0, None))
    return _merged_inputs(chunks, {}, _class_counts(labels, classes) if classes else None)


def _merged_inputs(
    chunks: Chunks, columns: dict[str, tuple[str, ...]], classes: tuple[int, ...] | None
) -> DataStatistics:
    """Return the statistics of all inputs; tables are counted together, in two passes."""
    first = next(chunks(), None)
    if not first:
        raise TaskError(NO_NUMBERS)
    widths = {name: leaf.shape[-1] if leaf.ndim > 1 else 1 for name, leaf in first.items()}
    flat = [name for name, leaf in first.items() if leaf.ndim <= 2]
    groups = [each for each in (flat, *([name] for name in first if name not in flat)) if each]
    sums: dict[str, tuple[ColumnSums, ...]] = {}
    rows = 0
    for group in groups:
        found = statistics_of_chunks(partial(_of_group, chunks, group))
        rows, left = found.rows, found.columns
        for name in group:
            sums[name], left = left[: widths[name]], left[widths[name] :]
    names = [
        label
        for name, width in widths.items()
        for label in _labels(name, columns.get(name) or tuple(map(str, range(width))))
    ]
    merged = tuple(column for name in widths for column in sums[name])
    return DataStatistics.of(rows, names, merged, classes)


def _of_group(chunks: Chunks, group: list[str]) -> Iterator[Leaf]:
    return (_beside(each, group) for each in chunks())


def _beside(inputs: Inputs, group: list[str]) -> Leaf:
    if len(group) == 1:
        leaf = inputs[group[0]]
        return leaf if leaf.ndim > 1 else leaf.reshape(-1, 1)
    return np.concatenate([inputs[name].reshape(len(inputs[name]), -1) for name in group], axis=1)


def _labels(name: str, columns: tuple[str, ...]) -> list[str]:
    if not name:
        return list(columns)
    return [name] if len(columns) == 1 else [f"{name}/{column}" for column in columns]


def _inputs(x: Any, leaf: Callable[[Any], Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each input of a model with its name: that of a dictionary, the place in a tuple, or none."""
    if isinstance(x, dict):
        parts = {str(key): each for key, each in x.items()}
    elif isinstance(x, tuple | list) and x and all(getattr(each, "shape", ()) for each in x):
        parts = {str(at): each for at, each in enumerate(x)}
    else:
        yield name, leaf(x)
        return
    for key, each in parts.items():
        yield from _inputs(each, leaf, f"{name}/{key}" if name else key)


def _without_texts(inputs: Iterable[tuple[str, Leaf]]) -> Iterator[tuple[str, Leaf]]:
    for name, leaf in inputs:
        if leaf.dtype.kind in "US":
            log.info("the survey leaves out an input that is text", input=name)
        else:
            yield name, leaf


def _is_text(leaf: Any) -> bool:
    dtype = np.dtype(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)
    if dtype.kind == "O":
        return any(isinstance(each, str | bytes) for each in np.asarray(leaf).reshape(-1)[:1])
    return dtype.kind in "US"


def _slices(inputs: dict[str, Any]) -> Iterator[Inputs]:
    """Yield some rows after the other, dense."""
    for start in range(0, next(iter(inputs.values())).shape[0], ROWS_AT_ONCE):
        part = {name: each[start : start + ROWS_AT_ONCE] for name, each in inputs.items()}
        yield {name: each.toarray() if hasattr(each, "toarray") else each for name, each in part.items()}


def _class_counts(labels: Any, classes: int) -> tuple[int, ...] | None:
    """Return the rows of each class, None where some rows have no single one."""
    counts = np.zeros(classes, np.int64)
    for some in labels:
        found = None if some is None else labels_of(np.asarray(some), any_whole=True)
        if found is None:
            return None
        if found.counts.size > classes and found.counts[classes:].any():
            raise TaskError(
                f"train_data returned the label {found.of_rows.max()}, and the model's outputs stand for "
                f"the labels 0 to {classes - 1}: correct the labels, or give the model more outputs"
            )
        counts[: found.counts.size] += found.counts[:classes]
    return tuple(counts.tolist())
