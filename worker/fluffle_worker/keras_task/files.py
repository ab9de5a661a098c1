"""`.keras` files: whether one holds this model, and LoRA adapters with which training can go on.

No code or class in a file is looked at. Of a model with LoRA, Keras saves the kernel plus the product of the
adapters, and loads both adapters as zeros: such a model never trains again, since the gradient of each is a
multiple of the other. So the file becomes one of a model without adapters, which Keras trains like any other,
and on which enable_lora may be called again; kernels and adapters are added to it as a member of their own.
"""

import importlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fluffle.errors import ConfigError, LayoutError, TaskError
from fluffle.model import Layout, Weights
from fluffle.safetensors_file import read_model, write_model
from fluffle_worker.keras_task.backend import KerasModel, KerasVariable

CONFIG, ADAPTERS = "config.json", "fluffle_lora.safetensors"


def require_same_model(model: KerasModel, path: Path) -> None:
    """Raise TaskError when there is no such `.keras` file, LayoutError when it holds another model.

    Keras itself ignores layers that only the file has.
    """
    found = _stored_tensors(path)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.keras"
        model.save(own)
        expected = _stored_tensors(own)
    for name in sorted(expected.keys() | found.keys()):
        there, here = found.get(name, "nothing"), expected.get(name, "nothing")
        if there != here:
            raise LayoutError(f"{path} holds another model: {there} at {name}, where the task has {here}")


def weights_with_adapters(model: KerasModel, named: Mapping[str, KerasVariable]) -> dict[str, KerasVariable]:
    """Return the weights of all layers on which enable_lora was called, by name: kernels and adapters."""
    theirs = {
        id(variable)
        for layer in model._flatten_layers()
        if getattr(layer, "lora_enabled", False)
        for variable in layer.weights
    }
    return {name: variable for name, variable in named.items() if id(variable) in theirs}


def add_adapters(path: Path, weights: Weights) -> None:
    """Make a saved `.keras` file one of a model without adapters, and add `weights` to it as they are."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, adapters = Path(folder) / path.name, Path(folder) / ADAPTERS
        write_model(adapters, weights)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(plain, "w") as target:
            for member in source.infolist():
                if member.filename == CONFIG:
                    config = _without_lora(json.loads(source.read(member)))
                    target.writestr(member, json.dumps(config))
                else:
                    with source.open(member) as old, target.open(member, "w", force_zip64=True) as new:
                        shutil.copyfileobj(old, new)
            target.write(adapters, ADAPTERS)
        plain.replace(path)


def read_adapters(path: Path, expected: Weights) -> Weights:
    """Return what `add_adapters` has added to a file; nothing when Keras itself has written it.

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


def _stored_tensors(path: Path) -> dict[str, str]:
    """Return the dtype and shape of each tensor in a `.keras` file except the optimizer's, by name."""
    if path.suffix != ".keras" or not path.is_file():
        raise TaskError(f"there is no file {path} that ends in .keras")
    h5py = importlib.import_module("h5py")
    found: dict[str, str] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = f"{item.dtype}{list(item.shape)}"

    try:
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content) as stored:
            stored.visititems(note)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise TaskError(f"{path} is no model in Keras's own format: {error}") from error
    return found


def _without_lora(config: object) -> object:
    if isinstance(config, dict):
        kept = {key: each for key, each in config.items() if key not in ("lora_rank", "lora_alpha")}
        return {key: _without_lora(each) for key, each in kept.items()}
    return [_without_lora(each) for each in config] if isinstance(config, list) else config
