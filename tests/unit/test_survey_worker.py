"""A worker and a survey: it answers once, waits, prepares its data with the result, and then trains."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_version
from fake_broker import FakeServer
from working import TOPOLOGY, CountingTask, Scripted, a_federation, publish_versions, sent, sent_updates

from fluffle.errors import TaskError
from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.survey import DataStatistics, SurveyResult, statistics_of
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.survey.result import result_of
from fluffle.task import Site
from fluffle.topology import MIB
from fluffle_worker.evaluator import Evaluator
from fluffle_worker.loop import Worker, WorkerResult
from fluffle_worker.spool import open_spool

LAYOUT = Layout.of(CountingTask().initial_weights(0))
ROWS = np.arange(40.0).reshape(20, 2)


class Surveyed(CountingTask):
    """Notes what it is prepared with."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[SurveyResult | None] = []
        self.used: list[SurveyResult] = []

    def prepare(self, site: Site) -> int:
        """See Task."""
        self.prepared.append(site.statistics)
        return 20

    def statistics(self) -> DataStatistics:
        """See SurveyedTask."""
        return statistics_of(ROWS, names=["age", "pulse"])

    def use_statistics(self, statistics: SurveyResult) -> None:
        """See SurveyedTask."""
        self.used.append(statistics)


RESULT = result_of(Surveyed().statistics(), sites=2, min_count=2)


def version(number: int, survey: Survey | None, *, finished: str = "", term: int = 1) -> ModelVersion:
    record = a_version(number, values=[0.0] * 2, layout=LAYOUT, finished=finished, term=term)
    return replace(record, integers=bytes(8), survey=survey)


def work(
    server: FakeServer, folder: Path, task: CountingTask, happens: Callable[[FakeServer, int], None]
) -> WorkerResult:
    stop = threading.Event()
    with open_spool(folder, worker="w1", max_bytes=MIB) as spool:
        worker = Worker(name="w1", task=task, topology=TOPOLOGY, spool=spool, site=Site(index=3), stop=stop)
        return worker.work(lambda: Scripted(server, happens))


def the_survey_then_the_end(server: FakeServer, sent_so_far: int) -> None:
    """Publish the result when the worker has answered, and the end when it has sent an update."""
    if sent_so_far == 1:
        publish_versions(server, version(2, Survey(2, ("w1", "w2"), result=RESULT)))
    else:
        publish_versions(server, version(9, Survey(2, ("w1", "w2"), result=RESULT), finished="enough"))


def test_a_worker_answers_once_and_trains_on_data_that_is_prepared_with_the_result(tmp_path: Path) -> None:
    server, task = a_federation(version(0, Survey(2))), Surveyed()

    result = work(server, tmp_path, task, the_survey_then_the_end)

    answer, *updates = sent(server)
    assert isinstance(answer, SiteStatistics)
    assert (answer.worker, answer.statistics.rows, answer.statistics.names) == ("w1", 20, ("age", "pulse"))
    assert [update.base_version for update in sent_updates(server)] == [2]
    assert len(updates) == 1
    # Once, though there were two versions with the result.
    assert task.prepared == [RESULT]
    assert result.rounds == 1


@pytest.mark.parametrize("knows", ["its folder", "the record"])
def test_a_worker_that_has_answered_waits_and_sends_nothing(tmp_path: Path, knows: str) -> None:
    opened = Survey(2, ("w1",) if knows == "the record" else ())
    server, task = a_federation(version(0, opened)), Surveyed()
    if knows == "its folder":
        (tmp_path / "survey").write_text("1")
        (tmp_path / "first-term").write_text("1")
    threading.Timer(0.1, lambda: the_survey_then_the_end(server, 1)).start()

    work(server, tmp_path, task, lambda server, _: the_survey_then_the_end(server, 2))

    assert [type(each).__name__ for each in sent(server)] == ["WeightUpdate"]
    assert task.prepared == [RESULT]


def test_when_the_survey_begins_anew_a_worker_answers_again(tmp_path: Path) -> None:
    server, task = a_federation(version(0, Survey(2, ("w1",), attempt=1))), Surveyed()
    anew = version(1, Survey(2, attempt=2))
    threading.Timer(0.1, lambda: publish_versions(server, anew)).start()
    work(server, tmp_path, task, the_survey_then_the_end)

    assert [type(each).__name__ for each in sent(server)][:1] == ["SiteStatistics"]
    assert (tmp_path / "survey").read_text() == "2"


def test_a_latecomer_prepares_with_the_result_before_its_first_round(tmp_path: Path) -> None:
    server, task = a_federation(version(5, Survey(2, ("w2", "w3"), result=RESULT))), Surveyed()

    work(server, tmp_path, task, lambda server, _: the_survey_then_the_end(server, 2))

    assert task.prepared == [RESULT]
    assert [type(each).__name__ for each in sent(server)] == ["WeightUpdate"]


def test_a_task_without_statistics_ends_with_a_sentence(tmp_path: Path) -> None:
    server = a_federation(version(0, Survey(2)))

    with pytest.raises(TaskError, match=r"asks for statistics .* has no method statistics\(\)"):
        work(server, tmp_path, CountingTask(), the_survey_then_the_end)


def test_an_evaluator_gives_its_task_the_result_once() -> None:
    closed = Survey(2, ("w1", "w2"), result=RESULT)
    server, task = a_federation(version(1, closed)), Surveyed()

    def happens(server: FakeServer, sent_so_far: int) -> None:
        publish_versions(
            server, version(sent_so_far + 1, closed, finished="enough" if sent_so_far > 1 else "")
        )

    evaluator = Evaluator(name="e1", task=task, topology=TOPOLOGY)
    evaluator.work(lambda: Scripted(server, happens))

    assert task.used == [RESULT]
