"""Models in `.safetensors` files, with their tensors in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fluffle.errors import ConfigError
from fluffle.model import Weights
from fluffle.whole_file import write_whole

# The format itself keeps no order: its library writes the widest dtype first, then by name.
ORDER_KEY = "fluffle.order"


def write_model(path: Path, weights: Weights, metadata: Mapping[str, str] = {}) -> None:
    """Write named arrays and free text about them; whoever reads `path` sees the old file or the new one.

    Raises ConfigError when the file cannot be written.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in weights.items()}
    content = save(contiguous, {**metadata, ORDER_KEY: json.dumps(list(weights))})
    write_whole(path, [content])


def read_model(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of a file in the order in which they were written.

    A file of another program, which says nothing of an order, keeps the one in which its tensors lie there.
    Raises ConfigError when there is no such file or when it is no safetensors file.
    """
    try:
        weights = load_file(path)
        order = _order(path)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no model file {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read the model file {path}: {error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error
    return {name: weights[name] for name in order}


def _order(path: Path) -> list[str]:
    """Read the names of a file's tensors: eight bytes say how long the JSON header is that follows."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    as_they_lie = sorted(header, key=lambda name: int(header[name]["data_offsets"][0]))
    written = json.loads(metadata.get(ORDER_KEY, "[]"))
    return written if sorted(written) == sorted(as_they_lie) else as_they_lie
