"""A worker's local weights, such as a personal head: in its folder, over restarts, and never sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Layout, Weights
from fluffle.safetensors_file import read_model, write_model

log = get_logger(__name__)

FILE = "local.safetensors"


class LocalWeights:
    """The newest local weights; those of the task's own model until there are others."""

    def __init__(self, folder: Path, initial: Weights) -> None:
        """Read what an earlier process left in a worker's folder.

        Raises ConfigError when those are the local weights of another model, or cannot be read.
        """
        self._path = folder / FILE
        self.weights: Mapping[str, NDArray[np.generic]] = dict(initial)
        if initial and self._path.exists():
            self.weights = read_local_weights(folder, initial)

    def keep(self, weights: Weights) -> None:
        """Take on new local weights and write them down; a full disk costs only the next start."""
        if not weights:
            return
        self.weights = dict(weights)
        try:
            write_model(self._path, weights)
        except ConfigError as error:
            log.warning(
                "the local weights are not on disk: a restart begins with older ones", because=str(error)
            )


def read_local_weights(folder: Path, initial: Weights) -> Mapping[str, NDArray[np.generic]]:
    """Return the local weights in a worker's folder; `initial` says which there must be.

    Raises ConfigError when there are none, when they are those of another model, or cannot be read.
    """
    weights = read_model(folder / FILE)
    if difference := Layout.of(initial).difference(Layout.of(weights)):
        raise ConfigError(
            f"{folder / FILE} holds the local weights of another model ({difference}): delete the file to "
            "begin anew, or go back to the task that it was trained with"
        )
    return weights
