"""Federations that their sites evaluate themselves, with real processes, a real broker and real training."""

from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Part
from numpy_task import SoftmaxRegression

from fluffle.checked_task import CheckedTask
from fluffle.record import ModelVersion
from fluffle.task import Site
from fluffle_cli.node import BrokerNode

QUICK_TASK = "numpy_task:task"
SITES = 3
GOAL = ("--target", "worst.accuracy>=0.85", "--target-hold", "2", "--buffer-size", "3", "--max-seconds", "60")
HOLDS_OUT = ("--local-validation", "0.2", "--delay", "0.1")


def pooled_metrics(version: ModelVersion) -> dict[str, float]:
    """Return loss and accuracy of a version on what all sites hold out, in one place."""
    rows, task = [], SoftmaxRegression()
    for index in range(SITES):
        task.prepare(Site(index=index, count=SITES, validation=0.2))
        rows.append(task._own)
    task._own = np.concatenate(rows)
    found = CheckedTask(task).validate(version.weights)
    assert found is not None
    return {metric.name: metric.value for metric in found[1]}


def test_a_federation_without_an_evaluator_ends_once_its_worst_site_is_good_enough(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=QUICK_TASK) as running:
        leader = running.aggregator("leader", *GOAL)
        workers = [running.worker(site, *HOLDS_OUT, sites=SITES) for site in range(SITES)]
        codes = [part.wait_for_exit() for part in (leader, *workers)]
        final = running.newest()

    assert codes == [0] * (SITES + 1)
    assert final.finished == "worst.accuracy>=0.85 held for 2 evaluations"
    assert final.best is not None
    assert final.best_by == "worst.accuracy:max"
    assert final.best.metrics["worst.accuracy"] >= 0.85
    # The last model was evaluated by every site, and what they say together is what their data say together.
    assert {report.version for report in final.sites.values()} == {final.version - 1}
    assert final.site_evaluation is not None
    assert final.site_evaluation.version == final.version - 1
    for name, value in pooled_metrics(final).items():
        assert final.site_evaluation.metrics[f"sites.{name}"] == pytest.approx(value, abs=1e-6)


def start(running: Federation, *, standby: bool = False) -> tuple[list[Part], list[Part]]:
    """Start aggregators and workers, and wait until the sites have evaluated some versions."""
    leader = running.aggregator("leader", *GOAL)
    leader.wait_for("leading")
    aggregators = [leader, *([running.aggregator("standby", *GOAL)] if standby else [])]
    workers = [running.worker(site, *HOLDS_OUT, sites=SITES) for site in range(SITES)]
    if standby:
        aggregators[1].wait_for("standing by")
    leader.wait_for("evaluated by the sites")
    return aggregators, workers


@pytest.mark.long
def test_a_killed_aggregator_and_a_killed_worker_lose_nothing_of_what_the_sites_measured(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=QUICK_TASK) as running:
        (leader, standby), workers = start(running, standby=True)
        leader.kill()
        workers[0].kill()
        reborn = running.worker(0, *HOLDS_OUT, sites=SITES)
        codes = [part.wait_for_exit() for part in (standby, reborn, *workers[1:])]
        final = running.newest()

    assert codes == [0] * (SITES + 1)
    assert final.finished == "worst.accuracy>=0.85 held for 2 evaluations"
    assert len(final.terms) == 2
    assert {report.version for report in final.sites.values()} == {final.version - 1}
    assert final.site_evaluation is not None
    assert final.site_evaluation.metrics["sites.accuracy"] == pytest.approx(pooled_metrics(final)["accuracy"])


@pytest.mark.long
def test_a_site_that_holds_out_nothing_takes_part_and_is_told_so(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=QUICK_TASK) as running:
        leader = running.aggregator("leader", *GOAL)
        workers = [running.worker(site, *HOLDS_OUT, sites=SITES) for site in range(SITES - 1)]
        other = running.worker(SITES - 1, "--delay", "0.1", sites=SITES)
        codes = [part.wait_for_exit() for part in (leader, *workers, other)]
        final = running.newest()
        said = other.events("the goal is measured at the sites, and this one holds out no data")

    assert codes == [0] * (SITES + 1)
    assert set(final.sites) == {"site-0", "site-1"}
    assert final.contributors["site-2"].updates > 0
    assert len(said) == 1


@pytest.mark.long
def test_a_site_that_leaves_holds_up_neither_the_target_nor_the_end(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=QUICK_TASK) as running:
        [leader], workers = start(running)
        workers[0].ask_to_stop()
        workers[0].wait_for_exit()
        codes = [part.wait_for_exit() for part in (leader, *workers[1:])]
        final = running.newest()

    assert codes == [0] * SITES
    assert final.finished
    assert set(final.sites) == {"site-1", "site-2"}


@pytest.mark.long
def test_sites_that_name_the_digits_in_their_own_way_are_measured_with_their_own_heads(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    goal = ("--target", "worst.accuracy>=0.8", "--max-seconds", "90", "--strategy", "fedbuff")
    task = "tasks.personal_heads_task:task"
    with Federation(federation, node.amqp_url, tmp_path, task=task) as running:
        leader = running.aggregator("leader", *goal, "--buffer-size", "3")
        workers = [running.worker(site, "--local-validation", "0.2", sites=SITES) for site in range(SITES)]
        codes = [part.wait_for_exit() for part in (leader, *workers)]
        final = running.newest()
        shown = running.fluffle("status").stdout

    assert codes == [0] * (SITES + 1)
    assert final.finished == "worst.accuracy>=0.8 held for 3 evaluations"
    assert all(report.gains for report in final.sites.values())
    assert all(name in shown for name in ("worst site first", "mean", "own round"))


@pytest.mark.long
def test_a_regression_with_gaps_stops_early_and_its_best_version_is_exported(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    goal = ("--best", "sites.mae:min", "--patience", "5", "--min-delta", "0.001", "--max-seconds", "90")
    task = "tasks.regression_table_task:task"
    with Federation(federation, node.amqp_url, tmp_path, task=task) as running:
        leader = running.aggregator("leader", *goal, "--buffer-size", "3")
        workers = [running.worker(site, "--local-validation", "0.25", sites=SITES) for site in range(SITES)]
        codes = [part.wait_for_exit() for part in (leader, *workers)]
        final = running.newest()
        listed = running.fluffle("model", "list").stdout
        exported = running.fluffle("model", "export", "--version", "best", "--out", "best.safetensors")

    assert codes == [0] * (SITES + 1)
    assert final.finished == "sites.mae did not improve by more than 0.001 in 5 evaluations"
    assert final.best is not None
    [said] = leader.events("the federation has finished")
    assert (said["best_version"], said["best_by"]) == (final.best.version, "sites.mae:min")
    assert final.best.metrics["sites.mae"] < 0.8
    assert {metric.name: metric.pooling for metric in final.sites["site-1"].metrics} == {
        "loss": "mean",
        "mae": "mean",
        "rmse": "root_mean",
        "r2_score": "site_mean",
    }
    assert exported.returncode == 0, exported.stderr
    assert "best by sites.mae:min" in listed
