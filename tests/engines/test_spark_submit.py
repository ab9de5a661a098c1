"""fluffle-spark.py as users submit it: a copy of a site, a driver that dies, users for one run."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("pyspark", reason="there is no Spark here: run scripts/setup.sh spark")

from federation import DEADLINE_S, ROOT, wait_until
from on_spark import HELD_OUT, TASK, confirmed_in, log_lines, runs_in, site_processes, wait_for_updates
from sklearn.datasets import load_digits

from fluffle.connection import Connector
from fluffle.errors import ConfigError
from fluffle.management import ADMINISTRATOR, Management, ManagementSettings
from fluffle.rights import MADE_FOR_A_RUN, password_hash, rights_of
from fluffle.settings import SharedSettings
from fluffle_cli.node import BrokerNode
from fluffle_spark.logins import users_for_the_run
from harness.spark import SparkCluster

TARGET = '[aggregator]\ntarget = "accuracy>=0.8"\nstrategy = "fedbuff"\nbuffer_size = 2\n'


@pytest.fixture(scope="module")
def managed_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node with the management interface."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker"), management=True) as started:
        yield started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Digits as Parquet, with the ward of each."""
    images, labels = load_digits(return_X_y=True)
    table = {
        "pixels": images[HELD_OUT:].tolist(),
        "digit": labels[HELD_OUT:],
        "ward": [f"ward {number % 2}" for number in range(len(labels) - HELD_OUT)],
    }
    path = tmp_path / "digits.parquet"
    pq.write_table(pa.table(table), path)
    return path


