"""What `fluffle demo` is made of: who gets which settings, what logs tell, and what is made of versions."""

import json
import sys
import tomllib
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
from fluffle.record import Contributor, Folded
from fluffle.settings import load_settings
from fluffle.update import UpdateId
from fluffle_aggregator.goal import Target, parse_target
from fluffle_cli.demo import parts
from fluffle_cli.demo.federation_run import overdue
from fluffle_cli.demo.processes import Processes, last_line
from fluffle_cli.demo.program import command, print_results, shown_settings
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.over_seeds import Speedup
from fluffle_cli.report.command import write_report
from fluffle_cli.report.comparison import verdict
from fluffle_cli.report.run import (
    METRICS,
    SUMMARY,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    read_run,
    write_summary,
)
from fluffle_cli.watching.view import Version

TARGET = parse_target("accuracy>=0.95")
URL = "amqp://user:secret@127.0.0.1:5672/%2F"


def demo_settings(**given: object) -> DemoSettings:
    return load_settings(DemoSettings, given)


def a_line(
    version: int, accuracy: float | None = None, *, of: int | None = None, finished: str = ""
) -> Version:
    """Return a version two seconds after the one before, with the accuracy of the version before."""
    evaluated = version - 1 if of is None else of
    record = replace(
        a_version(version, finished=finished),
        committed_at=100.0 + 2 * version,
        contributors={"worker-0": Contributor(version, 10, version, float(version))},
        folded=(Folded(UpdateId("worker-0", "r", version + 1), version, version % 3, 1.0),),
        evaluation=None if accuracy is None else an_evaluation(evaluated, {"accuracy": accuracy}),
    )
    return Version.of(record)


def lines_with(accuracies: Sequence[float]) -> list[Version]:
    """Return a run in which version 0, 1, 2 ... had these accuracies, and came at 0, 2, 4 ... seconds."""
    return [a_line(0), *(a_line(number + 1, accuracy) for number, accuracy in enumerate(accuracies))]


def a_federation(*versions: Version, strategy: str = "fedbuff", place: str = ".") -> FederationRun:
    about = AboutFederation(strategy=strategy, folder=place)
    return FederationRun(about=about, versions=versions)


def a_run(folder: Path, *runs: tuple[str, str, Sequence[float]]) -> Run:
    """Write the files of a run with federations (strategy, folder, accuracies), and return it."""
    federations = [
        a_federation(*lines_with(accuracies), strategy=strategy, place=place)
        for strategy, place, accuracies in runs
    ]
    for each in federations:
        place = folder / each.about.folder
        place.mkdir(exist_ok=True)
        append_lines(place / METRICS, each.versions)
    about = About(
        task="digits",
        seed=0,
        target=str(TARGET),
        delays_s=[0.2, 1.6],
        central={"accuracy": 0.97},
        runs=[each.about for each in federations],
    )
    run = Run(folder=folder, about=about, federations=federations)
    write_summary(run)
    return run


def a_log(path: Path, *events: Mapping[str, object] | str) -> Path:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or is a zombie that only waits for its parent to look."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(processes: Processes) -> None:
    processes.wait(30.0)
    assert not processes.alive


def test_the_delays_of_the_workers_are_a_geometric_series() -> None:
    assert demo_settings(workers=4, delay=0.2, slowdown=8).delays_s == [0.2, 0.4, 0.8, 1.6]
    assert demo_settings(workers=1, delay=0.2, slowdown=8).delays_s == [0.2]


