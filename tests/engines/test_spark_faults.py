"""Workers in Spark executors that are killed, cancelled or taken away: nothing is lost or counts twice."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from brokers import all_versions
from federation import Federation, applied_ids, wait_until
from on_spark import (
    TASK,
    confirmed_in,
    digits,
    log_lines,
    runs_in,
    site_processes,
    training,
    wait_for_updates,
)
from pyspark.sql import SparkSession

from fluffle.errors import FluffleError
from fluffle_cli.node import BrokerNode
from fluffle_spark import federate
from harness.spark import SparkCluster, driver_pid, executors_of

STOP_WITHIN_S = 5.0
INTERRUPTED_S = 30.0


@pytest.fixture
def in_spark(node: BrokerNode, federation: str, tmp_path: Path) -> Iterator[Federation]:
    """A federation with an aggregator of the test's own, which ends when it is told."""
    with Federation(federation, node.amqp_url, tmp_path, task=TASK) as started:
        started.aggregator("lead", "--strategy", "fedbuff", "--buffer-size", "2")
        yield started


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[BrokerNode]:
    """A node that may be restarted."""
    with BrokerNode.start(tmp_path / "broker", management=False) as started:
        yield started


def assert_balanced(federation: Federation, work: Path) -> None:
    """Each update that RabbitMQ confirmed to a worker in an executor is applied, once, or lies in a queue."""
    [aggregator] = federation.parts
    # They publish what they have finished after the job has ended.
    wait_until(lambda: not site_processes(work), "the end of the workers")
    with federation.connect() as broker:
        queue = federation.topology.updates.name
        wait_until(lambda: broker.state(queue).messages == 0, "the aggregator to take all updates")
    aggregator.ask_to_stop()
    assert aggregator.wait_for_exit() == 0
    with federation.connect() as broker:
        history = list(all_versions(broker, federation.topology))
    folded = [one.id for version in history for one in version.folded]
    applied, final = applied_ids(history[-1]), history[-1]
    rejected = federation.waiting_in(federation.topology.rejected.name)
    queued = federation.waiting_in(federation.topology.updates.name)
    confirmed = confirmed_in(work, federation.name)

    assert confirmed
    assert confirmed <= applied | rejected | queued
    assert len(folded) == len(set(folded)) == final.updates == len(applied)


def test_the_site_of_a_killed_executor_goes_on_elsewhere_and_nothing_counts_twice(
    spark: SparkSession, spark_cluster: SparkCluster, in_spark: Federation
) -> None:
    with training(in_spark, digits(spark)) as run:
        wait_for_updates(spark_cluster.work, in_spark.name, 2, sites=2)
        victim = executors_of(driver_pid())[0]

        os.kill(victim.pid, signal.SIGKILL)

        wait_until(lambda: len(runs_in(spark_cluster.work, in_spark.name)) == 3, "a new run of the site")
        spark.sparkContext.cancelAllJobs()
        run.wait()

    workers = [worker for worker, _ in runs_in(spark_cluster.work, in_spark.name)]
    assert set(workers) == {"ward-0", "ward-1"}
    assert_balanced(in_spark, spark_cluster.work)


def test_a_cancelled_job_ends_its_workers_within_seconds_and_they_publish_what_is_finished(
    spark: SparkSession, spark_cluster: SparkCluster, in_spark: Federation
) -> None:
    with training(in_spark, digits(spark)) as run:
        wait_for_updates(spark_cluster.work, in_spark.name, 2, sites=2)
        processes = site_processes(spark_cluster.work)

        spark.sparkContext.cancelAllJobs()
        cancelled = time.monotonic()

        wait_until(lambda: not site_processes(spark_cluster.work), "the end of the workers")
        took = time.monotonic() - cancelled
        run.wait()

    assert len(processes) == 2
    assert took < STOP_WITHIN_S
    assert isinstance(run.error, FluffleError)
    assert "the Spark job was cancelled" in str(run.error)
    trained = {line["update"] for line in log_lines(spark_cluster.work, "round trained")}
    published = {line["update"] for line in log_lines(spark_cluster.work, "update published")}
    assert {each for each in trained if each.startswith("ward")} <= published
    assert_balanced(in_spark, spark_cluster.work)


@pytest.mark.long
def test_an_executor_that_spark_takes_away_costs_nothing(
    spark: SparkSession, spark_cluster: SparkCluster, in_spark: Federation
) -> None:
    """As dynamic allocation does: over the scheduler, and not with a signal."""
    with training(in_spark, digits(spark)) as run:
        wait_for_updates(spark_cluster.work, in_spark.name, 2, sites=2)
        victim = executors_of(driver_pid())[0]

        context = spark.sparkContext._jsc.sc()
        context.killAndReplaceExecutor(str(victim.number))

        wait_until(lambda: len(runs_in(spark_cluster.work, in_spark.name)) == 3, "a new run of the site")
        spark.sparkContext.cancelAllJobs()
        run.wait()

    assert_balanced(in_spark, spark_cluster.work)


@pytest.mark.long
def test_a_federation_outlives_a_restart_of_the_broker(
    own_node: BrokerNode, federation: str, tmp_path: Path, spark: SparkSession, spark_cluster: SparkCluster
) -> None:
    with Federation(federation, own_node.amqp_url, tmp_path, task=TASK) as started:
        started.aggregator("lead", "--strategy", "fedbuff", "--buffer-size", "2")
        with training(started, digits(spark)) as run:
            wait_for_updates(spark_cluster.work, federation, 2, sites=2)
            before = len(confirmed_in(spark_cluster.work, federation))

            own_node.restart()

            wait_for_updates(spark_cluster.work, federation, before + 4, sites=2)
            spark.sparkContext.cancelAllJobs()
            run.wait()

        assert_balanced(started, spark_cluster.work)


