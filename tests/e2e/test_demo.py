"""`fluffle demo` as a newcomer starts it: what it leaves behind, and how Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from event_files import points_in
from federation import wait_until

from fluffle.safetensors_file import read_model
from fluffle.task import load_task
from fluffle_aggregator.goal import parse_target
from fluffle_cli.report.run import read_run

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE_S = 200.0


@contextmanager
def a_demo(out: Path, *flags: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `fluffle demo`; whatever happens, nothing of it stays behind."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "fluffle_cli.main", "demo", "--out", str(out), *flags],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("FLUFFLE_")}
        | {name: os.environ[name] for name in ("FLUFFLE_RABBITMQ_BIN",) if name in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield demo
    finally:
        demo.kill()
        demo.communicate()
        for process in processes_of(out):
            process.kill()


def processes_of(out: Path) -> list[psutil.Process]:
    """Find the processes that have the run's folder in their environment or on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.environ().values(), *process.cmdline()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(out) in text for text in texts):
            found.append(process)
    return found


def children_of(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all that the demo has started, and what that has started."""
    return psutil.Process(demo.pid).children(recursive=True)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_demo_trains_to_its_target_and_leaves_all_that_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with a_demo(out, "--workers", "2", "--target", "0.8", "--delay", "0.05", cwd=tmp_path) as demo:
        said, _ = demo.communicate(timeout=DEADLINE_S)

        assert demo.returncode == 0, said
        assert processes_of(out) == []

    [run] = read_run(out).federations
    assert run.last.finished == "accuracy>=0.8 held for 3 s"
    assert run.seconds_to(parse_target("accuracy>=0.8")) is not None
    assert [each.version for each in run.versions] == list(range(len(run.versions)))
    assert run.last.updates == sum(each.updates for each in run.last.contributors.values())
    # The target may be reached before each of them has given an update.
    assert set() < set(run.last.contributors) <= {"worker-0", "worker-1"}

    page = (out / "report.html").read_text()
    assert "report.html" in said
    assert "RabbitMQ " in page
    joined = {each.name for each in run.happened if each.what == "joined"}
    assert joined >= {"worker-0", "worker-1", "evaluator", "aggregator-1", "aggregator-2"}
    # What each part does is known from its events, and not from debug lines of its log.
    assert "debug" not in {line["level"] for line in lines_of(out / "logs" / "worker-0.log")}
    assert "metrics/accuracy" in points_in(out / "tensorboard")

    digits = load_task("digits")
    weights = digits.load(out / "model.keras")
    assert run.last.evaluation is not None
    final = run.last.evaluation.metrics
    assert digits.evaluate(weights) == pytest.approx(dict(final), abs=1e-4)
    stored = read_model(out / "model.safetensors")
    assert all((weights[name] == stored[name]).all() for name in stored)

    logs = {path.stem for path in (out / "logs").iterdir()}
    assert logs >= {"aggregator-1", "aggregator-2", "evaluator", "worker-0", "worker-1", "rabbitmq", "demo"}
    assert_healthy(out / "logs", since=run.began_at)

    assert not (out / "broker").exists(), "the password is gone with the broker"
    assert f"{final['accuracy']:.4f}" in said
    assert "RabbitMQ's UI: http://127.0.0.1:" in said
    assert "Traceback" not in said
    assert "\x1b" not in said, "there are no colour codes where there is no terminal"


def assert_healthy(logs: Path, *, since: float, but: str = "") -> None:
    """Since the first version nobody has warned of anything, and each line of a part is one JSON object.

    A warning of this text is not counted.
    """
    for log in logs.glob("*.log"):
        text = log.read_text()
        if log.stem in {"initial-model", "afterwards", "report"}:
            assert text in ("", f"the report is {logs.parent / 'report.html'}\n"), log
        elif log.stem != "rabbitmq":
            lines = lines_of(log)
            warnings = [line for line in lines if line["level"] not in {"debug", "info"}]
            assert [
                each
                for each in warnings
                if datetime.fromisoformat(each["time"]).timestamp() > since and each["event"] != but
            ] == []
            assert {line["federation"] for line in lines} <= {"digits", "digits-in-numpy"}, log


def lines_of(log: Path) -> list[dict[str, str]]:
    """Return the lines of a part's log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.long
def test_a_demo_with_differential_privacy_ends_well_when_all_workers_have_spent_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--dp-epsilon", "8", "--dp-max-updates", "3", "--workers", "4", "--delay", "0.05")
    with a_demo(out, *flags, cwd=tmp_path) as demo:
        said, _ = demo.communicate(timeout=DEADLINE_S)

        assert demo.returncode == 0, said

    [run] = read_run(out).federations
    assert run.last.finished.startswith("all workers have sent the 3 updates")
    assert "(epsilon 8, delta 1e-05, at most 3 updates)" in said
    assert "privacy: epsilon 8 of 8 spent" in said
    assert not list(out.rglob("*.secret")), "with the secret the noise could be taken off"
    strong = "with fewer workers than this, the noise in the model is longer than all updates together"
    assert_healthy(out / "logs", since=run.began_at, but=strong)


COMPARISON = (
    "--task",
    "numpy_task:task",
    "--compare",
    "--workers",
    "2",
    "--delay",
    "0.05",
    "--slowdown",
    "4",
)


@pytest.mark.long
def test_a_sealed_demo_reaches_its_target_and_leaves_a_model_that_can_be_read_and_no_key(
    tmp_path: Path,
) -> None:
    task = f"{EXAMPLES.name}.sklearn_task:task"
    flags = ("--sealed", "--task", task, "--target", "accuracy>=0.85", "--delay", "0.1", "--workers", "2")
    with a_demo(tmp_path / "run", *flags, cwd=EXAMPLES.parent) as demo:
        said, _ = demo.communicate(timeout=DEADLINE_S)

    assert demo.returncode == 0, said
    assert "Updates and model are encrypted: the aggregator and RabbitMQ see neither." in said
    weights = read_model(tmp_path / "run" / "model.safetensors")
    assert load_task("examples.sklearn_task:task").evaluate(weights)["accuracy"] >= 0.85
    assert list((tmp_path / "run").rglob("sealed.*")) == []


@pytest.mark.long
def test_a_comparison_runs_both_strategies_with_each_seed_and_shows_median_and_worst(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = (*COMPARISON, "--seeds", "2", "--seed", "3", "--target", "0.5", "--max-seconds", "30")
    with a_demo(out, *flags, cwd=EXAMPLES) as demo:
        said, _ = demo.communicate(timeout=2 * DEADLINE_S)

        assert demo.returncode == 0, said
        assert processes_of(out) == []

    run = read_run(out)
    assert "4 federations (2 seeds) one after the other: each trains for at most 30 s" in said
    in_turn = [("fedavg", 3), ("reuse", 3), ("fedavg", 4), ("reuse", 4)]
    assert [(each.strategy, each.about.seed) for each in run.federations] == in_turn
    order = [said.index(f"{strategy}\n", said.index(f"seed {seed} (")) for strategy, seed in in_turn]
    assert order == sorted(order)
    assert {each.last.finished for each in run.federations} == {"accuracy>=0.5 held for 3 s"}
    assert list(run.speedups) == [3, 4]
    assert "in the median of 2 seeds, and " in said
    for strategy, seed in in_turn:
        folder = out / f"seed-{seed}" / strategy
        assert {"metrics.jsonl", "events.jsonl", "model.safetensors", "logs"} <= {
            path.name for path in folder.iterdir()
        }
    page = (out / "report.html").read_text()
    assert "reuse, median of 2 seeds" in page
    assert "fedavg, seed 4" in page


@pytest.mark.long
def test_a_comparison_that_is_stopped_keeps_the_seeds_that_are_done_with_those_that_missed(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    # No accuracy is that good: each federation ends by its time.
    flags = (*COMPARISON, "--seeds", "3", "--target", "2.0", "--max-seconds", "2")
    with a_demo(out, *flags, cwd=EXAMPLES) as demo:
        second = out / "seed-1"
        wait_until(
            lambda: second.exists() or demo.poll() is not None, "the second seed", deadline_s=DEADLINE_S
        )

        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=DEADLINE_S)

        assert demo.returncode == 130, said
        assert processes_of(out) == []

    run = read_run(out)
    assert [(each.strategy, each.about.seed) for each in run.federations] == [("fedavg", 0), ("reuse", 0)]
    assert "1 of 3 seeds is done" in said
    assert "reuse ended without reaching accuracy>=2" in said
    assert "seconds have passed" in said
    assert (out / "report.html").is_file()
    assert "Traceback" not in said


def test_ctrl_c_ends_a_demo_at_once_and_leaves_nothing_running(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--task", "numpy_task:task", "--target", "2.0", "--workers", "2", "--delay", "0.05")
    with a_demo(out, *flags, cwd=EXAMPLES) as demo:
        wait_until(lambda: has_a_leader(out) or demo.poll() is not None, "a leader")
        started = children_of(demo)
        assert len(started) >= 6, "a broker, two aggregators, an evaluator and two workers"

        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=DEADLINE_S)

        assert demo.returncode == 130, said
        assert "Traceback" not in said
        assert f"What there is of the run lies in {out}" in said
        wait_until(lambda: not any(map(is_alive, started)), "the end of all", deadline_s=5)
        assert processes_of(out) == []
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["version"] == 0


@pytest.mark.long
def test_a_demo_that_is_killed_takes_all_that_it_has_started_with_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--task", "numpy_task:task", "--target", "2.0", "--workers", "2", "--delay", "0.05")
    with a_demo(out, *flags, cwd=EXAMPLES) as demo:
        wait_until(lambda: has_a_leader(out) or demo.poll() is not None, "a leader")
        started = children_of(demo)
        assert len(started) >= 6, "a broker, two aggregators, an evaluator and two workers"

        demo.kill()

        wait_until(lambda: not any(map(is_alive, started)), "the end of all", deadline_s=20)
        wait_until(lambda: processes_of(out) == [], "the end of the broker's helpers", deadline_s=20)


def test_ctrl_c_ends_a_demo_that_has_only_begun_to_start(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with a_demo(out, "--task", "numpy_task:task", "--target", "2.0", cwd=EXAMPLES) as demo:
        node = out / "broker" / "node.json"
        wait_until(lambda: node.exists() or demo.poll() is not None, "a broker that starts")

        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=DEADLINE_S)

        assert demo.returncode == 130, said
        assert "Traceback" not in said
        assert processes_of(out) == []


def has_a_leader(out: Path) -> bool:
    events = out / "events.jsonl"
    return events.exists() and "tookover" in events.read_text()
