"""`--train-share auto`: a worker trains as many of the last layers as its time and memory allow."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from working import CountingTask, updates_of

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError, TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.settings import load_arguments
from fluffle.task import Progress, Trained
from fluffle.update import WeightUpdate
from fluffle_worker.pace.batch import Memory
from fluffle_worker.pace.share import BYTES_PER_PARAMETER, ROUNDS_PER_PART, TrainedPart
from fluffle_worker.settings import WorkerSettings

MIB = 2**20
SLOW = "a round takes too long"
ANY_MEMORY = Memory()


class Layers(CountingTask):
    """A model of layers with two tensors each, of which all after `first` are trained."""

    def __init__(self, sizes: Sequence[int], *, most: int = 0, step_s: float = 0.0, local: int = -1) -> None:
        """`most` layers fit into memory, 0 is all; a step takes `step_s` for each; one may be `local`."""
        super().__init__()
        self._sizes, self._most, self._step_s, self._local = sizes, most, step_s, local
        self.first = 0
        self.asked: list[float] = []

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        weights: dict[str, NDArray[np.generic]] = {}
        for layer, size in enumerate(self._sizes):
            weights |= {
                f"{layer}/kernel": np.zeros(size, np.float32),
                f"{layer}/bias": np.zeros(1, np.float32),
            }
        return weights

    def train_last(self, share: float) -> str:
        """See PartialTask."""
        self.asked.append(share)
        total = sum(self._sizes) + len(self._sizes)
        for first in range(len(self._sizes)):
            if sum(self._sizes[first:]) + len(self._sizes) - first <= share * total * (1 + 1e-9):
                if self._local >= 0 and first > self._local:
                    break
                self.first = first
                return f"{first}/kernel"
        raise TaskError("--train-share leaves nothing to train")

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        layers = len(self._sizes) - self.first
        if self._most and layers > self._most:
            raise MemoryError
        for step in range(1, 5):
            time.sleep(self._step_s * layers)
            progress(step, 4)
        trained = {
            name: array.astype(np.float32) + np.float32(int(name.partition("/")[0]) >= self.first)
            for name, array in weights.items()
        }
        return Trained(trained, examples=10, metrics={"loss": 0.5})


def a_part(task: Layers) -> TrainedPart:
    checked = CheckedTask(task)
    return TrainedPart(checked, checked.model().layout, "auto")


def searched(part: TrainedPart, task: Layers, *, fitting: int, memory: Memory = ANY_MEMORY) -> list[int]:
    """Let rounds be trained until the part is found, and return the layers that each part had."""
    layers = []
    while not part.is_settled:
        layers.append(len(task._sizes) - task.first)
        for _ in range(ROUNDS_PER_PART):
            assert not part.choose(too_slow="", memory=memory)
            part.note_round()
        part.choose(too_slow=SLOW if layers[-1] > fitting else "", memory=memory)
        assert len(layers) < 20
    return layers


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), fitting=st.integers(1, 20))
def test_the_part_grows_from_the_last_layer_until_it_does_not_fit(sizes: list[int], fitting: int) -> None:
    task = Layers(sizes)

    tried = searched(part := a_part(task), task, fitting=fitting)

    assert tried[0] == 1
    assert tried == sorted(set(tried))
    assert len(tried) <= math.ceil(math.log2(2 * len(sizes))) + 1
    fit = [layers for layers in tried if layers <= fitting]
    assert len(sizes) - task.first == max(fit)
    if fitting >= len(sizes):
        assert part.layout.size == sum(sizes) + len(sizes)
    else:
        assert max(tried) > fitting


def test_the_part_is_not_enlarged_where_its_gradients_and_moments_would_need_too_much_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    sizes = [4 * MIB, MIB, 1000]
    for room, layers in ((0, 1), (BYTES_PER_PARAMETER * (MIB + 2), 2), (BYTES_PER_PARAMETER * 6 * MIB, 3)):
        task = Layers(sizes)
        searched(a_part(task), task, fitting=9, memory=Memory(100 * MIB, 100 * MIB + room))
        assert len(sizes) - task.first == layers
    assert "more would need some 112 MiB of memory, and 100 may be taken" in caplog.text
    assert "it is the whole model" in caplog.text


def test_a_part_that_has_taken_too_much_memory_is_given_up_for_the_one_before_it() -> None:
    task = Layers([5, 5, 5, 5])
    part = a_part(task)
    for most in (50, 150):
        for _ in range(ROUNDS_PER_PART):
            part.note_round()
        assert part.choose(too_slow="", memory=Memory(most * MIB, 100 * MIB))

    assert part.is_settled
    assert task.first == 3


def test_a_smallest_part_that_does_not_fit_is_trained_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    task = Layers([5, 5, 5])

    assert searched(a_part(task), task, fitting=0) == [1]

    assert task.first == 2
    assert SLOW in caplog.text


def test_layers_that_only_this_site_can_train_are_in_each_part() -> None:
    task = Layers([5] * 8, local=4)

    assert searched(a_part(task), task, fitting=8)[0] == 4


def test_a_task_that_cannot_train_a_part_is_an_error_that_says_so() -> None:
    task = CheckedTask(CountingTask())

    with pytest.raises(TaskError, match=r"cannot train a part .* leave out --train-share"):
        TrainedPart(task, task.model().layout, "auto")


@pytest.mark.parametrize("wrong", ["half", "0", "1.5", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused_with_what_is_allowed(wrong: str) -> None:
    with pytest.raises(
        ConfigError, match=f"train_share must be above 0 and at most 1, or auto, not '{wrong}'"
    ):
        load_arguments(WorkerSettings, {"task": "digits", "train_share": wrong})


def layers_of(updates: Sequence[WeightUpdate], layers: int) -> list[int]:
    return [layers - update.first_tensor // 2 for update in updates]


def test_a_worker_sends_more_and_more_layers_up_to_the_whole_model(tmp_path: Path) -> None:
    updates = updates_of(Layers([5] * 6), Plan(), tmp_path, updates=10, train_share="auto")

    assert layers_of(updates, 6) == [1, 1, 2, 2, 4, 4, 6, 6, 6, 6]


def test_a_worker_whose_memory_runs_out_trains_that_round_again_with_the_layers_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    updates = updates_of(Layers([5] * 6, most=3), Plan(), tmp_path, updates=8, train_share="auto")

    assert layers_of(updates, 6) == [1, 1, 2, 2, 2, 2, 2, 2]
    assert "the trained part keeps its size" in caplog.text
    assert "MemoryError" in caplog.text


def test_a_worker_keeps_the_layers_whose_rounds_fit_into_the_plans_seconds(tmp_path: Path) -> None:
    # Four steps of one layer take 0.04 s, and those of all eight 0.32 s.
    plan = Plan(round_seconds=0.24, min_steps=4)

    updates = updates_of(Layers([5] * 8, step_s=0.01), plan, tmp_path, updates=12, train_share="auto")

    assert layers_of(updates, 8)[-1] == 4
    assert 8 in layers_of(updates, 8)
