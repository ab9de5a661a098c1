"""A survey in real processes: each answer counts once, whoever dies, and whatever else is sent."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Part, assert_every_confirmed_update_counts_once
from tasks.surveyed_task import NAMES, wines_of

from fluffle.record import ModelVersion
from fluffle.survey import SurveyResult, statistics_of
from fluffle.survey.messages import SiteStatistics
from fluffle.survey.result import result_of
from fluffle.task import Site
from fluffle.wire import encode_statistics
from fluffle_cli.node import BrokerNode
from fluffle_cli.survey.as_json import result_in

TASK = "tasks.surveyed_task:task"
SITES = 3
FLAGS = ["--survey", str(SITES), "--target", "0.9", "--target-hold", "1", "--max-updates", "3000"]


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


def two_of_three_answer(running: Federation) -> tuple[Part, list[Part]]:
    """Start an aggregator and two of three workers, and wait for their answers."""
    leader = running.aggregator("first", *FLAGS)
    workers = [running.worker(site, "--delay", "0.1", sites=SITES) for site in range(2)]
    leader.wait_for("survey answered", 2)
    return leader, workers


def the_end(federation: Federation, parts: list[Part]) -> ModelVersion:
    """Wait until all have left well, and return the last version."""
    codes = {part.name: part.wait_for_exit() for part in parts}
    assert codes == dict.fromkeys(codes, 0)
    return federation.newest()


@pytest.mark.long
def test_three_workers_are_surveyed_and_train_with_the_result_and_a_latecomer_finds_it(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        # Nobody evaluates yet, so that the latecomer comes in time.
        leader, workers = two_of_three_answer(running)
        assert not leader.events("the survey has ended")
        workers.append(running.worker(2, "--delay", "0.1", sites=SITES))
        leader.wait_for("the survey has ended")
        late = running.worker(3, "--delay", "0.1", sites=4)
        late.wait_for("data prepared with the survey's statistics")
        evaluator = running.evaluator()

        final = the_end(running, [leader, *workers, late, evaluator])
        shown = running.fluffle("survey", "--out", "survey.html").stdout
        program = running.fluffle("survey", "--json").stdout

    assert "133 rows of 3 sites" in shown
    assert "alcohol" in shown
    assert (tmp_path / "survey.html").read_text().count("<figure>") == len(NAMES)
    assert final.finished.startswith("accuracy>=0.9 held")
    assert final.survey is not None
    assert sorted(final.survey.answered) == ["site-0", "site-1", "site-2"]
    assert result_in(program) == final.survey.result
    assert_is_of_all_sites(final.survey.result)
    assert not late.events("survey answered: waiting for its result")


def test_a_killed_aggregator_and_a_killed_worker_lose_no_answer_and_none_counts_twice(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader, workers = two_of_three_answer(running)
        # No version contains the answers yet.
        leader.kill()
        workers[0].kill()
        second = running.aggregator("second", *FLAGS)
        second.wait_for("survey answered", 2)
        # Now one does.
        second.wait_for("version committed")
        second.kill()
        reborn = running.worker(0, "--delay", "0.1", sites=SITES)
        third = running.aggregator("third", *FLAGS)
        workers += [running.worker(2, "--delay", "0.1", sites=SITES), running.evaluator()]

        final = the_end(running, [third, reborn, *workers[1:]])

        # What came after the end are updates.
        refused = running.deliveries_in(running.topology.rejected.name)
        assert {each.headers["reason"] for each in refused} <= {"finished"}
        assert_every_confirmed_update_counts_once(running, final)
    assert final.survey is not None
    assert_is_of_all_sites(final.survey.result)
    assert len(third.events("survey answered")) == 1
    # It knows from its folder that it has answered.
    assert not reborn.events("survey answered: waiting for its result")


@pytest.mark.long
def test_sites_that_lie_differ_or_answer_twice_are_refused_and_told_and_the_others_go_on(
    node: BrokerNode, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ODD_SITE", "3")
    monkeypatch.setenv("TEST_LIAR", "4")
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as running:
        leader = running.aggregator("first", *FLAGS)
        workers = [running.worker(0, "--delay", "0.1", sites=SITES)]
        leader.wait_for("survey answered")
        odd, liar = (running.worker(site, sites=5) for site in (3, 4))
        x, y = wines_of(Site(index=0, count=SITES))
        again = statistics_of(x, y, names=NAMES, classes=3)
        with running.connect() as broker:
            body = encode_statistics(SiteStatistics(federation, "site-0", again))
            broker.publish_as("site-0", running.topology.updates_in.name, "", body, {"kind": "survey"})
        for part in (odd, liar):
            part.wait_for("the aggregator refuses updates of this worker")
            part.ask_to_stop()
        shown = running.fluffle("status", "--once")
        opened = running.fluffle("survey").stdout
        workers += [running.worker(site, "--delay", "0.1", sites=SITES) for site in (1, 2)]
        workers.append(running.evaluator())

        final = the_end(running, [leader, *workers, odd, liar])

        listed = running.fluffle("rejected", "list", "--json").stdout
    assert "The survey is open: 1 of 3 workers have answered" in " ".join(shown.stdout.split())
    assert opened == "The survey is open: 1 of 3 workers have answered: site-0.\n"
    assert "only refused" in shown.stdout
    assert "other-data" in shown.stdout
    assert final.survey is not None
    assert_is_of_all_sites(final.survey.result)
    for reason, says in {
        "other-data": "the data of site-3 is not like that of site-0: it has 12 columns",
        "bad-examples": "site-4 claims 1000000001 rows",
        "duplicate": "site-0 has answered this survey already",
    }.items():
        assert f'"reason": "{reason}"' in listed
        assert says in listed
