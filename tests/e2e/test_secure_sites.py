"""Secure aggregation with sites that are surveyed and that evaluate, with real processes and training."""

from pathlib import Path

import numpy as np
from federation import Federation
from secured import as_flags
from tasks import surveyed_task

from fluffle.record import ModelVersion
from fluffle.task import Site
from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.node import BrokerNode

SITES = 3
GOAL = ("--target", "sites.accuracy>=0.85", "--target-hold", "2", "--max-seconds", "120")


def run(running: Federation, *flags: str, worker_flags: tuple[str, ...] = ()) -> ModelVersion:
    """Run a federation with secure aggregation to its end, and return its last version."""
    keys = Keys(running.folder / "keys")
    keys.make(running.name, [f"site-{site}" for site in range(SITES)])
    for name in HELPERS:
        running.start(name, "fluffle_helper", *as_flags(keys.of_helper(name)))
    secure = ("--secure-aggregation", "--buffer-size", str(SITES), *as_flags(keys.public))
    leader = running.aggregator("leader", *secure, *flags)
    workers = [
        running.worker(site, *as_flags(keys.of(f"site-{site}")), *worker_flags, sites=SITES)
        for site in range(SITES)
    ]
    assert [part.wait_for_exit() for part in (leader, *workers)] == [0] * (SITES + 1)
    return running.newest()


def test_a_federation_ends_once_its_sites_together_are_good_enough_and_tells_of_none_of_them(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    held_out = ("--local-validation", "0.2")
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        final = run(running, *GOAL, worker_flags=held_out)
        said = [each for part in running.parts for each in part.events("evaluated by the sites")]

    assert final.finished == "sites.accuracy>=0.85 held for 2 evaluations"
    assert final.best is not None
    assert (final.best.evaluator, final.best_by) == ("sites", "sites.accuracy:max")
    assert final.site_evaluation is not None
    assert final.site_evaluation.metrics.keys() == {"sites.accuracy"}
    assert final.sites == {}
    assert all(each.examples == 0 and each.loss is None for each in final.contributors.values())
    assert (len(said) >= 2, final.rejected) == (True, 0)


def test_wines_in_different_units_are_surveyed_under_masks_and_learnt(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.surveyed_task:task") as running:
        final = run(running, "--survey", str(SITES), "--max-updates", "30")

    assert final.survey is not None
    result = final.survey.result
    assert result is not None
    rows = np.concatenate([surveyed_task.wines_of(Site(index=each, count=SITES))[0] for each in range(SITES)])
    assert (result.sites, result.rows, result.names) == (SITES, len(rows), surveyed_task.NAMES)
    np.testing.assert_allclose(result.mean, rows.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(result.deviation, rows.std(axis=0), rtol=1e-9)
    task = surveyed_task.Wines()
    task.use_statistics(result)
    assert task.evaluate(final.weights)["accuracy"] > 0.9
    assert (final.updates, final.rejected) == (30, 0)
