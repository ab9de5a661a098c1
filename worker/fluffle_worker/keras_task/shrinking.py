"""Smaller models for devices that only infer: pruned, quantized to int8 by Keras, in a packed file.

What is written is read again, and it is that model which is evaluated. Keras 3.15 writes files that it cannot
read: of quantized layers inside other layers than models, such as MultiHeadAttention, a wrapper or a layer of
one's own (as in keras #21378). Such layers are left as they are.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluffle.errors import TaskError
from fluffle.model import some_of
from fluffle.task_errors import in_one_line
from fluffle_worker.keras_task.backend import KerasLayer, KerasModel, KerasVariable, import_keras
from fluffle_worker.keras_task.steps import Metrics
from fluffle_worker.keras_task.tensors import copies_of
from fluffle_worker.pruning import pruned

Evaluate = Callable[[KerasModel], Metrics]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking:
    """What is done: pruning to a sparsity in (0, 1), or None, and then int8 quantization, or not."""

    prune: float | None = None
    quantize: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in a file: its metrics on held-out data, empty without data; its bytes; its share of zeros."""

    metrics: Metrics
    size_bytes: int
    zeros: float


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A model before and after, the layers that were quantized, and those with kernels that were not."""

    before: ModelFacts
    after: ModelFacts
    quantized: Sequence[str]
    not_quantized: Sequence[str]


def shrink(whole: Path, out: Path, shrinking: Shrinking, evaluate: Evaluate | None) -> Shrunk:
    """Write a smaller model to `out`, a `.keras` file, from the one in the file `whole`.

    Both are counted as packed files. Without `evaluate` there are no metrics. Raises TaskError when there is
    nothing to prune or to quantize, and when Keras cannot read the model.
    """
    model = _read(whole)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        written = Path(folder) / out.name
        _write(model, written)
        before = _facts(model, written, evaluate)
        if shrinking.prune is not None:
            _prune(model, shrinking.prune)
        quantized = _quantize(model) if shrinking.quantize else []
        _write(model, written)
        after = _facts(_read(written), written, evaluate)
        written.replace(out)
    left = {layer.name for layer in model._flatten_layers() if _kernels_of(layer)} - set(quantized)
    return Shrunk(before, after, quantized, sorted(left) if shrinking.quantize else [])


def _read(path: Path) -> KerasModel:
    try:
        return import_keras().models.load_model(path)
    except Exception as error:  # whatever Keras or a class of the user's raises
        raise TaskError(
            f"Keras cannot read the model that it has written: {in_one_line(error)} (your own classes and "
            "functions need keras.saving.register_keras_serializable)"
        ) from error


def _write(model: KerasModel, path: Path) -> None:
    """Write a model with a fresh optimizer, packed: zeros would take as much room as other numbers."""
    # Keras could not read an optimizer again that has moments of kernels which are int8 now.
    model.optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    packed = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            with source.open(member) as old, target.open(member.filename, "w", force_zip64=True) as new:
                shutil.copyfileobj(old, new)
    packed.replace(path)


def _facts(model: KerasModel, path: Path, evaluate: Evaluate | None) -> ModelFacts:
    weights = copies_of(model.weights)
    zeros = sum(int(np.count_nonzero(each == 0)) for each in weights)
    share = zeros / max(1, sum(each.size for each in weights))
    return ModelFacts(evaluate(model) if evaluate else {}, path.stat().st_size, share)


def _prune(model: KerasModel, sparsity: float) -> None:
    kernels = [kernel for layer in model._flatten_layers() for kernel in _kernels_of(layer)]
    if not kernels:
        raise TaskError("--prune: no layer of the model has a kernel of floats, so there is nothing to prune")
    for kernel, values in zip(kernels, copies_of(kernels), strict=True):
        kernel.assign(pruned(values, sparsity))


def _kernels_of(layer: KerasLayer) -> list[KerasVariable]:
    """Return the kernels of floats that a layer itself has."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables)
    return [each for each in own if each.name.endswith("kernel") and "float" in str(each.dtype)]


def _quantize(model: KerasModel) -> list[str]:
    """Quantize what Keras can write and read again, and return the names of these layers."""
    layers = import_keras().layers
    # Not their subclasses, which Keras refuses.
    known = layers.Dense, layers.EinsumDense, layers.Embedding
    chosen = {
        id(layer): layer.name
        for layer in _layers_of_models(model)
        if type(layer) in known and layer.quantization_mode is None
    }
    if not chosen:
        inner = (each for each in model._flatten_layers() if each._trainable_variables)
        kinds = {type(layer).__name__ for layer in inner}
        raise TaskError(
            "--quantize: Keras quantizes Dense, EinsumDense and Embedding layers, and can read them again if "
            "they stand in a Sequential or functional model, not inside another layer. This model has none "
            f"that is not quantized already; it has {some_of(kinds)}"
        )
    model.quantize("int8", filters=lambda layer: id(layer) in chosen)
    return list(chosen.values())


def _layers_of_models(model: KerasModel) -> Iterator[KerasLayer]:
    """Yield the layers of a Sequential or functional model, and of such models in it; of others none."""
    if type(model).__name__ not in ("Sequential", "Functional"):
        return
    for layer in model.layers:
        if isinstance(layer, import_keras().Model):
            yield from _layers_of_models(layer)
        else:
            yield layer
