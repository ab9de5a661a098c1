"""What was reported of differential privacy elsewhere, tried here."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import a_version, an_update
from leading import a_server, aggregate, newest
from privately import a_privacy_plan, a_private_config, a_private_version
from working import CountingTask, Scripted, a_federation, a_worker, ends_after, sent_updates, version_of

from fluffle.checked_task import CheckedTask
from fluffle.compression import decompressed
from fluffle.errors import ConfigError
from fluffle.model import Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.settings import load_settings
from fluffle_aggregator.settings import AggregatorSettings

TWO_TENSORS = Layout((TensorSpec("kernel", (2,), "float32"), TensorSpec("bias", (2,), "float32")))


def test_the_clip_is_for_the_whole_update_and_not_for_each_tensor() -> None:
    """fedbiomed/fedbiomed#1443: the clip was applied to each parameter."""
    plan = a_privacy_plan(epsilon=1000.0, clip=1.0, updates=1, bands=1)
    first = a_version(values=(0.0,) * 4, layout=TWO_TENSORS)
    config = a_private_config(plan, first=first)
    long = [an_update(worker, 1, values=(9.0,) * 4, layout=TWO_TENSORS) for worker in ("w1", "w2")]
    server = a_server(config, *long)

    aggregate(server, config)

    # Both have one direction. Tensors that were clipped one by one would come to the root of 2.
    moved = float(np.linalg.norm(newest(server, config).vector))
    assert moved == pytest.approx(1.0, abs=5 * plan.std)
    assert 5 * plan.std < 0.2


def test_with_noise_in_the_aggregator_a_worker_adds_none(tmp_path: Path) -> None:
    """fedbiomed/fedbiomed#1443: workers took part in the noise too."""
    first = a_private_version(
        a_privacy_plan(clip=0.1), version_of(CheckedTask(CountingTask()).model(), Plan())
    )
    server = a_federation(first)
    over = a_private_version(a_privacy_plan(clip=0.1), a_version(9, finished="enough"))

    a_worker(CountingTask(), tmp_path).work(lambda: Scripted(server, ends_after(1, over)))

    [sent] = sent_updates(server)
    assert set(decompressed(sent.vector).tolist()) == {1.0}


def test_what_is_spent_follows_from_the_noise_and_ends_with_the_target() -> None:
    """raptor7197/caamas#36: a sum of noise multipliers stood for epsilon, and nothing ended at the target."""
    plan = a_privacy_plan(epsilon=8.0, updates=4)

    spent = [plan.epsilon_after(updates) for updates in range(plan.updates + 1)]

    assert spent[0] == 0
    assert all(before < after for before, after in pairwise(spent))
    assert spent[-1] == pytest.approx(8.0)
    assert spent[1] > 8.0 / 4


@pytest.mark.parametrize("clip", ["inf", "nan", "0"])
def test_a_clip_that_clips_nothing_is_refused(clip: str) -> None:
    """meta-pytorch/opacus#177: a clip of infinity made the noise and then the model NaN."""
    given = {"dp": "central", "dp_epsilon": 8, "dp_max_updates": 4, "dp_secret": "s", "dp_clip": clip}

    with pytest.raises(ConfigError, match="--dp-clip must be a number above 0"):
        load_settings(AggregatorSettings, {**given, "task": "digits"})
