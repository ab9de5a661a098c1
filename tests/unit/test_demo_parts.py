"""What `fluffle demo` is made of: who gets which settings, what logs tell, and what is made of versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from builders import a_version, an_evaluation
from federation import wait_until
from rich.console import Console
from typer.testing import CliRunner

from fluffle.command_line import new_app
from fluffle.errors import ConfigError
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.settings import load_settings
from fluffle.update import UpdateId
from fluffle_aggregator.goal import Target, parse_target
from fluffle_cli.demo import command, parts
from fluffle_cli.demo.federation_run import overdue
from fluffle_cli.demo.log_tail import AGGREGATOR_STATES, WORKER_STATES, LogTail
from fluffle_cli.demo.processes import Crew
from fluffle_cli.demo.settings import DemoSettings, Strategy
from fluffle_cli.report import pictures, plots
from fluffle_cli.report.metrics import (
    Point,
    VersionRow,
    append_row,
    curve,
    read_rows,
    row_of,
    seconds_to_target,
)
from fluffle_cli.report.run_folder import read_run
from fluffle_cli.report.summary import Summary, print_summary, read_summary, run_summary, write_summary

PNG = b"\x89PNG\r\n\x1a\n"
TARGET = parse_target("accuracy>=0.95")
URL = "amqp://user:secret@127.0.0.1:5672/%2F"


def demo_settings(**given: object) -> DemoSettings:
    return load_settings(DemoSettings, given)


def a_row(
    version: int, accuracy: float | None = None, *, of: int | None = None, finished: str = ""
) -> VersionRow:
    """Return a row two seconds after the one before, with the accuracy of the version before."""
    evaluated = version - 1 if of is None else of
    record = replace(
        a_version(version, finished=finished),
        committed_at=100.0 + 2 * version,
        contributors={"worker-0": Contributor(version, 10, version, float(version))},
        folded=(Folded(UpdateId("worker-0", "r", version + 1), version, version % 3, 1.0),),
        evaluation=None if accuracy is None else an_evaluation(evaluated, {"accuracy": accuracy}),
    )
    return row_of(record, started_at=100.0)


def rows_with(accuracies: Sequence[float]) -> list[VersionRow]:
    """Return a run in which version 0, 1, 2 ... had these accuracies, and came at 0, 2, 4 ... seconds."""
    return [a_row(0), *(a_row(number + 1, accuracy) for number, accuracy in enumerate(accuracies))]


def a_summary(folder: Path, *runs: tuple[str, str, Sequence[float]]) -> Summary:
    """Write the metrics of runs (strategy, folder, accuracies) and return their summary."""
    summaries = []
    for strategy, place, accuracies in runs:
        (folder / place).mkdir(exist_ok=True)
        for row in rows_with(accuracies):
            append_row(folder / place / "metrics.jsonl", row)
        rows = list(read_rows(folder / place / "metrics.jsonl"))
        final = {"accuracy": accuracies[-1]}
        summaries.append(run_summary(strategy=strategy, folder=place, rows=rows, target=TARGET, final=final))
    return Summary(
        task="digits",
        seed=0,
        target=str(TARGET),
        delays_s=[0.2, 1.6],
        central={"accuracy": 0.97},
        runs=summaries,
    )


def a_tail(path: Path, *events: Mapping[str, object] | str) -> LogTail:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    path.write_text("".join(f"{line}\n" for line in lines))
    tail = LogTail(path, WORKER_STATES)
    tail.read()
    return tail


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or is a zombie that only waits for its parent to look."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(crew: Crew) -> None:
    crew.wait(30.0)
    assert not crew.alive


def test_the_slowest_worker_idles_so_many_times_as_long_as_the_fastest_and_the_others_lie_between() -> None:
    assert demo_settings(workers=4, delay=0.2, slowdown=8).delays_s == [0.2, 0.4, 0.8, 1.6]
    assert demo_settings(workers=1, delay=0.2, slowdown=8).delays_s == [0.2]


def test_a_ready_task_has_a_target_and_ones_own_task_needs_one() -> None:
    assert demo_settings().goal == Target("accuracy", ">=", 0.95)
    assert demo_settings(task="my.task:task", target="mae<=4").goal == Target("mae", "<=", 4.0)
    with pytest.raises(ConfigError, match="--target is not set"):
        demo_settings(task="my.task:task").check()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "no_such_task"}, "--task must be one of digits"),
        ({"target": "much"}, "FLUFFLE_TARGET"),
        ({"staleness": "much"}, "FLUFFLE_STALENESS"),
        ({"compare": True, "strategy": "fedavg"}, "--compare"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_started(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        demo_settings(**given).check()


def test_the_demo_offers_no_flag_for_a_broker_or_a_federation_since_it_makes_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app = new_app()
    app.command("demo")(command)
    app.command("other")(lambda: None)

    text = CliRunner().invoke(app, ["demo", "--help"]).output

    assert "--keep-broker" in text
    assert "--verbose" in text
    assert "--broker-url" not in text
    assert "--federation" not in text


def test_a_folder_with_something_in_it_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")

    with pytest.raises(ConfigError, match="is not empty"):
        demo_settings(out=tmp_path).make_folder()


def test_a_federation_is_named_by_the_module_of_its_task() -> None:
    assert demo_settings(task="fashion_mnist").task_name == "fashion-mnist"
    assert demo_settings(task="my.Own_Task:task").task_name == "own-task"


def test_the_password_is_on_no_command_line_and_children_read_no_configuration_of_the_users() -> None:
    settings = demo_settings(workers=2, seed=7)
    where = {"federation": "digits", "broker_url": URL}

    everyone = [
        *parts.workers(settings, **where, spool=Path("spool")),
        parts.evaluator(settings, **where, curves=Path("curves")),
        *parts.aggregators(
            settings,
            "fedbuff",
            **where,
            management_url="http://127.0.0.1:1",
            initial_model=Path("v0.safetensors"),
        ),
    ]

    for part in everyone:
        assert "secret" not in " ".join(part.command)
        assert part.environment["FLUFFLE_BROKER_URL"] == URL
        assert part.environment["FLUFFLE_CONFIG"] == "/dev/null"
        assert part.environment["FLUFFLE_LOG_FORMAT"] == "json"
    assert [part.environment["FLUFFLE_SITE"] for part in everyone[:2]] == ["0", "1"]
    assert {part.environment["FLUFFLE_SPLIT_SEED"] for part in everyone[:2]} == {"7"}


def test_fedavg_waits_for_every_worker_whatever_the_buffer_size() -> None:
    settings = demo_settings(workers=3, buffer_size=2)

    def buffer_sizes(strategy: Strategy) -> set[str]:
        found = parts.aggregators(
            settings,
            strategy,
            federation="digits",
            broker_url=URL,
            management_url="http://127.0.0.1:1",
            initial_model=Path("v0.safetensors"),
        )
        # So that they look at the policies of the demo's broker, whose interface is at no usual port.
        assert {part.environment["FLUFFLE_MANAGEMENT_URL"] for part in found} == {"http://127.0.0.1:1"}
        return {part.environment["FLUFFLE_BUFFER_SIZE"] for part in found}

    assert buffer_sizes("fedavg") == {"3"}
    assert buffer_sizes("fedbuff") == {"2"}


@pytest.mark.parametrize(
    ("event", "state"),
    [
        ({"event": "data prepared"}, "starting"),
        ({"event": "fetching the newest version"}, "fetching"),
        ({"event": "waiting for a new version"}, "waiting"),
        ({"event": "round started", "version": 3}, "training"),
        ({"event": "idling", "seconds": 1.6}, "idle for 1.6 s"),
        ({"event": "round trained"}, "publishing"),
        ({"event": "the federation has finished"}, "done"),
    ],
)
def test_the_last_event_of_a_log_tells_what_a_worker_is_about(
    tmp_path: Path, event: dict[str, object], state: str
) -> None:
    assert a_tail(tmp_path / "w.log", event, {"event": "something else"}).state == state


def test_a_log_is_followed_as_it_grows_even_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    tail = LogTail(path, AGGREGATOR_STATES)
    tail.read()
    assert tail.state == "starting"

    path.write_text('{"event": "standing by"}\n{"event": "lead')
    tail.read()
    assert tail.state == "standing by"

    with path.open("a") as file:
        file.write('ing"}\n')
    tail.read()
    assert tail.state == "leading"


def test_a_worker_is_ready_when_it_looks_for_a_version(tmp_path: Path) -> None:
    assert not a_tail(tmp_path / "w.log", {"event": "data prepared"}).is_ready
    assert a_tail(tmp_path / "w.log", {"event": "fetching the newest version"}).is_ready


def test_the_last_line_is_told_as_a_sentence_whatever_its_form_and_pikas_are_passed_over(
    tmp_path: Path,
) -> None:
    lost = {"event": "lost the broker", "because": "it is gone", "logger": "fluffle_worker.loop"}
    chatter = {"event": "Closing connection", "logger": "pika.connection"}

    assert a_tail(tmp_path / "a.log", lost, chatter).last_line == "lost the broker: it is gone"
    assert a_tail(tmp_path / "b.log", lost, "error: no such task").last_line == "error: no such task"


def test_a_process_that_dies_is_told_of_once_with_its_last_line(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    dying = parts.Part(
        name="w", command=(sys.executable, "-c", "import sys; sys.exit('error: why')"), environment={}
    )
    crew.start([dying], WORKER_STATES)
    wait_for_end(crew)

    dead = crew.newly_dead()

    assert [child.name for child in dead] == ["w"]
    assert dead[0].state == "died"
    assert "exit code 1" in dead[0].obituary()
    assert dead[0].obituary().endswith("ends with: error: why")
    assert crew.newly_dead() == []


def test_a_crew_ends_even_those_who_do_not_listen_and_their_children(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    crew.start([parts.Part(name="w", command=(sys.executable, "-c", stubborn), environment={})], {})
    child = crew.children["w"]
    wait_until(lambda: child.log.read_text().endswith("\n"), "the grandchild's number")

    crew.stop(patience_s=0.1)

    assert child.exit_code == -9
    wait_until(lambda: has_ended(int(child.log.read_text())), "the end of the grandchild")


def test_a_version_becomes_one_line_that_is_read_back_the_same(tmp_path: Path) -> None:
    rows = rows_with([0.5, 0.9])

    for row in rows:
        append_row(tmp_path / "metrics.jsonl", row)

    assert list(read_rows(tmp_path / "metrics.jsonl")) == rows
    assert [row.seconds for row in rows] == [0.0, 2.0, 4.0]
    assert rows[2].mean_staleness == 2.0


def test_an_accuracy_stands_at_the_time_at_which_its_version_was_committed() -> None:
    rows = [a_row(0), a_row(1), a_row(2, 0.5, of=0), a_row(3, 0.8, of=1), a_row(4, 0.8, of=1)]

    assert curve(rows, "accuracy") == [Point(0.0, 0.5), Point(2.0, 0.8)]
    assert curve(rows, "mae") == []


def test_the_target_is_reached_with_the_first_version_from_which_on_it_holds() -> None:
    assert seconds_to_target(rows_with([0.5, 0.96, 0.9, 0.95, 0.97]), TARGET) == 6.0
    assert seconds_to_target(rows_with([0.96, 0.96, 0.9]), TARGET) is None
    assert seconds_to_target(rows_with([]), TARGET) is None


def test_the_summary_is_read_back_the_same_and_knows_how_many_times_as_fast(tmp_path: Path) -> None:
    slow, fast = [0.1, 0.5, 0.8, 0.9, 0.96], [0.1, 0.5, 0.96]
    summary = a_summary(tmp_path, ("fedavg", "fedavg", slow), ("fedbuff", "fedbuff", fast))

    write_summary(tmp_path, summary)

    assert read_summary(tmp_path) == summary
    assert summary.ratio == 2.0
    assert summary.verdict == "fedbuff reaches accuracy>=0.95 2.0 times as fast as synchronous fedavg"


def test_without_two_times_to_the_target_there_is_no_ratio(tmp_path: Path) -> None:
    one = a_summary(tmp_path, ("fedbuff", ".", [0.1, 0.96]))
    missed = a_summary(tmp_path, ("fedavg", "a", [0.1, 0.2]), ("fedbuff", "b", [0.1, 0.96]))

    assert (one.ratio, one.verdict) == (None, "")
    assert (missed.ratio, missed.verdict) == (None, "fedbuff and synchronous fedavg")


def test_the_printed_summary_sets_the_final_model_beside_the_central_one(tmp_path: Path) -> None:
    written = StringIO()

    print_summary(Console(file=written, width=80), a_summary(tmp_path, ("fedbuff", ".", [0.1, 0.96])))

    text = written.getvalue()
    assert "accuracy of the final model    0.9600                 0.9700" in text
    assert "accuracy>=0.95 held from        2.0 s" in text
    assert "worker-0" in text


def test_a_run_that_missed_its_target_says_so(tmp_path: Path) -> None:
    written = StringIO()

    print_summary(Console(file=written, width=80), a_summary(tmp_path, ("fedbuff", ".", [0.1, 0.2])))

    assert "fedbuff ended without reaching accuracy>=0.95" in written.getvalue()


def test_pictures_are_drawn_from_the_folders_files_alone(tmp_path: Path) -> None:
    summary = a_summary(
        tmp_path, ("fedavg", "fedavg", [0.1, 0.5, 0.9, 0.96]), ("fedbuff", "fedbuff", [0.1, 0.96])
    )
    write_summary(tmp_path, summary)

    pictures.draw_run(read_run(tmp_path))

    drawn = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert drawn == [
        "compare.png",
        *(f"fedavg/{name}.png" for name in ("accuracy", "contributions", "staleness", "timeline")),
        *(f"fedbuff/{name}.png" for name in ("accuracy", "contributions", "staleness", "timeline")),
    ]
    assert all((tmp_path / picture).read_bytes().startswith(PNG) for picture in drawn)


def test_a_run_without_any_update_has_pictures_too(tmp_path: Path) -> None:
    empty: ModelVersion = replace(a_version(0), committed_at=100.0)
    course = plots.Course(name="fedbuff", rows=[row_of(empty, started_at=100.0)])

    plots.plot_quality(
        tmp_path / "a.png", [course], title="t", metric="accuracy", target=TARGET, central=None
    )
    plots.plot_staleness(tmp_path / "s.png", course, title="t")

    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert (tmp_path / "s.png").read_bytes().startswith(PNG)


def test_the_demo_gives_up_on_its_training_time_only_once_it_trains() -> None:
    assert overdue(200, 40, is_training=False) == ""
    assert overdue(301, 40, is_training=False) == "no update has come for 300 s"
    assert overdue(70, 40, is_training=True) == ""
    assert overdue(71, 40, is_training=True) == "the federation has not finished 30 s after --max-seconds 40"
