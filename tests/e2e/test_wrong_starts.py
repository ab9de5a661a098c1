"""What is wrong at the start becomes one clear sentence and exit code 2, never a traceback."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from federation import Federation, Part, assert_refused, wait_until
from tasks.slow_to_begin import BEGUN

from fluffle_cli.node import BrokerNode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            lambda url: url.replace("amqp://", "http://"),
            ("FLUFFLE_BROKER_URL", "does not begin with amqp://"),
        ),
        (lambda url: url.replace("@", "-wrong@"), ("refused the user", "password")),
        (lambda url: url.replace("%2F", "nowhere"), ("virtual host 'nowhere'",)),
    ],
    ids=["url", "password", "virtual host"],
)
def test_a_wrong_broker_url_is_named(
    node: BrokerNode, tmp_path: Path, federation: str, broken: object, words: tuple[str, ...]
) -> None:
    assert callable(broken)
    with Federation(federation, broken(node.amqp_url), tmp_path) as running:
        aggregator = running.aggregator("leader", "--initial-model", "none.safetensors")

        assert_refused(aggregator, *words)
        assert node.password not in aggregator.log.read_text()


def test_a_broker_that_does_not_come_is_waited_for_and_then_named(tmp_path: Path) -> None:
    url = f"amqp://user:secret@127.0.0.1:{free_port()}/%2F"
    with Federation("nobody", url, tmp_path, task="numpy_task:task") as running:
        worker = running.worker(0, "--connect-timeout-s", "2")

        assert_refused(worker, "127.0.0.1", "no RabbitMQ answers")
        assert worker.events("waiting for the broker")


@contextmanager
def a_worker_and_an_evaluator_that_wait(
    node: BrokerNode, folder: Path, federation: str
) -> Iterator[tuple[Federation, list[Part]]]:
    """Start both where there is a broker and no federation yet."""
    with Federation(federation, node.amqp_url, folder, task="numpy_task:task") as running:
        parts = [running.worker(0), running.evaluator()]
        for part in parts:
            part.wait_for("waiting for the federation")
        yield running, parts


def test_a_worker_and_an_evaluator_wait_for_a_federation_that_is_not_there_yet(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with a_worker_and_an_evaluator_that_wait(node, tmp_path, federation) as (running, parts):
        running.aggregator("leader", "--max-versions", "2", "--buffer-size", "1")

        assert [part.wait_for_exit() for part in parts] == [0, 0]
        assert not [part.name for part in parts if part.events("waiting for the broker")]


def test_who_waits_for_a_federation_can_be_asked_to_stop(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with a_worker_and_an_evaluator_that_wait(node, tmp_path, federation) as (_, parts):
        for part in parts:
            part.ask_to_stop()

        assert [part.wait_for_exit() for part in parts] == [0, 0]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("no_such_module:task", ("no_such_module", "cannot be imported")),
        ("numpy_task:no_such_name", ("no_such_name",)),
        ("no_such_task", ("unknown task", "digits")),
    ],
)
def test_a_task_that_cannot_be_found_is_named(
    node: BrokerNode, tmp_path: Path, federation: str, task: str, words: tuple[str, ...]
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task=task) as running:
        assert_refused(running.worker(0), *words)
        assert_refused(running.aggregator("leader"), *words)


def test_a_site_that_does_not_exist_is_named(node: BrokerNode, tmp_path: Path, federation: str) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        assert_refused(running.worker(7, sites=4), "site 7", "--sites")


def test_a_model_of_another_layout_than_the_federations_is_named(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    (tmp_path / "other_task.py").write_text(
        "import numpy as np\n"
        "from numpy_task import SoftmaxRegression\n"
        "class Other(SoftmaxRegression):\n"
        "    def initial_weights(self, seed):\n"
        "        return {'other': np.zeros((3, 2), np.float32)}\n"
        "task = Other()\n"
    )
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        running.aggregator("leader").wait_for("leading")
        running.task = "other_task:task"

        assert_refused(running.worker(0), "the federation's model has", "other")


def test_settings_that_do_not_go_together_are_named(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        both = running.aggregator("leader", "--strategy", "fedasync", "--server-optimizer", "adam")

        assert_refused(both, "server_optimizer is a setting of fedbuff, fedavg, reuse, ace, ca2fl")


def test_a_cache_of_updates_that_no_message_carries_is_refused_before_anybody_trains(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    (tmp_path / "wide_task.py").write_text(
        "import numpy as np\n"
        "from numpy_task import SoftmaxRegression\n"
        "class Wide(SoftmaxRegression):\n"
        "    def initial_weights(self, seed):\n"
        "        return {'wide': np.zeros((500, 400), np.float32)}\n"
        "task = Wide()\n"
    )
    with Federation(federation, node.amqp_url, tmp_path, task="wide_task:task") as running:
        leader = running.aggregator(
            *("leader", "--strategy", "ace", "--cache-codec", "float32", "--max-message-mib", "1")
        )

        assert_refused(
            leader, "what ace keeps of no more than two workers in float32", "1.6 MiB", "at most 1 MiB"
        )


def test_sigterm_lets_everybody_leave_in_good_order(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        parts = [running.aggregator("leader", "--buffer-size", "1"), running.worker(0, "--delay", "0.2")]
        parts.append(running.evaluator())
        parts[0].wait_for("version committed", 2)

        for part in parts:
            part.process.terminate()

        assert [part.wait_for_exit() for part in parts] == [0, 0, 0]
        wait_until(lambda: all(part.process.poll() is not None for part in parts), "the end")


@pytest.mark.parametrize(("role", "what"), [("worker", "round"), ("evaluator", "evaluation")])
def test_whoever_still_reads_its_data_or_builds_its_model_leaves_in_good_order_too(
    node: BrokerNode, tmp_path: Path, federation: str, role: str, what: str
) -> None:
    with Federation(federation, node.amqp_url, tmp_path, task="tasks.slow_to_begin:task") as running:
        part = running.worker(0) if role == "worker" else running.evaluator()
        wait_until((tmp_path / BEGUN).exists, "the beginning")

        part.process.send_signal(signal.SIGINT)

        assert part.wait_for_exit() == 0
        assert part.events(f"asked to stop before the first {what}")
        assert "bug" not in part.log.read_text()
