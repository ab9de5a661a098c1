"""What a worker keeps for itself between rounds, in its folder and over restarts; none of it is sent.

local.safetensors      the task's local weights, such as a personal head
optimizer.safetensors  the optimizer's state, where the plan says keep_optimizer
first-term             the term in which the federation began that all of this, and the spool, belong to
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, LayoutError
from fluffle.logs import get_logger
from fluffle.model import Layout, Weights
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model, write_model
from fluffle.whole_file import write_and_rename

log = get_logger(__name__)

# The optimizer's state may be twice the model. Where writing it takes longer than this, it takes at most one
# part in so many of the time.
QUICK_S, WRITING_SHARE = 0.1, 20

LOCAL, OPTIMIZER, FIRST_TERM = "local.safetensors", "optimizer.safetensors", "first-term"


class SiteState:
    """A worker's local weights and the state of its optimizer, as of its last round that went well."""

    def __init__(self, folder: Path, task: CheckedTask, initial: Weights) -> None:
        """Read what an earlier process left in a worker's folder; `initial` are the task's own local weights.

        Raises ConfigError when the local weights are those of another model, or cannot be read.
        """
        self._folder = folder
        self._task = task
        self._is_optimizer_ours = False
        self._write_optimizer_at = 0.0
        self._initial = dict(initial)
        self._first_term = _read_first_term(folder)
        self.local: Mapping[str, NDArray[np.generic]] = dict(initial)
        if initial and (folder / LOCAL).exists():
            self.local = read_local_weights(folder, initial)

    def start_round(self, *, keep_optimizer: bool) -> None:
        """Let the task's optimizer go on from where it was, if the plan says so."""
        if not keep_optimizer:
            self._is_optimizer_ours = False
        elif not self._is_optimizer_ours:
            self._restore_optimizer()

    def end_round(self, local: Weights, *, keep_optimizer: bool) -> None:
        """Take on what a round gave, and write it down; a full disk costs only the next start.

        An optimizer's state that takes long to write is written after some rounds only: a restart goes on
        from the one that was written last.
        """
        if local:
            self.local = dict(local)
            self._write(LOCAL, local)
        if keep_optimizer:
            self._is_optimizer_ours = True
            began = time.monotonic()
            if began >= self._write_optimizer_at:
                self._write(OPTIMIZER, self._task.optimizer_state())
                ended = time.monotonic()
                self._write_optimizer_at = ended + WRITING_SHARE * max(0.0, ended - began - QUICK_S)

    def belongs_to(self, version: ModelVersion) -> bool:
        """Tell whether a version is of the federation that this state is from.

        After `fluffle federation reset` the history of terms begins with another one. A new folder, or one of
        an older Fluffle, goes with any.
        """
        return self._first_term in {None, version.terms[0].term}

    def remember(self, version: ModelVersion) -> None:
        """Note of which federation this state is from now on."""
        if self._first_term == version.terms[0].term:
            return
        self._first_term = version.terms[0].term
        try:
            write_and_rename(
                self._folder / f"{FIRST_TERM}.part",
                self._folder / FIRST_TERM,
                [str(self._first_term).encode()],
                mode=0o600,
            )
        except OSError as error:
            log.warning("not on disk: a restart begins without it", file=FIRST_TERM, because=error.strerror)

    def begin_anew(self) -> None:
        """Go back to the task's own local weights and to a fresh optimizer."""
        self.local, self._is_optimizer_ours = dict(self._initial), False
        for name in (LOCAL, OPTIMIZER):
            (self._folder / name).unlink(missing_ok=True)

    def forget_round(self) -> None:
        """Go back to what was before a round that went wrong: its moments may be NaN as well."""
        self._is_optimizer_ours = False

    def _restore_optimizer(self) -> None:
        path = self._folder / OPTIMIZER
        state = read_model(path) if path.exists() else {}
        try:
            self._task.restore_optimizer(state)
        except LayoutError as error:
            log.warning("the optimizer begins anew: its state is another one's", because=str(error))
            self._task.restore_optimizer({})
        self._is_optimizer_ours = True

    def _write(self, name: str, weights: Weights) -> None:
        if not weights:
            return
        try:
            write_model(self._folder / name, weights)
        except ConfigError as error:
            log.warning("not on disk: a restart begins with an older one", file=name, because=str(error))


def _read_first_term(folder: Path) -> int | None:
    try:
        return int((folder / FIRST_TERM).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning(
            "cannot be read, and is taken for missing", file=str(folder / FIRST_TERM), because=str(error)
        )
        return None


def read_local_weights(folder: Path, initial: Weights) -> Mapping[str, NDArray[np.generic]]:
    """Return the local weights in a worker's folder; `initial` says which there must be.

    Raises ConfigError when there are none, when they are those of another model, or cannot be read.
    """
    weights = read_model(folder / LOCAL)
    if difference := Layout.of(initial).difference(Layout.of(weights), whose="the task's model"):
        raise ConfigError(
            f"{folder / LOCAL} holds the local weights of another model ({difference}): delete the file to "
            "begin anew, or go back to the task that it was trained with"
        )
    return weights
