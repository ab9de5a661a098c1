"""Which part of the model a worker trains: its last layers, as many as it was told, or as many as fit."""

from itertools import accumulate
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

from fluffle.checked_task import CheckedTask
from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle_worker.pace.batch import Memory

log = get_logger(__name__)

AUTO: Final = "auto"
# So many rounds of a part say whether it fits.
ROUNDS_PER_PART = 2
# What training a parameter takes at least: a gradient, and two moments as Adam has them, in float32.
BYTES_PER_PARAMETER = 12


def parse_train_share(given: object) -> object:
    """Return a share as a number, or "auto"; raises ValueError for anything else."""
    if given == AUTO:
        return given
    try:
        share = float(str(given))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"must be above 0 and at most 1, or auto, not {given!r}")
    return share


TrainShare = Annotated[float | Literal["auto"], BeforeValidator(parse_train_share)]


class TrainedPart:
    """The last layers that a worker trains and sends, all of them by default; `layout` is theirs.

    With "auto" the search begins with the last layer, so that a device with little memory can begin at all.
    Each part that fits is followed by one of twice as many tensors, up to the whole model. The first part
    that does not fit ends the search, and the one before it is kept.
    """

    def __init__(self, task: CheckedTask, whole: Layout, share: TrainShare = 1.0) -> None:
        """Let the task train this part; `whole` is the layout of its model.

        Raises TaskError when the task cannot train a part, or not one of this share.
        """
        self.layout = whole
        self.is_settled = share != AUTO
        self._task, self._whole = task, whole
        trained = [spec.size for spec in whole.tensors if spec.group == "trained"]
        # Parameters of the last tensor, of the last two, and so on.
        self._sizes = list(accumulate(reversed(trained)))
        self._tensors = self._rounds = 0
        # Of this part, and of the one before it, which fits; 0 if there is none.
        self._share = self._before = 0.0
        if share == AUTO:
            self._enlarge()
        elif share < 1:
            self._train_last(share)

    def note_round(self) -> None:
        """Count a round of this part, be it ended or aborted."""
        self._rounds += 1

    def choose(self, *, too_slow: str, memory: Memory) -> bool:
        """Choose the part of the next round, and tell whether it is another one.

        `too_slow` says why the last rounds were, empty if they were not.
        """
        if self.is_settled or self._rounds < ROUNDS_PER_PART:
            return False
        if why := too_slow or _too_much(memory, 0):
            return self.step_back(why)
        if self.layout.size == self._whole.size:
            self._settle("it is the whole model")
            return False
        more = self._sizes[self._twice() - 1] - self.layout.size
        if why := _too_much(memory, BYTES_PER_PARAMETER * more):
            self._settle(why)
            return False
        self._enlarge()
        return True

    def step_back(self, why: str) -> bool:
        """Return to the part before this one, which does not fit; False where there is none such."""
        if self.is_settled:
            return False
        if self._before:
            self._train_last(self._before)
        self._settle(why)
        return bool(self._before)

    def _twice(self) -> int:
        """Return the number of tensors to try next."""
        return min(max(1, 2 * self._tensors), len(self._sizes))

    def _enlarge(self) -> None:
        """Train twice as many tensors, or as many more as make a larger part."""
        self._before, size = self._share, self.layout.size if self._share else 0
        while not self._share or self.layout.size <= size:
            self._tensors = self._twice()
            try:
                self._train_last(self._sizes[self._tensors - 1] / self._whole.size)
            except TaskError:
                # So few tensors are less than the last layer, or leave out what only this site can train.
                if self._tensors == len(self._sizes):
                    raise

    def _train_last(self, share: float) -> None:
        self.layout = self._task.train_last(share)
        self._share, self._rounds = share, 0
        log.info(
            "training the last layers alone"
            if self.layout.size < self._whole.size
            else "training all layers",
            first=self.layout.tensors[0].name,
            parameters=self.layout.size,
            of=self._whole.size,
            share=round(self.layout.size / self._whole.size, 4),
        )

    def _settle(self, why: str) -> None:
        self.is_settled = True
        log.info("the trained part keeps its size", parameters=self.layout.size, because=why)


def _too_much(memory: Memory, more: int) -> str:
    """Say that with so many more bytes the process would take more than it may; empty if it would not."""
    if memory.most is None or memory.limit is None or memory.most + more <= memory.limit:
        return ""
    needed = memory.most + more
    return f"more would need some {needed >> 20} MiB of memory, and {memory.limit >> 20} may be taken"
