"""A worker's answer to a survey under secure aggregation: masked, kept until it is sent, and sent once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_broker import FakeServer
from secure_sites import PLAN, Site, a_site, registered
from secure_working import SecretTask, version
from working import TOPOLOGY, Scripted, a_federation, publish_versions, sent

from fluffle.pieces import Body
from fluffle.secure.key_files import WorkerKey
from fluffle.secure.surveyed import sums_in, survey_plan
from fluffle.survey import DataStatistics, SurveyResult, statistics_of
from fluffle.survey.messages import Survey
from fluffle.survey.result import result_of
from fluffle.task import Site as TaskSite
from fluffle.topology import MIB
from fluffle.update import WeightUpdate
from fluffle_worker.loop import Worker
from fluffle_worker.spool import open_spool

ROWS = np.arange(40.0).reshape(20, 2)


class Surveyed(SecretTask):
    """Has statistics, and notes what it is prepared with."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[SurveyResult | None] = []

    def prepare(self, site: TaskSite) -> int:
        """See Task."""
        self.prepared.append(site.statistics)
        return 20

    def statistics(self) -> DataStatistics:
        """See SurveyedTask."""
        return statistics_of(ROWS, names=["age", "pulse"])

    def use_statistics(self, statistics: SurveyResult) -> None:
        """See SurveyedTask."""


RESULT = result_of(Surveyed().statistics(), sites=2, min_count=2)
DONE = Survey(2, ("w1", "w2"), result=RESULT)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return a_site(tmp_path_factory.mktemp("keys"))


class DiedHere(Exception):
    pass


class Dying(Scripted):
    """A connection whose worker dies when it begins to send what is in its spool."""

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        if headers.get("kind") == "update":
            raise DiedHere
        super().publish(exchange, routing_key, body, headers)


def the_survey_then_the_end(server: FakeServer, sent_so_far: int) -> None:
    ends = sent_so_far == 2
    publish_versions(server, version(9 if ends else 1, survey=DONE, finished="enough" if ends else ""))


def test_the_answer_is_masked_and_says_in_the_clear_only_what_all_sites_have_in_common(
    site: Site, tmp_path: Path
) -> None:
    server, task = a_federation(version(survey=Survey(2))), Surveyed()
    with open_spool(tmp_path, worker="w1", max_bytes=16 * MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, keys=site.keys())
        worker.work(lambda: Scripted(server, the_survey_then_the_end))

    answer, update = sent(server)
    assert isinstance(answer, WeightUpdate)
    assert isinstance(update, WeightUpdate)
    assert answer.shape == task.statistics().shape
    assert (answer.codec, answer.examples, answer.revision) == ("masked32", 0, survey_plan(PLAN).revision)
    assert (update.shape, update.base_version) == (None, 1)
    # Under another mask: another id.
    assert answer.id != update.id
    assert task.prepared[-1] == RESULT
    sums = sums_in(site.numbers(answer), task.statistics().shape, 1)
    assert (sums.rows, [each.mean for each in sums.columns]) == (20, [19.0, 20.0])
    body = server.bodies(TOPOLOGY.updates.name)[0]
    for told in (b"age", b"pulse"):
        assert told in body
    assert np.array([20], "<i4").tobytes() not in body[:600]


def test_a_worker_that_died_before_its_answer_was_sent_sends_that_one_and_no_other(
    site: Site, tmp_path: Path
) -> None:
    server = a_federation(version(survey=Survey(2)))

    with open_spool(tmp_path, worker="w1", max_bytes=16 * MIB) as spool:
        worker = Worker(name="w1", task=Surveyed(), topology=TOPOLOGY, spool=spool, keys=site.keys())
        with pytest.raises(DiedHere):
            worker.work(lambda: Dying(server, the_survey_then_the_end))
    [kept] = list(tmp_path.glob("*.update"))
    masked = kept.read_bytes()

    with open_spool(tmp_path, worker="w1", max_bytes=16 * MIB) as spool:
        worker = Worker(name="w1", task=Surveyed(), topology=TOPOLOGY, spool=spool, keys=site.keys())
        worker.work(lambda: Scripted(server, the_survey_then_the_end))

    assert [getattr(each, "shape", None) is not None for each in sent(server)] == [True, False]
    assert server.bodies(TOPOLOGY.updates.name)[0] in masked


def test_an_answer_that_was_masked_for_an_epoch_that_is_over_is_masked_and_sent_again(
    site: Site, tmp_path: Path
) -> None:
    registry, _ = registered([WorkerKey.new("digits", "other")], epoch=2)
    second, plan = registry.model_copy(update={"workers": site.registry.workers}), replace(PLAN, epoch=2)

    def rotate_and_end(server: FakeServer, sent_so_far: int) -> None:
        if sent_so_far == 1:
            site.sign(second)
            publish_versions(server, version(1, plan, survey=Survey(2)))
        else:
            publish_versions(server, version(9, plan, finished="enough"))

    server = a_federation(version(survey=Survey(2)))
    with open_spool(tmp_path, worker="w1", max_bytes=16 * MIB) as spool:
        worker = Worker(name="w1", task=Surveyed(), topology=TOPOLOGY, spool=spool, keys=site.keys())
        worker.work(lambda: Scripted(server, rotate_and_end))

    answers = [each for each in sent(server) if isinstance(each, WeightUpdate)]
    assert [(each.epoch, each.shape is not None) for each in answers] == [(1, True), (2, True)]
