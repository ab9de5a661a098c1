"""What a site's own round makes of a version is compared with that version, not with another model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_version
from working import CountingTask, Scripted, a_federation, a_worker, publish_versions, sent

from fluffle.checked_task import CheckedTask
from fluffle.model import Weights
from fluffle.sites import SiteEvaluation
from fluffle.task import MeanOf, Validated


class Validating(CountingTask):
    """A task whose metric is its first weight."""

    def validate(self, weights: Weights) -> Validated:
        """See ValidatingTask."""
        return Validated(4, {"height": MeanOf(4 * float(weights[self.name].astype(float)[0]), 4)})


def evaluations(folder: Path, average_decay: float) -> Sequence[SiteEvaluation]:
    """Let a worker train one round from version 1, and return what it has evaluated."""
    task = Validating()
    model = CheckedTask(task).model()
    first = replace(a_version(1, layout=model.layout), vector=np.full(2, 3.0, np.float32))
    first = replace(first, statistics=np.zeros(0, np.float32), integers=bytes(8))
    if average_decay:
        first = replace(first, average_decay=average_decay, average=np.full(2, 1.0, np.float32))
    server = a_federation(first)

    def script(_server: object, updates: int) -> None:
        if len(sent(server)) >= 3:
            publish_versions(server, replace(first, version=2, finished="enough"))

    a_worker(task, folder).work(lambda: Scripted(server, script))
    return [message for message in sent(server) if isinstance(message, SiteEvaluation)]


def test_the_own_round_is_compared_with_the_version_that_it_began_from(tmp_path: Path) -> None:
    *_, found = evaluations(tmp_path, 0.0)

    assert [each.value for each in (*found.metrics, *found.tuned)] == [3.0, 4.0]


@pytest.mark.parametrize("average_decay", [0.5, 0.9])
def test_it_is_not_compared_with_an_average_that_it_did_not_begin_from(
    tmp_path: Path, average_decay: float
) -> None:
    found = evaluations(tmp_path, average_decay)

    assert {each.metrics[0].value for each in found} == {1.0}
    assert not any(each.tuned for each in found)
