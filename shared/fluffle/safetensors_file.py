"""Models in `.safetensors` files: named arrays in their order, and the layout that says their groups."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from fluffle.errors import ConfigError, LayoutError
from fluffle.model import INTEGERS, FrozenPart, Layout, SharedGroup, TensorSpec, Weights, some_of
from fluffle.whole_file import write_whole

# The format keeps no order: its library sorts by the width of the dtype, then by name.
LAYOUT_KEY, FORMAT_KEY = "fluffle.layout", "fluffle.format"
FORMAT = "2"
# The dtypes of a model's tensors by their names in the format.
DTYPES: Mapping[str, str] = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """The content of a file: a layout, and its tensors by name."""

    layout: Layout
    weights: Mapping[str, NDArray[np.generic]]


def write_model(
    path: Path, weights: Weights, about: Mapping[str, str] = {}, *, layout: Layout | None = None
) -> None:
    """Write named arrays and free text about them; a reader of `path` sees the old file or the new one.

    `layout` has their groups; without it all float tensors are trained. Raises LayoutError for tensors of
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

    In a file of another program all float tensors are trained, in the order of the file. Raises ConfigError
    when the file does not exist, is no safetensors file, or has another version of our format.
    """
    layout = read_layout(path)
    with _reading(path):
        weights = load_file(path)
    return ModelFile(layout, {spec.name: weights[spec.name] for spec in layout.tensors})


def read_layout(path: Path) -> Layout:
    """Return the layout of a file without reading its tensors; see `read_model_file`."""
    with _reading(path), safe_open(path, framework="numpy"):  # which checks the whole header
        header = _header(path)
    metadata = header.pop("__metadata__", {})
    if (found := metadata.get(FORMAT_KEY)) not in (None, FORMAT):
        raise ConfigError(
            f"{path} is a model file of format {found}, and this Fluffle reads format {FORMAT}: write it "
            "again with this version"
        )
    try:
        return _layout(header, metadata.get(LAYOUT_KEY))
    except (LayoutError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a damaged layout: {error}") from error


def _layout(header: Mapping[str, Any], described: str | None) -> Layout:
    if described is None:
        as_they_lie = sorted(header, key=lambda name: int(header[name]["data_offsets"][0]))
        return Layout(tuple(_spec(name, header[name], "trained") for name in as_they_lie))
    said = json.loads(described)
    tensors = tuple(_spec(name, header[name], group) for name, group in said["tensors"])
    if unknown := header.keys() - {spec.name for spec in tensors}:
        raise LayoutError(f"it lacks {some_of(unknown)}")
    return Layout(tensors, said["frozen"] and FrozenPart(*said["frozen"]))


def _spec(name: str, described: Mapping[str, Any], group: SharedGroup) -> TensorSpec:
    dtype = DTYPES.get(described["dtype"])
    if dtype is None:
        raise LayoutError(f"the tensor {name!r} is of the type {described['dtype']}, which no model may have")
    is_statistic = dtype in INTEGERS
    return TensorSpec(name, tuple(described["shape"]), dtype, "statistic" if is_statistic else group)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"there is no model file {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the model file {path}: {error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error


def _header(path: Path) -> dict[str, Any]:
    """Read the JSON header: the first eight bytes are its length."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header
