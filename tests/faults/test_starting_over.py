"""Starting over with real parts: `fluffle federation reset` and `delete` under them, and users who stay."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import Federation, Part, applied_ids, assert_refused, wait_until

from fluffle.safetensors_file import write_model
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

TASK = "numpy_task:task"
RESET = (
    "the federation was reset: this worker dropped its state of the previous federation and continues from "
    "the newest version"
)

Fluffle = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node whose management interface may be asked."""
    with BrokerNode.start(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def federation_name(federation: str) -> str:
    return f"again-{federation}"


@pytest.fixture
def running(
    managed: BrokerNode, tmp_path: Path, federation_name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Federation]:
    monkeypatch.setenv("FLUFFLE_MANAGEMENT_URL", str(managed.management_url))
    with Federation(federation_name, managed.amqp_url, tmp_path, task=TASK) as federation:
        yield federation


def run(federation: Federation, *arguments: str) -> str:
    """Run a command that must go well, and return what it says."""
    done = federation.fluffle(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queues_of(federation: Federation) -> list[str]:
    """The queues of a federation that are on the broker, by the command that shows them."""
    said = federation.fluffle("federation", "show", federation.name).stdout
    words = [line.split() for line in said.splitlines()]
    return [row[0] for row in words if row and row[0].startswith(f"{federation.name}.")]


def trains_on(worker: Part, more: int = 3) -> None:
    worker.wait_for("update published", len(worker.events("update published")) + more)


def test_workers_and_an_evaluator_at_work_go_on_with_a_federation_that_was_reset(running: Federation) -> None:
    leader = running.aggregator("leader", "--buffer-size", "1")
    worker, evaluator = running.worker(0, "--delay", "0.1"), running.evaluator()
    worker.wait_for("update published", 5)
    evaluator.wait_for("evaluated")
    old = running.newest()
    refused = running.fluffle("federation", "reset", running.name, "--yes")
    leader.ask_to_stop()
    assert leader.wait_for_exit() == 0
    # RabbitMQ's management interface is seconds behind.
    wait_until(
        lambda: "aggregator leader" not in running.fluffle("federation", "show", running.name).stdout,
        "it to go",
    )

    said = run(running, "federation", "reset", running.name, "--yes")

    assert refused.returncode == 2
    assert "parts of the federation" in refused.stderr
    assert "aggregator leader" in refused.stderr
    assert "worker site-0" in said
    next_leader = running.aggregator("next", "--buffer-size", "1")
    worker.wait_for(RESET)
    trains_on(worker)
    wait_until(lambda: running.newest().updates >= 3, "updates of the new federation")
    new = running.newest()
    # Above all that anybody has seen of the old one, and with none of its updates.
    assert new.terms[0].version == 0
    assert new.term > old.term
    assert not applied_ids(new) & applied_ids(old)
    wait_until(
        lambda: any(line["version"] != 0 for line in evaluator.events("evaluated")[-1:]),
        "an evaluation of it",
    )
    for part in (worker, evaluator, next_leader):
        part.ask_to_stop()
        assert part.wait_for_exit() == 0


def test_a_reset_in_the_midst_of_it_ends_the_aggregators_with_a_sentence_and_no_update_of_before_counts(
    running: Federation,
) -> None:
    aggregators = [running.aggregator(name, "--buffer-size", "1") for name in ("first", "second")]
    worker = running.worker(0, "--delay", "0.1")
    worker.wait_for("update published", 3)
    worker.kill()
    spool = next((running.folder / ".fluffle").rglob("first-term")).parent
    waiting = an_update_left_in(spool)

    run(running, "federation", "reset", running.name, "--yes", "--force")

    for part in aggregators:
        assert_refused(part, "its queue was deleted")
    running.aggregator("next", "--buffer-size", "1")
    # As after weeks: started again, with an update of the old federation in its spool.
    again = running.worker(0, "--delay", "0.1")
    again.wait_for(RESET)
    assert again.events(RESET)[0]["dropped_updates"] == 1
    trains_on(again)
    assert not waiting.exists()
    assert not running.deliveries_in(running.topology.rejected.name)


def an_update_left_in(spool: Path) -> Path:
    """Leave the file of an update there as a worker does that is killed before it is confirmed."""
    last = max(spool.glob("*.done"))
    waiting = spool / f"{int(last.name[:12]) + 1:012d}{last.name[12:].removesuffix('.done')}.update"
    waiting.write_bytes(b"an update")
    return waiting


def test_a_deleted_federation_leaves_nothing_behind_and_a_worker_that_comes_says_that_it_waits(
    running: Federation,
) -> None:
    leader = running.aggregator("leader", "--buffer-size", "1")
    worker = running.worker(0, "--delay", "0.1")
    worker.wait_for("update published", 3)
    assert f"{running.name}.worker.site-0" in queues_of(running)

    refused = running.fluffle("federation", "delete", running.name, "--yes")
    said = run(running, "federation", "delete", running.name, "--yes", "--force")

    assert refused.returncode == 2
    assert "worker site-0" in refused.stderr
    assert f"queues of the federation {running.name}" in said
    assert_refused(leader, "its queue was deleted")
    worker.wait_for("waiting for the federation")
    worker.ask_to_stop()
    assert worker.wait_for_exit() == 0
    wait_until(lambda: queues_of(running) == [], "the queues of the worker's name to go with it")
    gone = running.fluffle("federation", "show", running.name)
    assert gone.returncode == 2
    assert f"there is no federation '{running.name}'" in gone.stderr


def test_one_worker_user_trains_in_two_federations_and_may_not_touch_a_third(
    managed: BrokerNode, running: Federation
) -> None:
    password = running.folder / "site-0.password"
    pattern = f"{running.name}-gym-*"
    run(
        running,
        "user",
        "add",
        "site-0",
        "--role",
        "worker",
        "--federation",
        pattern,
        "--password-file",
        str(password),
    )
    mine = f"amqp://site-0:{password.read_text().strip()}@127.0.0.1:{managed.amqp_port}/%2F"
    write_model(running.folder / "initial.safetensors", {"kernel": np.zeros(4, np.float32)})

    for name in (f"{running.name}-gym-1", f"{running.name}-gym-2"):
        with Federation(name, managed.amqp_url, running.folder, task=TASK) as each:
            leader = each.aggregator(f"leader-{name}", "--max-updates", "3", "--buffer-size", "1")
            each.broker_url = mine
            worker = each.worker(0)
            assert worker.wait_for_exit() == 0, worker.log.read_text()
            assert leader.wait_for_exit() == 0
            each.broker_url = managed.amqp_url
            assert each.newest().contributors.keys() == {"site-0"}
    third = f"{running.name}-other"
    with Federation(third, managed.amqp_url, running.folder, task=TASK) as each:
        leader = each.aggregator("leader-third", "--initial-model", "initial.safetensors")
        leader.wait_for("leading")
        each.broker_url = mine
        assert_refused(each.worker(1, "--name", "site-0"), "'site-0'", f"{third}.")
