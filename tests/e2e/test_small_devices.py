"""Workers that train the last layers alone, beside others that train all, in real federations.

Public reports of federations whose clients send parts: a mean that divides what some clients sent by all of
them, so that layers shrink (the averaging of flower #1059's answers, FL-bench #164), and layers whose
BatchNormalization statistics are left out or come from one client (PFLlib #260).
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from brokers import all_versions
from federation import (
    HEARTBEAT_S,
    ROOT,
    TESTS,
    Federation,
    assert_every_confirmed_update_counts_once,
    end_and_balance,
)
from tasks import small_device_task

from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import topology_of
from fluffle_aggregator.running import run_aggregator
from fluffle_cli.node import BrokerNode
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

SITES, SMALL = 3, "site-2"
DEADLINE_S = 300.0


def count_of_parts_that_changed_nothing_else(history: Sequence[ModelVersion], start: int) -> int:
    """Compare each version that holds parts alone with the one before it, and return how many there are.

    Elements before `start` must have the same bits, and so must the statistics of frozen layers.
    """
    found = 0
    for before, after in pairwise(history):
        if after.folded and all(one.share < 1 for one in after.folded):
            found += 1
            assert before.vector[:start].tobytes() == after.vector[:start].tobytes()
            assert before.statistics.tobytes() == after.statistics.tobytes()
            assert before.vector[start:].tobytes() != after.vector[start:].tobytes()
    return found


def test_one_small_and_two_other_workers_train_one_model_in_one_process(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}

    def task() -> KerasTask:
        return small_device_task.make_task(small_device_task.build_dense)

    def work(site: int) -> WorkerResult:
        share = 0.2 if site == 2 else 1.0
        place: dict[str, Any] = {"name": f"site-{site}", "site": site, "sites": SITES, "spool": tmp_path}
        return run_worker(task(), train_share=share, local_validation=0.2, **place, **where)

    with ThreadPoolExecutor(SITES + 2) as pool:
        goal: dict[str, Any] = {"target": "accuracy>=0.9", "max_updates": 400}
        leading = pool.submit(run_aggregator, task(), strategy="fedbuff", buffer_size=1, **goal, **where)
        judging = pool.submit(run_evaluator, task(), **where)
        working = [pool.submit(work, site) for site in range(SITES)]
        results = [each.result(DEADLINE_S).ended_by for each in working]
        results.append(judging.result(DEADLINE_S).ended_by)
        ended_by = leading.result(DEADLINE_S).ended_by
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=HEARTBEAT_S) as broker:
        history = list(all_versions(broker, topology_of(federation)))

    assert ended_by.startswith("accuracy>=0.9 held")
    assert results == [ended_by] * 4
    shares = {one.id.worker: one.share for version in history for one in version.folded}
    assert shares == {"site-0": 1, "site-1": 1, SMALL: 650 / 4810}
    assert count_of_parts_that_changed_nothing_else(history, 4810 - 650) > 0
    # Each site has evaluated what a round of its own makes of a version, of which it may train a part.
    assert all(history[-1].sites[f"site-{site}"].gains for site in range(SITES))


def test_a_worker_that_finds_out_its_share_takes_in_one_layer_after_the_other(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url}
    task = small_device_task.make_task(small_device_task.build_dense)

    with ThreadPoolExecutor(2) as pool:
        leading = pool.submit(
            run_aggregator, task, strategy="fedbuff", buffer_size=1, codec="topk", max_updates=6, **where
        )
        working = pool.submit(
            run_worker, task, name=SMALL, sites=1, spool=tmp_path, train_share="auto", **where
        )
        ended_by = [each.result(DEADLINE_S).ended_by for each in (leading, working)]
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=HEARTBEAT_S) as broker:
        history = list(all_versions(broker, topology_of(federation)))

    assert ended_by == ["6 updates were applied"] * 2
    shares = [one.share for version in history for one in version.folded]
    assert shares == [650 / 4810, 650 / 4810, 1, 1, 1, 1]
    assert count_of_parts_that_changed_nothing_else(history, 4810 - 650) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("cnn", 0.95, ["--codec", "int8"]),
        ("cnn", 0.5, ["--strategy", "fedbuff", "--buffer-size", "3", "--codec", "topk:0.1"]),
        ("cnn", 0.95, ["--strategy", "fedasync"]),
        ("shared", 0.5, ["--strategy", "ca2fl", "--buffer-size", "2"]),
        ("lstm", 0.5, ["--strategy", "fedavg", "--buffer-size", "3", "--codec", "bfloat16+zstd"]),
    ],
    ids=str,
)
def test_a_federation_with_a_small_device_reaches_its_target(
    node: BrokerNode,
    tmp_path: Path,
    federation: str,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, float, list[str]],
) -> None:
    model, share, flags = case
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [TESTS, ROOT, *sys.path])))
    task = f"tasks.small_device_task:{model}"

    with Federation(federation, node.amqp_url, tmp_path, task=task) as running:
        goal = ("--target", "accuracy>=0.9", "--max-updates", "600", "--local-epochs", "2")
        leader = running.aggregator("leader", *goal, *flags)
        workers = [running.worker(site, sites=SITES) for site in range(SITES - 1)]
        small = running.worker(SITES - 1, "--train-share", str(share), sites=SITES)
        parts = [leader, *workers, small, running.evaluator()]
        codes = [part.wait_for_exit() for part in parts]
        with running.connect() as broker:
            history = list(all_versions(broker, running.topology))
        exported = running.fluffle(
            *(
                "model",
                "export",
                "--out",
                "small.keras",
                "--task",
                task,
                "--quantize",
                "int8",
                "--prune",
                "0.3",
            )
        )

        assert (exported.returncode, exported.stderr) == (0, ""), exported.stderr
        assert "accuracy" in exported.stdout
        assert (tmp_path / "small.keras").is_file()
        assert codes == [0] * len(parts)
        assert history[-1].finished.startswith("accuracy>=0.9 held")
        assert_every_confirmed_update_counts_once(running, history[-1])
    [begun] = small.events("training the last layers alone")
    shares = {one.share for version in history for one in version.folded if one.id.worker == SMALL}
    assert shares == {history[-1].contributors[SMALL].share}
    assert shares.pop() == pytest.approx(begun["share"], abs=1e-4)
    sent = [
        max(int(str(each["size_bytes"])) for each in part.events("update published")) for part in parts[1:4]
    ]
    assert sent[2] < (share + 0.05) * sent[0] or "topk" in str(flags)


@pytest.mark.long
def test_a_small_device_and_a_leader_that_are_killed_lose_and_double_no_part(
    node: BrokerNode, tmp_path: Path, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [TESTS, ROOT, *sys.path])))
    flags = ("--strategy", "fedbuff", "--buffer-size", "1", "--codec", "topk:0.2")
    small = ("--train-share", "0.2", "--delay", "0.1")

    with Federation(federation, node.amqp_url, tmp_path, task="tasks.small_device_task:dense") as running:
        first = running.aggregator("first", *flags)
        first.wait_for("leading")
        second = running.aggregator("second", *flags)
        second.wait_for("standing by")
        others = [running.worker(site, "--delay", "0.5", sites=SITES) for site in range(SITES - 1)]
        dying = running.worker(SITES - 1, *small, sites=SITES)
        dying.wait_for("update published", 3)
        dying.kill()
        reborn = running.worker(SITES - 1, *small, sites=SITES)
        reborn.wait_for("update published", 2)
        # It holds parts that no version contains yet, or has just published one that does.
        first.kill()
        second.wait_for("leading")
        reborn.wait_for("update published", 6)
        reborn.kill()
        # With another share the model is another one for the residual, and not for the aggregator.
        changed = running.worker(SITES - 1, "--train-share", "1", sites=SITES)

        changed.wait_for("update published", 2)
        final = end_and_balance(running, workers=[*others, changed], aggregators=[second])
        with running.connect() as broker:
            history = list(all_versions(broker, running.topology))

    assert len([run for worker, run in final.applied.runs if worker == SMALL]) == 1
    assert {version.term for version in history} == {1, 2}
    shares = [one.share for version in history for one in version.folded if one.id.worker == SMALL]
    assert set(shares) == {650 / 4810, 1.0}
    assert shares == sorted(shares)
    assert count_of_parts_that_changed_nothing_else(history, 4810 - 650) >= 5