@contextmanager
def submitted(
    cluster: SparkCluster, node: BrokerNode, folder: Path, *arguments: str, conf: dict[str, str] | None = None
) -> "Iterator[subprocess.Popen[bytes]]":
    """Submit a federation, and kill what is left of its driver at the end."""
    (folder / "fluffle.toml").write_text(TARGET + "[worker]\ndelay = 2.0\nheartbeat_s = 5\n")
    settings = [word for name, value in (conf or {}).items() for word in ("--conf", f"{name}={value}")]
    with (folder / "driver.log").open("w") as log:
        process = subprocess.Popen(
            [cluster.spark_submit, *settings, str(ROOT / "spark/fluffle-spark.py"), *arguments],
            env={**_plain_environment(), **cluster.environment, "FLUFFLE_BROKER_URL": node.amqp_url},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            # Spark writes what a driver says on stderr to stdout.
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            each.kill()
        process.kill()
        process.wait()


@contextmanager
def two_hosts(cluster: SparkCluster, folder: Path) -> Iterator[str]:
    """Start a master and two workers at two addresses of this machine: Spark puts copies on another host."""
    environment = _plain_environment() | cluster.environment | {"SPARK_WORKER_DIR": str(cluster.work)}
    log = folder / "master.log"
    with ExitStack() as processes:

        def start(role: str, host: str, *arguments: str) -> None:
            command = [str(cluster.folder / "bin/spark-class"), f"org.apache.spark.deploy.{role}"]
            process = subprocess.Popen(
                [*command, "--host", host, "--webui-port", "0", *arguments],
                env=environment | {"SPARK_LOCAL_IP": host, "SPARK_LOCAL_HOSTNAME": host},
                stdout=processes.enter_context(log.open("a")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            processes.callback(process.wait)
            processes.callback(process.terminate)

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        master = f"spark://127.0.0.1:{port}"
        start("master.Master", "127.0.0.1", "--port", str(port))
        for host in ("127.0.0.1", "127.0.0.2"):
            start("worker.Worker", host, "--cores", "1", "--memory", "1g", master)
        yield master


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUFFLE_")}


def flags(federation: str, data: Path, *more: str) -> list[str]:
    given = {"--task": TASK, "--data": str(data), "--features": "pixels", "--label": "digit"}
    return [*(word for pair in given.items() for word in pair), "--federation", federation, *more]


@pytest.mark.long
def test_a_copy_of_a_site_waits_while_the_first_one_works_and_users_of_the_run_are_removed(
    tmp_path: Path, managed_node: BrokerNode, federation: str, data: Path, java: str
) -> None:
    cluster = SparkCluster.prepare(tmp_path / "spark")
    speculation = {"spark.speculation": "true", "spark.speculation.task.duration.threshold": "1s"}
    beside = ["--with-aggregator", "--with-evaluator", "--out", str(tmp_path / "result")]
    users = ["--make-users", "--management-url", str(managed_node.management_url)]

    arguments = flags(federation, data, "--workers", "1", *beside, *users)
    with (
        two_hosts(cluster, tmp_path) as master,
        submitted(
            cluster, managed_node, tmp_path, *arguments, conf={**speculation, "spark.master": master}
        ) as process,
    ):
        wait_for_updates(cluster.work, federation, 1, sites=1)
        assert "site-0" in users_of(managed_node)
        code = process.wait(DEADLINE_S)

    log = (tmp_path / "driver.log").read_text()
    assert code == 0, log[-3000:]
    assert log_lines(cluster.work, "another attempt of this site is at work: waiting for it to end")
    assert len(runs_in(cluster.work, federation)) == 1
    assert "site-0" not in users_of(managed_node)
    [row] = pq.read_table(tmp_path / "result").to_pylist()
    assert row["site"] == "site-0"
    assert row["rows"] == 1797 - HELD_OUT
    assert row["updates"] <= len(confirmed_in(cluster.work, federation))
    assert "accuracy>=0.8" in row["ended"]
    assert "site-0" in log


def test_users_that_a_killed_driver_has_left_are_made_anew_and_others_are_not_touched(
    managed_node: BrokerNode, federation: str
) -> None:
    settings = ManagementSettings(
        broker_url=managed_node.amqp_url, federation=federation, management_url=managed_node.management_url
    )
    sites = ["left-by-a-driver", "somebodys"]
    rights = {site: rights_of("worker", federation, site) for site in sites}
    rights[sites[0]] = replace(rights[sites[0]], tags=frozenset({MADE_FOR_A_RUN}))
    hashed = password_hash("before", b"salt")

    with settings.management() as management:
        for site in sites:
            management.put_user(site, rights[site], hashed)
        refused = pytest.raises(ConfigError, match="has a user 'somebodys' already")
        with refused, users_for_the_run(settings, sites):
            pass
        with users_for_the_run(settings, sites[:1]) as urls:
            own = settings.model_copy(update={"broker_url": urls[sites[0]]})
            Connector(own, name=sites[0], stop=threading.Event()).connect_at_once().close()

        assert management.account(sites[0]) is None
        assert management.account(sites[1]) is not None


def users_of(node: BrokerNode) -> set[str]:
    settings = SharedSettings(broker_url=node.amqp_url)
    with Management(settings.broker_address(), node.management_url, tag=ADMINISTRATOR) as management:
        return {account.name for account in management.accounts()}


@pytest.mark.long
def test_workers_and_the_aggregator_beside_a_driver_end_when_it_is_killed(
    tmp_path: Path, managed_node: BrokerNode, federation: str, data: Path, java: str
) -> None:
    cluster = SparkCluster.prepare(tmp_path / "spark")
    arguments = flags(federation, data, "--site-column", "ward", "--with-aggregator")
    with submitted(cluster, managed_node, tmp_path, *arguments) as process:
        wait_for_updates(cluster.work, federation, 1, sites=2)
        assert len(site_processes(cluster.work)) == 2
        [aggregator] = aggregators_of(federation)

        process.send_signal(signal.SIGKILL)

        wait_until(lambda: not site_processes(cluster.work), "the end of the workers", deadline_s=60)
        wait_until(lambda: not aggregator.is_running(), "the end of the aggregator beside the driver")


def aggregators_of(federation: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_one = process.cmdline()[1:] == ["-m", "fluffle_cli", "aggregator"]
            if is_one and process.environ().get("FLUFFLE_FEDERATION") == federation:
                found.append(process)
    return found


def test_the_program_explains_itself_without_spark() -> None:
    program = str(ROOT / "spark/fluffle-spark.py")
    told = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)

    assert "--site-column" in told.stdout
    assert "--password-folder" in told.stdout
