"""Secure aggregation with networks that users bring: batch normalization and dropout, an embedding and a GRU.

secretflow #1264 and #1009: masking failed on a model with batch normalization, whose counter is an integer.
"""

from dataclasses import replace

import numpy as np
import pytest
from builders import a_version
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, send, take_the_lead
from securing import EPOCH, NAMES, PLAN, Helper, a_secure_config, go_on
from tasks import broken_site_task

from fluffle.checked_task import CheckedTask
from fluffle.record import ModelVersion
from fluffle.secure.masking import whole_numbers
from fluffle.task import Site
from fluffle.update import UpdateId
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.round import minibatch_seed, train_round

WORKERS = ("w1", "w2", "w3")
ROUNDS = 6


def trained_versions(task: KerasTask) -> list[ModelVersion]:
    """Train at three sites in turn; masked updates go to the leader, and helpers open their sums."""
    model = CheckedTask(task).model()
    flat = model.layout.flatten(model.weights)
    first = replace(
        a_version(layout=model.layout),
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
    )
    config = a_secure_config(first=first)
    server = a_server(config)
    answering = [Helper(name, server, config) for name in NAMES]
    history = [newest(server, config)]
    site_task = CheckedTask(task)
    site_task.model()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        for number in range(1, ROUNDS + 1):
            for index, name in enumerate(WORKERS):
                # The fourth site, which has broken data, is not there.
                site_task.prepare(Site(index=index, count=len(WORKERS) + 1, split="iid"))
                trained = train_round(
                    site_task,
                    history[-1],
                    {},
                    update_id=UpdateId(name, "run", number),
                    seed=minibatch_seed(index, number),
                    progress=lambda _done, _total: None,
                )
                random = np.random.default_rng([index, number])
                numbers = whole_numbers(trained.vector, trained.update.statistics, PLAN, random)
                send(server, config, EPOCH.masked(trained.update, numbers))
            go_on(leader, broker, answering)
            history.append(newest(server, config))
            assert history[-1].updates == number * len(WORKERS)
    return history


@pytest.mark.parametrize(("task", "least"), [(broken_site_task.table, 0.9), (broken_site_task.sequence, 0.8)])
def test_a_masked_federation_learns_with_statistics_and_integers_in_the_model(
    task: KerasTask, least: float
) -> None:
    history = trained_versions(task)

    accuracy = max(float(task.evaluate(version.weights)["accuracy"]) for version in history[-3:])
    assert accuracy > least
    variances = [np.asarray(each) for name, each in history[-1].weights.items() if "variance" in name]
    assert all(float(each.min()) >= 0 for each in variances)
    # Integers, such as a generator's seed, never leave a site.
    assert history[-1].integers == history[0].integers
    moved = not np.array_equal(history[-1].statistics, history[0].statistics)
    assert moved == bool(history[0].statistics.size)
