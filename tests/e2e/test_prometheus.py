"""A real Prometheus asks a real federation, and what it knows is what the federation's record says."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from federation import ROOT, Federation, wait_until

from fluffle_cli.node import BrokerNode
from fluffle_cli.rabbitmq_server import LOOPBACK, free_ports

pytestmark = pytest.mark.long

DASHBOARD = ROOT / "monitoring" / "grafana" / "fluffle.json"
FLAGS = ["--buffer-size", "1", "--local-steps", "5"]


@dataclass
class Prometheus:
    """A Prometheus that runs, and what it answers."""

    port: int

    def ask(self, path: str, **query: str) -> dict[str, object]:
        with urlopen(f"http://{LOOPBACK}:{self.port}/api/v1/{path}?{urlencode(query)}", timeout=60) as answer:
            said = json.load(answer)
        assert said["status"] == "success"
        data: dict[str, object] = said["data"]
        return data

    def values(self, expression: str) -> list[float]:
        """Return the value of each series that an expression has now."""
        series = json.loads(json.dumps(self.ask("query", query=expression)["result"]))
        return [float(each["value"][1]) for each in series]

    def is_ready(self) -> bool:
        try:
            return self.values("vector(1)") == [1.0]
        except URLError:
            return False


@contextmanager
def prometheus(folder: Path, port: int, targets: dict[str, list[int]]) -> Iterator[Prometheus]:
    """Run Prometheus with our rules; `targets` has the ports that each job asks."""
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"{LOOPBACK}:{each}" for each in ports]}]}
        for job, ports in targets.items()
    ]
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "monitoring" / "alerts.yml")],
        "scrape_configs": jobs,
    }
    file = folder / "prometheus.json"
    file.write_text(json.dumps(configuration), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={LOOPBACK}:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        started = Prometheus(port)
        wait_until(started.is_ready, "Prometheus")
        yield started
    finally:
        process.kill()
        process.wait()


def test_prometheus_knows_what_the_record_says(node: BrokerNode, tmp_path: Path, federation: str) -> None:
    with (
        free_ports(5) as [own, first, second, worker, evaluator],
        Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running,
        prometheus(
            tmp_path, own, {"aggregators": [first, second], "workers": [worker], "evaluators": [evaluator]}
        ) as asked,
    ):
        running.aggregator("first", *FLAGS, "--metrics-port", str(first)).wait_for("leading")
        running.aggregator("second", *FLAGS, "--metrics-port", str(second)).wait_for("standing by")
        running.evaluator("--metrics-port", str(evaluator))
        with running.connect() as broker:
            broker.publish_as("stranger", running.topology.updates_in.name, "", b"rubbish", {})
        training = running.worker(0, "--metrics-port", str(worker))

        def becomes(expression: str, value: Callable[[], float]) -> None:
            wait_until(lambda: asked.values(expression) == [value()], f"{expression} in Prometheus")

        wait_until(
            lambda: all(map(asked.values, expressions_with_data(federation))), "data for the dashboard"
        )
        training.ask_to_stop()
        assert training.wait_for_exit() == 0

        becomes("sum(fluffle_updates_applied_total)", lambda: running.newest().updates)
        becomes("max(fluffle_version)", lambda: running.newest().version)
        becomes("sum(fluffle_rejected_total)", lambda: running.newest().rejected)
        becomes("max(fluffle_best_version)", lambda: best_of(running))
        becomes("sum(fluffle_update_staleness_versions_count)", lambda: running.newest().updates)
        # What it did after the last time that it was asked is not known.
        [published] = asked.values("max_over_time(fluffle_worker_updates_published_total[1h])")
        assert 1 <= published <= len(running.confirmed())
        becomes("sum(fluffle_leading)", lambda: 1)
        becomes("sum by (federation) (fluffle_connected{aggregator!=''})", lambda: 2)
        wait_until(lambda: asked.ask("alerts")["alerts"] == [], "no alert")


def best_of(running: Federation) -> float:
    """Return the version that was evaluated best."""
    best = running.newest().best
    return -1 if best is None else best.version


def expressions_with_data(federation: str) -> list[str]:
    """Return what the dashboard asks, but for what RabbitMQ itself tells."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = [each.replace("$federation", federation).replace("$__rate_interval", "1m") for each in asked]
    return [each for each in shown if "rabbitmq_" not in each]
