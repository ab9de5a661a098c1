"""What a worker keeps for itself between rounds, in its folder and over restarts; none of it is sent.

local.safetensors      the task's local weights, such as a personal head
optimizer.safetensors  the optimizer's state, where the plan says keep_optimizer
first-term             the first term of the federation that all of this, and the spool, belong to
survey                 the attempt of the federation's survey that the worker has answered
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, LayoutError
from fluffle.logs import get_logger
from fluffle.model import Layout, Weights
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.safetensors_file import read_model, write_model
from fluffle.whole_file import write_whole

log = get_logger(__name__)

# The optimizer's state may be twice as large as the model. Writing it takes at most one part in WRITING_SHARE
# of the time, unless it takes less than QUICK_S.
QUICK_S, WRITING_SHARE = 0.1, 20

LOCAL, OPTIMIZER, FIRST_TERM = "local.safetensors", "optimizer.safetensors", "first-term"
SURVEY = "survey"


class SiteState:
    """A worker's local weights and the state of its optimizer, as of its last usable round."""

    def __init__(self, folder: Path, task: CheckedTask, initial: Weights) -> None:
        """Read what an earlier process left in a worker's folder; `initial` are the task's own local weights.

        Raises ConfigError when the local weights are those of another model, or cannot be read.
        """
        self._folder = folder
        self._task = task
        self._initial = initial
        self._has_optimizer = False
        self._write_optimizer_at = 0.0
        self._first_term = _read_number(folder / FIRST_TERM)
        # The attempt of the survey that is answered.
        self.answered = _read_number(folder / SURVEY)
        is_kept = initial and (folder / LOCAL).exists()
        self.local = read_local_weights(folder, initial) if is_kept else initial

    def start_round(self, plan: Plan) -> None:
        """Restore the task's optimizer if the plan keeps it, and the last round did not leave it in place."""
        if plan.keep_optimizer and not self._has_optimizer:
            path = self._folder / OPTIMIZER
            try:
                self._task.restore_optimizer(read_model(path) if path.exists() else {})
            except LayoutError as error:
                log.warning("starting with a fresh optimizer: the file is of another one", because=str(error))
                self._task.restore_optimizer({})
        self._has_optimizer = plan.keep_optimizer

    def end_round(self, plan: Plan, local: Weights) -> None:
        """Keep the results of a round, in memory and on disk; on a full disk a restart uses older ones.

        An optimizer's state that takes long to write is written after some rounds only.
        """
        if local:
            self.local = dict(local)
            with self._writing(LOCAL) as path:
                write_model(path, local)
        began = time.monotonic()
        if plan.keep_optimizer and began >= self._write_optimizer_at:
            if state := self._task.optimizer_state():
                with self._writing(OPTIMIZER) as path:
                    write_model(path, state)
            ended = time.monotonic()
            self._write_optimizer_at = ended + WRITING_SHARE * max(0.0, ended - began - QUICK_S)

    def forget_round(self) -> None:
        """Drop the optimizer's state of an unusable round: its moments may be NaN as well."""
        self._has_optimizer = False

    def belongs_to(self, version: ModelVersion) -> bool:
        """Tell whether a version is of the federation that this state is from.

        `fluffle federation reset` starts with another first term. A folder without one goes with any.
        """
        return self._first_term in {None, version.terms[0].term}

    def remember(self, version: ModelVersion) -> None:
        """Note which federation this state is from."""
        if self._first_term != version.terms[0].term:
            self._first_term = version.terms[0].term
            with self._writing(FIRST_TERM) as path:
                write_whole(path, [str(self._first_term).encode()])

    def note_answered(self, attempt: int) -> None:
        """Note that the broker has the answer to the survey."""
        self.answered = attempt
        with self._writing(SURVEY) as path:
            write_whole(path, [str(attempt).encode()])

    def start_over(self) -> None:
        """Go back to the task's own local weights and to a fresh optimizer."""
        self.local, self._has_optimizer, self.answered = self._initial, False, None
        for name in (LOCAL, OPTIMIZER, SURVEY):
            (self._folder / name).unlink(missing_ok=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        try:
            yield self._folder / name
        except ConfigError as error:
            log.warning("cannot write a file: a restart would use an older one", because=str(error))


def read_local_weights(folder: Path, initial: Weights) -> Weights:
    """Return the local weights in a worker's folder; `initial` says which there must be.

    Raises ConfigError when there are none, when they are those of another model, or cannot be read.
    """
    weights = read_model(folder / LOCAL)
    if difference := Layout.of(initial).difference(Layout.of(weights), whose="the task's model"):
        raise ConfigError(
            f"{folder / LOCAL} holds the local weights of another model ({difference}): delete the file to "
            "start with fresh ones, or go back to the task that it was trained with"
        )
    return weights


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii")) if path.exists() else None
    except (OSError, ValueError) as error:
        log.warning("cannot read a file, and continuing without it", file=str(path), because=str(error))
        return None
