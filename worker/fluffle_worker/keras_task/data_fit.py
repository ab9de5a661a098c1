"""Whether a model can take data: what Keras would say of it in shapes, or would turn into NaN on a GPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task.augment import Augmentation
from fluffle_worker.keras_task.backend import import_keras
from fluffle_worker.keras_task.data import ArrayData, LabelRange, Minibatches
from fluffle_worker.keras_task.losses import name_of_loss
from fluffle_worker.keras_task.model import BuiltModel


def require_data_fits(
    built: BuiltModel, function: str, data: Minibatches, steps: DataSteps | None = None
) -> None:
    """Raise TaskError, which names the function that returned the data, for data that a model cannot take.

    That is a y that is missing, a number of examples that cannot be divided into the model's minibatches,
    another number of columns than it has inputs, and labels that it has no output for. `steps` are those
    that the data has gone through.
    """
    if isinstance(data, ArrayData):
        _require_parts(built, function, data)
        _require_width(built, function, data.parts[0], indicator=steps is not None and steps.indicator)
    _require_known_labels(built, function, data)


def require_augmentable(built: BuiltModel, augmentation: Augmentation) -> None:
    """Raise TaskError for an augmentation that a model cannot train with, or that would change tokens."""
    if built.batch_size and augmentation.doubles:
        raise TaskError(
            "augment with mixup or cutmix trains on twice as many rows, and the model takes minibatches of "
            f"{built.batch_size} only (batch_shape): leave it out"
        )
    embedding = import_keras().layers.Embedding
    for layer in built.model._flatten_layers() if augmentation.is_of_integers else ():
        if isinstance(layer, embedding):
            raise TaskError(
                "augment changes numbers, and train_data returned whole numbers that the layer "
                f"{layer.name} reads as tokens: leave augment out"
            )


def axes_of_losses(built: BuiltModel) -> int:
    """Return how many axes the losses of a minibatch have: 1 for [rows], 2 for [rows, steps].

    Keras's losses have one axis less than the output. 1 where that is not known: for several outputs, and
    for a loss that is not Keras's own.
    """
    loss, shape = built.model.loss, getattr(built.model, "output_shape", None)
    is_known = isinstance(loss, str) or getattr(loss, "__module__", "").startswith("keras.")
    return max(1, len(shape) - 1) if is_known and isinstance(shape, tuple) else 1


def _require_parts(built: BuiltModel, function: str, data: ArrayData) -> None:
    if built.batch_size and data.examples % built.batch_size:
        raise TaskError(
            f"{function} returned {data.examples} examples, and the model takes minibatches of "
            f"{built.batch_size} only (batch_shape): return a multiple of {built.batch_size}"
        )
    if built.model.loss is not None and not _has_own_step(built) and len(data.parts) == 1:
        raise TaskError(
            f"{function} returned x without y, and the model is compiled with a loss: return (x, y)"
        )


def _require_width(built: BuiltModel, function: str, x: Any, *, indicator: bool) -> None:
    """Raise TaskError for a table [rows, columns] with more or fewer columns than the model can take."""
    inputs = getattr(built.model, "inputs", None) or []
    is_table = len(inputs) == 1 and len(inputs[0].shape) == 2 and len(getattr(x, "shape", ())) == 2
    if not is_table or _has_own_step(built):
        return
    found, wanted = x.shape[1], inputs[0].shape[1]
    if wanted is None or found == wanted:
        return
    rows = x[: built.batch_size or 1]
    try:
        # Some models take what they do not name, as an Embedding takes texts of any length.
        built.model(rows.toarray() if hasattr(rows, "toarray") else rows, training=False)
    except Exception as error:
        added = ""
        if indicator:
            added = f" (the data step indicator added {found // 2} of them)"
        raise TaskError(
            f"{function} gives {found} columns{added}, and the model takes {wanted}: change the shape of its "
            "input, or return as many columns as it takes"
        ) from error


def _require_known_labels(built: BuiltModel, function: str, data: Minibatches) -> None:
    """Raise TaskError for text, and labels that the model has no output for, of which a GPU makes NaN."""
    loss, shape = built.model.loss, getattr(built.model, "output_shape", None)
    if name_of_loss(loss) != "sparse_categorical_crossentropy" or not isinstance(shape, tuple):
        return
    if getattr(loss, "ignore_class", None) is not None:
        return
    labels = LabelRange.of(data.parts) if isinstance(data, ArrayData) else data.labels
    if labels.text:
        raise TaskError(
            f"{function} returned labels that are text, such as {labels.text[:40]!r}: number the classes "
            "from 0, in the same way at every site"
        )
    classes = shape[-1]
    if classes is None or (labels.lowest >= 0 and labels.highest < classes):
        return
    # Only now is it worth another pass over a data set to count them.
    minibatches = [data.parts] if isinstance(data, ArrayData) else data.one_pass(0, None)
    counts = (_outside(np.asarray(parts[1]), classes) for parts in minibatches)
    worst = labels.lowest if labels.lowest < 0 else labels.highest
    raise TaskError(
        f"{function} returned {sum(counts)} labels that the model has no output for, such as {worst}: its "
        f"{classes} outputs stand for the labels 0 to {classes - 1}; correct the labels, or give the model "
        "more outputs"
    )


def _has_own_step(built: BuiltModel) -> bool:
    """Tell whether the model has its own train_step, which may make anything of its data."""
    return type(built.model).train_step is not import_keras().Model.train_step


def _outside(labels: NDArray[Any], classes: int) -> int:
    return int(((labels < 0) | (labels >= classes)).sum())
