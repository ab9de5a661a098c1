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
from fluffle.table_model import TableModel
from fluffle.whole_file import write_whole

# The format keeps no order: its library sorts by the width of the dtype, then by name.
LAYOUT_KEY, FORMAT_KEY = "fluffle.layout", "fluffle.format"
FORMAT = "2"
# The dtypes of a model's tensors by their names in the format.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
DTYPES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
DTYPES |= {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}


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
        "table": layout.table and layout.table.as_list(),
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
    with _reading(path), safe_open(path, framework="numpy") as file:  # which checks the whole header
        metadata = file.metadata() or {}
        lying = {name: file.get_slice(name) for name in file.offset_keys()}
        found = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in lying.items()}
    if (version := metadata.get(FORMAT_KEY)) not in (None, FORMAT):
        raise ConfigError(
            f"{path} is a model file of format {version}, and this Fluffle reads format {FORMAT}: write it "
            "again with this version"
        )
    try:
        return _layout(found, json.loads(metadata.get(LAYOUT_KEY, "{}")))
    except (LayoutError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a damaged layout: {error}") from error


def _layout(found: Mapping[str, tuple[str, tuple[int, ...]]], said: Mapping[str, Any]) -> Layout:
    groups = said.get("tensors", [(name, "trained") for name in found])
    if unknown := found.keys() - {name for name, _ in groups}:
        raise LayoutError(f"it lacks {some_of(unknown)}")
    tensors = tuple(_spec(name, *found[name], group) for name, group in groups)
    frozen, table = (said.get(name) for name in ("frozen", "table"))
    return Layout(tensors, frozen and FrozenPart(*frozen), table and TableModel.from_list(table))


def _spec(name: str, dtype: str, shape: tuple[int, ...], group: SharedGroup) -> TensorSpec:
    if dtype not in DTYPES:
        raise LayoutError(f"the tensor {name!r} is of the type {dtype}, which no model may have")
    is_statistic = DTYPES[dtype] in INTEGERS
    return TensorSpec(name, shape, DTYPES[dtype], "statistic" if is_statistic else group)


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