def test_the_aggregator_beside_the_driver_ends_everything_at_the_target_and_no_password_is_logged(
    node: BrokerNode,
    federation: str,
    spark: SparkSession,
    spark_cluster: SparkCluster,
    tmp_path: Path,
) -> None:
    started = Federation(federation, node.amqp_url, tmp_path)
    target = {"target": "accuracy>=0.8", "strategy": "fedbuff", "buffer_size": 2}
    password_file = tmp_path / "password"
    password_file.write_text(node.password)
    login: dict[str, Any] = {
        "broker_url": node.amqp_url.replace(f":{node.password}@", "@"),
        "broker_password_file": password_file,
        # A login of its own, with which the password file has nothing to do.
        "evaluator": {"broker_url": node.amqp_url},
    }
    # As a driver that has its settings from the environment.
    with (
        patch.dict(os.environ, {"FLUFFLE_LABEL": "digit"}),
        training(started, digits(spark), aggregator=target, delay=0.05, **login) as run,
    ):
        run.wait()

    assert run.error is None
    assert set(run.rows) == {"ward-0", "ward-1"}
    for row in run.rows.values():
        assert row.error == ""
        assert "accuracy>=0.8" in row.ended
        assert row.rounds >= row.updates
        # On a busy machine one executor can reach the target before the other one has started.
        assert not row.rounds or row.metrics["loss"] > 0
    assert sum(row.updates for row in run.rows.values()) > 0
    assert sum(row.rows for row in run.rows.values()) == 1797 - 300
    assert len({row.ran_on for row in run.rows.values()}) == 2
    counts = {name: sum(getattr(row, name) for row in run.rows.values()) for name in ("rounds", "updates")}
    wait_until(lambda: counts_in_ui(spark_cluster, federation) == counts, "Spark's UI to count the rounds")
    assert_no_password(spark_cluster, node.password)


def counts_in_ui(cluster: SparkCluster, federation: str) -> dict[str, int]:
    """Return the accumulators of the sites' stage, as the event log has them for Spark's UI."""
    lines = [line for text in cluster.events_text() for line in text.splitlines()]
    events = [json.loads(line) for line in lines if line.startswith('{"Event"') and line.endswith("}")]
    stages = {
        stage
        for event in events
        if event["Event"] == "SparkListenerJobStart"
        if f"Fluffle {federation}: 2 sites train" in event["Properties"].get("spark.job.description", "")
        for stage in event["Stage IDs"]
    }
    return {
        accumulator["Name"]: int(accumulator["Value"])
        for event in events
        if event["Event"] == "SparkListenerStageCompleted" and event["Stage Info"]["Stage ID"] in stages
        for accumulator in event["Stage Info"]["Accumulables"]
        if accumulator["Name"] in ("rounds", "updates")
    }


def assert_no_password(cluster: SparkCluster, password: str) -> None:
    """Search all that Spark writes down: the event log, executors' logs and the configuration."""
    logs = list(cluster.events_text())
    assert any("Fluffle federation" in text for text in logs), "the event log does not name the job"
    assert not any(password in text for text in logs)
    for file in cluster.work.rglob("std*"):
        assert password not in file.read_text(errors="replace")


@pytest.mark.long
def test_sites_take_turns_when_there_are_fewer_slots(
    node: BrokerNode, federation: str, spark: SparkSession, tmp_path: Path
) -> None:
    started = Federation(federation, node.amqp_url, tmp_path)
    target = {"target": "accuracy>=0.85", "strategy": "fedbuff", "buffer_size": 2}
    parts = {"aggregator": target, "evaluator": True}
    with training(started, digits(spark, sites=4), waves=1, delay=0.01, **parts) as run:
        run.wait()

    assert run.error is None
    assert {site: row.error for site, row in run.rows.items()} == dict.fromkeys(
        [f"ward-{number}" for number in range(4)], ""
    )
    assert all(row.updates >= 1 for row in run.rows.values())
    assert max(row.updates for row in run.rows.values()) > 1


def test_no_process_and_no_thread_is_left_behind(spark_cluster: SparkCluster) -> None:
    wait_until(lambda: not site_processes(spark_cluster.work), "the end of all workers", deadline_s=10)
    assert not [each for each in threading.enumerate() if each.name in ("sites", "aggregator", "evaluator")]


def test_after_ctrl_c_no_job_and_no_worker_goes_on(
    spark: SparkSession, spark_cluster: SparkCluster, in_spark: Federation
) -> None:
    """With PySpark alone the job would go on, as in jupyter-server/enterprise_gateway#1112.

    Its handler asks Java to cancel over the connection on which its own thread waits for the job.
    """

    def interrupt() -> None:
        wait_for_updates(spark_cluster.work, in_spark.name, 1, sites=2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()

    with pytest.raises(KeyboardInterrupt):
        federate(
            digits(spark),
            task=TASK,
            federation=in_spark.name,
            broker_url=in_spark.broker_url,
            features="pixels",
            label="digit",
            site_column="ward",
            delay=0.3,
        )

    thread.join()
    tracker = spark.sparkContext.statusTracker()
    wait_until(lambda: not tracker.getActiveJobsIds(), "the end of the job", deadline_s=INTERRUPTED_S)
    wait_until(lambda: not site_processes(spark_cluster.work), "the workers", deadline_s=INTERRUPTED_S)
