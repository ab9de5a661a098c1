"""A survey in real processes: each answer counts once, whoever dies, and whatever else is sent."""

from pathlib import Path

import numpy as np
from federation import Federation, Part
from tasks.surveyed_task import NAMES, wines_of

from fluffle.record import ModelVersion
from fluffle.survey import SurveyResult, statistics_of
from fluffle.survey.result import result_of
from fluffle.task import Site
from fluffle_cli.node import BrokerNode

TASK = "tasks.surveyed_task:task"
SITES = 3
FLAGS = ["--survey", str(SITES), "--target", "0.9", "--target-hold", "1", "--max-updates", "300"]


def pooled() -> SurveyResult:
    """What a survey of all sites finds."""
    parts = [wines_of(Site(index=site, count=SITES)) for site in range(SITES)]
    x, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    return result_of(statistics_of(x, y, names=NAMES, classes=3), sites=SITES, min_count=10)


def assert_is_of_all_sites(found: SurveyResult | None) -> None:
    wanted = pooled()
    assert found is not None
    assert (found.sites, found.rows, found.class_counts) == (SITES, wanted.rows, wanted.class_counts)
    assert found.names == NAMES
    # The sites' own grids are finer than that of all values.
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-9)
    np.testing.assert_allclose(found.deviation, wanted.deviation, rtol=1e-9)
    for one, other in zip(found.columns, wanted.columns, strict=True):
        np.testing.assert_array_equal(one.quantiles, other.quantiles)


def the_end(federation: Federation, parts: list[Part]) -> ModelVersion:
    """Wait until all have left well, and return the last version."""
    codes = {part.name: part.wait_for_exit() for part in parts}
    assert codes == dict.fromkeys(codes, 0)
    return federation.newest()


def test_three_workers_are_surveyed_and_train_with_the_result_and_a_latecomer_finds_it(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        # Nobody evaluates yet, so that the latecomer comes in time.
        leader = running.aggregator("first", *FLAGS)
        workers = [running.worker(site, "--delay", "0.1", sites=SITES) for site in range(2)]
        leader.wait_for("survey answered", 2)
        assert not leader.events("the survey has ended")
        workers.append(running.worker(2, "--delay", "0.1", sites=SITES))
        leader.wait_for("the survey has ended")
        late = running.worker(3, "--delay", "0.1", sites=4)
        late.wait_for("data prepared with the survey's statistics")
        evaluator = running.evaluator()

        final = the_end(running, [leader, *workers, late, evaluator])

    assert final.finished.startswith("accuracy>=0.9 held")
    assert final.survey is not None
    assert sorted(final.survey.answered) == ["site-0", "site-1", "site-2"]
    assert_is_of_all_sites(final.survey.result)
    assert not late.events("survey answered: waiting for its result")
