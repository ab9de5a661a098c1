"""Models in `.safetensors` files: named arrays in their order, and the layout that says their groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fluffle.errors import ConfigError, LayoutError
from fluffle.model import FrozenPart, Layout, TensorSpec, Weights
from fluffle.whole_file import write_whole

# The format itself keeps no order: its library writes the widest dtype first, then by name.
LAYOUT_KEY, FORMAT_KEY = "fluffle.layout", "fluffle.format"
FORMAT = "2"


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """What a file holds: the tensors of a layout, by name."""

    layout: Layout
    weights: Mapping[str, NDArray[np.generic]]


def write_model(
    path: Path, weights: Weights, about: Mapping[str, str] = {}, *, layout: Layout | None = None
) -> None:
    """Write named arrays and free text about them; whoever reads `path` sees the old file or the new one.

    `layout` says their groups; without it all float tensors are trained. Raises LayoutError for tensors of
    another layout, ConfigError when the file cannot be written.
    """
    layout = layout or Layout.of(weights)
    layout.require_weights(weights)
    contiguous = {spec.name: np.asarray(weights[spec.name], order="C") for spec in layout.tensors}
    described = {
        "tensors": [[spec.name, spec.group] for spec in layout.tensors],
        "frozen": layout.frozen and [layout.frozen.tensors, layout.frozen.parameters, layout.frozen.digest],
    }
    metadata = {**about, FORMAT_KEY: FORMAT, LAYOUT_KEY: json.dumps(described)}
    write_whole(path, [save(contiguous, metadata)])


def read_model(path: Path) -> Mapping[str, NDArray[np.generic]]:
    """Return the named arrays of a file in the order in which they were written; see `read_model_file`."""
    return read_model_file(path).weights


def read_model_file(path: Path) -> ModelFile:
    """Read a file with the layout of its tensors.

    In a file of another program all float tensors are trained, and have the order in which they lie there.
    Raises ConfigError when there is no such file, when it is no safetensors file, or when it is of another
    version of this format.
    """
    try:
        weights = load_file(path)
        header = _header(path)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no model file {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the model file {path}: {error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error
    metadata = header.pop("__metadata__", {})
    if (found := metadata.get(FORMAT_KEY)) is None:
        as_they_lie = sorted(header, key=lambda name: int(header[name]["data_offsets"][0]))
        ordered = {name: weights[name] for name in as_they_lie}
        return ModelFile(Layout.of(ordered), ordered)
    if found != FORMAT:
        raise ConfigError(
            f"{path} is a model file of format {found}, and this Fluffle reads format {FORMAT}: write it "
            "again with this version"
        )
    try:
        layout = _layout(json.loads(metadata[LAYOUT_KEY]), weights)
        layout.require_weights(weights)
    except (LayoutError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a damaged layout: {error}") from error
    return ModelFile(layout, {spec.name: weights[spec.name] for spec in layout.tensors})


def _layout(described: Mapping[str, Any], weights: Weights) -> Layout:
    tensors = (
        TensorSpec(name, weights[name].shape, weights[name].dtype.name, group)
        for name, group in described["tensors"]
    )
    return Layout(tuple(tensors), described["frozen"] and FrozenPart(*described["frozen"]))


def _header(path: Path) -> dict[str, Any]:
    """Read the JSON header: the first eight bytes are its length."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header