def test_a_ready_task_has_a_default_target_and_another_task_needs_one() -> None:
    assert demo_settings().goal == Target("accuracy", ">=", 0.95)
    assert demo_settings(task="my.task:task", target="mae<=4").goal == Target("mae", "<=", 4.0)
    with pytest.raises(ConfigError, match="--target is not set"):
        demo_settings(task="my.task:task").checked()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "no_such_task"}, "--task must be one of digits"),
        ({"target": "much"}, "--target must read like"),
        ({"staleness": "much"}, "--staleness must be one of"),
        ({"compare": True, "strategy": "fedavg"}, "--compare"),
        ({"sites": "uneven", "workers": 8, "split": "iid"}, "leave out --split, --workers"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_started(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        demo_settings(**given).checked()


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


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")

    with pytest.raises(ConfigError, match="is not empty"):
        demo_settings(out=tmp_path).make_folder()


def test_a_federation_is_named_by_the_module_of_its_task() -> None:
    assert demo_settings(task="fashion_mnist").task_name == "fashion-mnist"
    assert demo_settings(task="my.Own_Task:task").task_name == "own-task"


def test_the_password_is_on_no_command_line_and_child_processes_ignore_the_configuration_file() -> None:
    settings = demo_settings(workers=2, seed=7)
    where, [setup] = {"federation": "digits", "broker_url": URL}, settings.setups

    everyone = [
        *parts.workers(settings, setup, **where, folder=Path("runs"), table=None, keys=None, sealed=None),
        parts.evaluator(settings, **where, curves=Path("curves"), table=None, sealed=None),
        *parts.aggregators(
            settings,
            setup,
            **where,
            management_url="http://127.0.0.1:1",
            initial_model=Path("v0.safetensors"),
            keys=None,
            secret=None,
            sealed=None,
        ),
    ]

    for part in everyone:
        assert "secret" not in " ".join(part.command)
        assert part.environment["FLUFFLE_BROKER_URL"] == URL
        assert part.environment["FLUFFLE_CONFIG"] == "/dev/null"
        assert part.environment["FLUFFLE_LOG_FORMAT"] == "json"
    assert [part.environment["FLUFFLE_SITE"] for part in everyone[:2]] == ["0", "1"]
    assert {part.environment["FLUFFLE_SPLIT_SEED"] for part in everyone[:2]} == {"7"}


def test_the_table_data_is_that_of_all_sites_of_the_evaluator_and_of_training_in_one_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.toml").write_text(
        '[worker]\nsite = 3\n[data]\nbalance = "weights"\nindicator = true\naugment = ["noise:0.2"]\n',
        encoding="utf-8",
    )
    settings = demo_settings(config=tmp_path / "mine.toml", workers=2)
    where, [setup] = {"federation": "digits", "broker_url": URL}, settings.setups
    table = tmp_path / "data.toml"

    table.write_text(parts.text_of(settings.data_table), encoding="utf-8")

    written = tomllib.loads(table.read_text(encoding="utf-8"))
    assert written == {"data": {"balance": "weights", "indicator": True, "augment": ["noise:0.2"]}}
    everyone = [
        *parts.workers(settings, setup, **where, folder=tmp_path, table=table, keys=None, sealed=None),
        parts.evaluator(settings, **where, curves=tmp_path, table=table, sealed=None),
    ]
    assert {part.environment["FLUFFLE_CONFIG"] for part in everyone} == {str(table)}
    assert str(table) in parts.afterwards(settings, models={}, out=tmp_path, table=table).command[-1]
    assert shown_settings(settings)["data.balance"] == "weights"


def test_uneven_sites_have_data_steps_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[data]\nbalance = "weights"\n', encoding="utf-8")

    with pytest.raises(ConfigError, match=r"has a table \[data\]: name another file with --config"):
        demo_settings(config=tmp_path / "mine.toml", sites="uneven").checked()


def test_fedavg_waits_for_every_worker_whatever_the_buffer_size() -> None:
    settings = demo_settings(workers=3, buffer_size=2)

    def buffer_sizes(strategy: str) -> set[str]:
        found = parts.aggregators(
            settings,
            replace(settings.setups[0], strategy=strategy),
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


def test_the_last_line_of_a_log_is_a_sentence_and_lines_of_pika_are_skipped(
    tmp_path: Path,
) -> None:
    lost = {"event": "lost the broker", "because": "it is gone", "logger": "fluffle_worker.loop"}
    chatter = {"event": "Closing connection", "logger": "pika.connection"}

    assert last_line(a_log(tmp_path / "a.log", lost, chatter)) == "lost the broker: it is gone"
    assert last_line(a_log(tmp_path / "b.log", lost, "error: no such task")) == "error: no such task"
    assert last_line(a_log(tmp_path / "c.log")) == ""


def test_a_dead_process_is_reported_once_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    dying = parts.Part(
        name="w", command=(sys.executable, "-c", "import sys; sys.exit('error: why')"), environment={}
    )
    processes.start([dying])
    wait_for_end(processes)

    dead = processes.newly_dead()

    assert [child.part.name for child in dead] == ["w"]
    assert dead[0].has_died
    assert "exit code 1" in dead[0].cause_of_death()
    assert dead[0].cause_of_death().endswith("ends with: error: why")
    assert processes.newly_dead() == []


def test_processes_that_ignore_sigterm_are_killed_with_their_children(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    processes.start([parts.Part(name="w", command=(sys.executable, "-c", stubborn), environment={})])
    child = processes.children["w"]
    wait_until(lambda: child.log.read_text().endswith("\n"), "the grandchild's number")

    processes.stop(patience_s=0.1)

    assert child.exit_code == -9
    wait_until(lambda: has_ended(int(child.log.read_text())), "the end of the grandchild")


def test_the_curve_shows_an_evaluation_when_its_version_was_committed() -> None:
    run = a_federation(a_line(0), a_line(1), a_line(2, 0.5, of=0), a_line(3, 0.8, of=1), a_line(4, 0.8, of=1))

    assert run.curve("accuracy") == [(0.0, 0.5), (2.0, 0.8)]
    assert run.curve("mae") == []


def test_the_target_is_reached_with_the_first_version_from_which_on_it_holds() -> None:
    assert a_federation(*lines_with([0.5, 0.96, 0.9, 0.95, 0.97])).seconds_to(TARGET) == 6.0
    assert a_federation(*lines_with([0.96, 0.96, 0.9])).seconds_to(TARGET) is None
    assert a_federation(*lines_with([])).seconds_to(TARGET) is None


def test_a_run_is_read_back_the_same_and_knows_how_many_times_as_fast(tmp_path: Path) -> None:
    slow, fast = [0.1, 0.5, 0.8, 0.9, 0.96], [0.1, 0.5, 0.96]

    run = a_run(tmp_path, ("fedavg", "fedavg", slow), ("fedbuff", "fedbuff", fast))

    assert read_run(tmp_path).about == run.about
    assert run.speedups == read_run(tmp_path).speedups == {None: Speedup(2.0)}
    assert verdict(run) == "fedbuff reaches accuracy>=0.95 2.0 times as fast as synchronous fedavg"
    said = json.loads((tmp_path / SUMMARY).read_text())
    assert said["ratio"] == 2.0
    assert [each["seconds_to_target"] for each in said["runs"]] == [8.0, 4.0]
    assert said["runs"][0]["workers"]["worker-0"]["updates"] == 5


def test_a_synchronous_strategy_may_be_the_faster_one(tmp_path: Path) -> None:
    run = a_run(tmp_path, ("fedavg", "a", [0.1, 0.96]), ("fedbuff", "b", [0.1, 0.5, 0.96]))

    assert verdict(run) == "synchronous fedavg reaches accuracy>=0.95 2.0 times as fast as fedbuff"


def test_what_never_reached_the_target_counts_with_the_time_for_which_it_was_watched(tmp_path: Path) -> None:
    baseline = a_run(tmp_path, ("fedavg", "a", [0.1, 0.2, 0.3]), ("fedbuff", "b", [0.1, 0.96]))
    strategy = a_run(tmp_path, ("fedavg", "c", [0.1, 0.96]), ("fedbuff", "d", [0.1, 0.2]))

    assert verdict(a_run(tmp_path, ("fedbuff", ".", [0.1, 0.96]))) == ""
    # Watched for 6 s.
    assert verdict(baseline) == (
        "fedbuff reaches accuracy>=0.95 at least 3.0 times as fast as synchronous fedavg"
    )
    assert verdict(strategy) == "fedbuff does not reach accuracy>=0.95"


def test_the_printed_results_set_the_final_model_beside_the_central_one(tmp_path: Path) -> None:
    written = StringIO()

    print_results(Console(file=written, width=80), a_run(tmp_path, ("fedbuff", ".", [0.1, 0.96])))

    lines = [line.split() for line in written.getvalue().splitlines()]
    assert ["final", "accuracy", "0.9600", "0.9700"] in lines
    assert ["accuracy>=0.95", "held", "from", "2.0", "s"] in lines
    assert any(line[:1] == ["worker-0"] for line in lines)


def test_a_run_that_missed_its_target_says_so(tmp_path: Path) -> None:
    written = StringIO()

    print_results(Console(file=written, width=80), a_run(tmp_path, ("fedbuff", ".", [0.1, 0.2])))

    assert "fedbuff ended without reaching accuracy>=0.95" in written.getvalue()


def test_the_report_of_a_comparison_is_made_from_the_folders_files_alone(tmp_path: Path) -> None:
    a_run(tmp_path, ("fedavg", "fedavg", [0.1, 0.5, 0.9, 0.96]), ("fedbuff", "fedbuff", [0.1, 0.96]))

    text = write_report(read_run(tmp_path), []).read_text()

    assert "fedbuff reaches accuracy>=0.95 3.0 times as fast as synchronous fedavg." in text
    assert "trained in one place: 0.9700" in text


def test_a_run_without_any_update_has_a_report_too(tmp_path: Path) -> None:
    run = a_federation(Version.of(replace(a_version(0), committed_at=100.0)))
    about = About(task="digits", target=str(TARGET), runs=[run.about])

    assert write_report(Run(folder=tmp_path, about=about, federations=[run]), []).is_file()


def test_the_time_limit_of_the_demo_counts_from_the_first_update() -> None:
    assert overdue(200, 40, is_training=False) == ""
    assert overdue(301, 40, is_training=False) == "no update has come for 300 s"
    assert overdue(70, 40, is_training=True) == ""
    assert overdue(71, 40, is_training=True) == "the federation has not finished 30 s after --max-seconds 40"
