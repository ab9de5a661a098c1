"""LoRA in `.keras` files, so that training can go on from one.

Keras adds the product of the adapters to the kernel when it saves, and loads both adapters as zeros: such a
model never trains again, since the gradient of each is a multiple of the other. Here the file becomes one of
a model without adapters, which Keras trains like any other, and on which enable_lora may be called anew. The
kernels and adapters themselves stand beside it, for a federation that goes on from the file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fluffle.errors import ConfigError, LayoutError, TaskError
from fluffle.model import Layout, Weights
from fluffle.safetensors_file import read_model, write_model
from fluffle_worker.keras_task.backend import KerasModel

if TYPE_CHECKING:
    import keras

CONFIG, ADAPTERS = "config.json", "fluffle_lora.safetensors"


def weights_with_adapters(
    model: KerasModel, named: Mapping[str, keras.Variable]
) -> dict[str, keras.Variable]:
    """Return the weights of all layers on which enable_lora was called, by name: kernels and adapters."""
    theirs = {
        id(variable)
        for layer in model._flatten_layers()
        if getattr(layer, "lora_enabled", False)
        for variable in layer.weights
    }
    return {name: variable for name, variable in named.items() if id(variable) in theirs}


def put_adapters_beside(path: Path, weights: Weights) -> None:
    """Make a saved `.keras` file one of a model without adapters, and put `weights` into it as they are."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, beside = Path(folder) / path.name, Path(folder) / ADAPTERS
        write_model(beside, weights)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(plain, "w") as target:
            for member in source.infolist():
                if member.filename == CONFIG:
                    config = _without_lora(json.loads(source.read(member)))
                    target.writestr(member, json.dumps(config))
                else:
                    with source.open(member) as old, target.open(member, "w", force_zip64=True) as new:
                        shutil.copyfileobj(old, new)
            target.write(beside, ADAPTERS)
        plain.replace(path)


def adapters_beside(path: Path, expected: Weights) -> Weights:
    """Return what `put_adapters_beside` has put into a file; nothing when it is a file of Keras's own.

    Raises LayoutError when the file holds other tensors than `expected`, TaskError when it is damaged.
    """
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        if ADAPTERS not in archive.namelist():
            return {}
        try:
            weights = read_model(Path(archive.extract(ADAPTERS, folder)))
        except ConfigError as error:
            raise TaskError(f"{path} is damaged: {error}") from error
    if difference := Layout.of(expected).difference(Layout.of(weights), whose="the task's model"):
        raise LayoutError(f"{path} holds adapters of another model: {difference}")
    return weights


def _without_lora(config: object) -> object:
    if isinstance(config, dict):
        return {key: _without_lora(each) for key, each in _kept(config)}
    return [_without_lora(each) for each in config] if isinstance(config, list) else config


def _kept(config: dict[str, object]) -> Iterator[tuple[str, object]]:
    return ((key, each) for key, each in config.items() if key not in ("lora_rank", "lora_alpha"))
