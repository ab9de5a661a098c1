"""`fluffle simulate --sweep`: the grid, the pool of processes, and what is written of their runs."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tasks.fragile_task import IS_KILLED, RAISES

from fluffle.errors import ConfigError, FluffleError
from fluffle.settings import load_arguments
from fluffle_cli.report.run import read_run
from fluffle_cli.simulate.grid import Grid, grid_of, parse_sweep
from fluffle_cli.simulate.pool import Ended, PlannedRun, _Player, play_all
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.settings import SimulateSettings

# A small federation of a task in plain numpy, whose processes start fast.
FAST = {"task": "numpy_task:task", "clients": 3, "learning_rate": 0.1, "target": "0.8", "max_seconds": 20}
DEADLINE_S = 240.0


def settings_of(**given: Any) -> SimulateSettings:
    return load_arguments(SimulateSettings, FAST | given)


def labels(grid: Grid) -> list[str]:
    return [each.label for each in grid.combinations]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_all_combinations_of_its_values_with_each_seed() -> None:
    grid = grid_of(settings_of(sweep="buffer-size=2,4 codec=float32,int8", seeds=3, seed=7))

    assert labels(grid) == [
        f"buffer_size={size} codec={codec}" for size in (2, 4) for codec in ("float32", "int8")
    ]
    assert [each.settings.buffer_size for each in grid.combinations] == [2, 2, 4, 4]
    assert list(grid.seeds) == [7, 8, 9]
    assert grid.size == 12


def test_a_strategy_is_played_once_without_the_swept_settings_that_it_does_not_have() -> None:
    grid = grid_of(settings_of(sweep="buffer_size=1,2 strategy=fedbuff,fedasync,fedavg"))

    assert labels(grid) == [
        "buffer_size=1 strategy=fedbuff",
        "strategy=fedasync",
        "buffer_size=1 strategy=fedavg",
        "buffer_size=2 strategy=fedbuff",
        "buffer_size=2 strategy=fedavg",
    ]
    assert grid.left_out == {"fedasync": ["buffer_size"]}


def test_what_is_set_for_all_is_left_out_of_the_strategies_that_do_not_have_it() -> None:
    grid = grid_of(
        settings_of(strategy="fedbuff", sweep="strategy=fedbuff,fedavg", staleness="constant", buffer_size=2)
    )

    assert [str(each.settings.staleness) for each in grid.combinations] == ["constant", "polynomial:0.5"]
    assert grid.left_out["fedavg"] == ["staleness"]


def test_synchronous_rounds_wait_for_all_workers_unless_something_else_is_said() -> None:
    assert settings_of(strategy="fedavg", clients=7).make_strategy().buffer_size == 7
    assert settings_of(strategy="fedavg", clients=7, buffer_size=5).make_strategy().buffer_size == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sweep": ""}, "--sweep names no setting"),
        ({"sweep": "buffer_size"}, "must read like .*'buffer_size' has no setting"),
        ({"sweep": "buffer_size=2,,4"}, "no value between two commas"),
        ({"sweep": "buffer_size="}, "no value between two commas, or behind the ="),
        ({"sweep": "buffer_size=2,2"}, "a value twice"),
        ({"sweep": "buffer_size=2 buffer-size=4"}, "names buffer_size twice"),
        ({"sweep": "bufer_size=2"}, "unknown setting 'bufer_size': did you mean buffer_size"),
        ({"sweep": "qqq=2"}, "unknown setting 'qqq'; known are .*batch_size, buffer_size"),
        ({"sweep": "seed=1,2"}, "--seeds N"),
        ({"sweep": "target=0.8,0.9"}, "target cannot be swept: all runs .* measured in the same way"),
        ({"sweep": "broker_url=a,b"}, "broker_url cannot be swept"),
        ({"sweep": "buffer_size=2,many"}, "refused. buffer_size=many: buffer_size must be a valid integer"),
        ({"sweep": "strategy=fedbuff,fedquick"}, "strategy=fedquick: strategy must be one of"),
        (
            {"strategy": "fedbuff", "sweep": "rule=median weigh_by=sqrt"},
            "rule=median weigh_by=sqrt: weigh_by sqrt has no effect",
        ),
        ({"sweep": "codec=float32,topk:0.1"}, "codec=topk:0.1: "),
        ({"sweep": "batch_size=" + ",".join(map(str, range(1, 100)))}, "495 runs .*--max-runs allows 200"),
        ({"sweep": "buffer_size=1,2", "max_seconds": None, "max_updates": 9}, "needs --max-seconds"),
        ({"sweep": "buffer_size=1,2", "max_updates": 9}, "max_updates may end some sooner: leave it out"),
        ({"sweep": "patience=1,2"}, "patience may end some sooner"),
        ({"sweep": "survey=1,2"}, "survey cannot be swept: it says nothing about a single simulated run"),
    ],
)
def test_an_impossible_sweep_is_refused_before_anything_starts(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        grid_of(settings_of(**given))


def test_values_may_have_equals_signs_and_colons() -> None:
    assert parse_sweep("split=dirichlet:0.5,iid task=own:a=b") == {
        "split": ["dirichlet:0.5", "iid"],
        "task": ["own:a=b"],
    }


def test_a_recommendation_needs_a_sweep_with_a_target() -> None:
    for given, says in (
        ({"sweep": None}, "give --sweep$"),
        ({"sweep": "buffer_size=1,2", "target": None}, "give a --target$"),
        ({"sweep": None, "target": None}, "give --sweep and a --target$"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(settings_of(recommend=True, **given))


def test_runs_that_diverge_have_not_held_the_target_and_what_was_wrong_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 3e38 is the largest float32: its weights are infinite after one step.
    run(settings_of(sweep="learning_rate=0.1,3e39", seeds=2, recommend=True, out=tmp_path / "s"))

    said = " ".join(capsys.readouterr().out.split())
    assert "The best is learning_rate=0.1" in said
    assert [row["held"] for row in rows_of(tmp_path / "s")] == ["yes", "yes", "no", "no"]
    assert "0 of 2" in said
    assert said.count("the simulation would never end: the last 10 rounds of each client gave no update") == 1
    assert "(1 other run likewise)" in said


def test_a_target_that_the_task_does_not_measure_is_told_in_a_sweep_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings_of(target="f1>=0.5", max_seconds=2, seeds=2, out=tmp_path / "s"))

    said = capsys.readouterr().out
    assert "no evaluation has the target's f1: there is accuracy, loss (1 other run likewise)" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"target_hold": 3}, "--held-seconds, so leave target_hold out"),
        ({"seed": -1}, "seed must be "),
        ({"seed": 2**32}, "seed must be "),
        ({"initial_model": "model.keras"}, "leave initial_model out"),
    ],
)
def test_a_setting_of_an_aggregator_that_a_simulation_would_ignore_is_refused(
    given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(**given).check()


def test_a_sweep_writes_a_table_a_picture_and_a_folder_of_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    run(settings_of(sweep="strategy=fedbuff,fedasync buffer_size=2", seeds=3, out=folder, recommend=True))

    rows = rows_of(folder)
    assert [(row["strategy"], row["buffer_size"], row["seed"]) for row in rows] == [
        *(("fedbuff", "2", seed) for seed in "012"),
        *(("fedasync", "", seed) for seed in "012"),
    ]
    said = capsys.readouterr().out
    for expected in (
        "fedasync is played without buffer_size, which it does not have",
        "6 of 6: ",
        "accuracy>=0.8 held from",
        "The best is strategy=",
        f"The picture is {folder / 'sweep.html'}",
    ):
        assert expected in said
    results = json.loads((folder / "results.json").read_text())
    assert sorted(each["settings"]["strategy"] for each in results["combinations"]) == ["fedasync", "fedbuff"]
    assert (results["failed"], results["not_played"], results["seeds"]) == ([], 0, [0, 1, 2])
    page = (folder / "sweep.html").read_text()
    assert "<script" in page
    assert "strategy=fedasync" in page
    # Each run has a folder like that of a real run.
    for row in rows:
        [federation] = read_run(Path(row["folder"])).federations
        assert federation.last.updates == int(row["updates"])
        assert (Path(row["folder"]) / "report.html").is_file()


def test_a_run_of_a_sweep_has_the_bits_of_the_same_run_alone(tmp_path: Path) -> None:
    run(settings_of(sweep="strategy=fedbuff,fedasync", seeds=2, out=tmp_path / "sweep"))
    run(settings_of(strategy="fedasync", seed=1, out=tmp_path / "alone"))

    [row] = [
        row for row in rows_of(tmp_path / "sweep") if (row["strategy"], row["seed"]) == ("fedasync", "1")
    ]
    swept = (Path(row["folder"]) / "metrics.jsonl").read_bytes()
    assert swept == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


def test_a_run_that_never_holds_its_target_is_infinite_and_never_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    run(settings_of(seeds=2, target="0.999", max_seconds=3, out=folder, recommend=True))

    assert [(row["held"], row["target_s"], row["target_updates"]) for row in rows_of(folder)] == [
        ("no", "inf", "inf")
    ] * 2
    said = capsys.readouterr().out
    assert "as given" in said
    assert "not within 3 s" in said
    assert "0 of 2" in said
    assert "Nothing can be recommended: no combination holds accuracy>=0.999 within 3 s" in said


def test_runs_that_fail_are_named_and_end_no_other_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    sweep = f"batch_size=32,{RAISES},{IS_KILLED}"
    with pytest.raises(SystemExit) as ended:
        run(settings_of(task="tasks.fragile_task:task", sweep=sweep, seeds=2, out=folder))

    assert ended.value.code == 1
    errors = {(row["batch_size"], row["seed"]): row["error"] for row in rows_of(folder)}
    assert errors["32", "0"] == errors["32", "1"] == ""
    for seed in "01":
        assert "the cat sat on the disk" in errors[str(RAISES), seed]
        assert "killed (signal 9)" in errors[str(IS_KILLED), seed]
    assert f"Failed: batch_size={IS_KILLED}, seed 1: its process was killed" in capsys.readouterr().out


def test_a_sweep_of_which_every_run_fails_says_why(tmp_path: Path) -> None:
    sweep = f"batch_size={RAISES}"
    with pytest.raises(FluffleError, match=r"no run came to its end\. .*the cat sat on the disk"):
        run(settings_of(task="tasks.fragile_task:task", sweep=sweep, seeds=1, out=tmp_path / "sweep"))


def test_runs_that_are_played_at_a_time_share_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(clients=50, target=None)
    runs = [PlannedRun(0, settings, tmp_path / name) for name in ("one", "another")]
    # More than the clients' 2,000 bytes, and less than twice as much.
    monkeypatch.setattr("fluffle_cli.simulate.pool.available_bytes", lambda: 150_000_000 // 1000)

    ended = [each for each in play_all(runs, processes=2) if isinstance(each, Ended)]

    assert len(ended) == 2
    assert all("are available for each of the 2 runs that are played at a time" in one.error for one in ended)


def test_a_process_plays_some_runs_and_another_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluffle_cli.simulate.pool.RUNS_PER_PROCESS", 2)
    began, start = [], _Player.start

    def counted(*arguments: Any, **options: Any) -> _Player:
        began.append(arguments)
        return start(*arguments, **options)

    monkeypatch.setattr(_Player, "start", counted)
    runs = [PlannedRun(0, settings_of(seed=seed), tmp_path / str(seed)) for seed in range(5)]

    ended = [each for each in play_all(runs, processes=1) if isinstance(each, Ended)]

    assert [one.run.settings.seed for one in ended] == [0, 1, 2, 3, 4]
    assert all(one.result for one in ended)
    assert len(began) == 3


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")

    with pytest.raises(ConfigError, match="is not empty: choose another folder"):
        run(settings_of(seeds=1, out=tmp_path))


def test_ctrl_c_keeps_the_runs_that_have_ended_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    flags = [
        item
        for name, value in FAST.items()
        for item in (f"--{name.replace('_', '-')}", str(value).replace("0.8", "0.999"))
    ]
    command = [
        sys.executable,
        "-m",
        "fluffle_cli",
        "simulate",
        *flags,
        "--seeds",
        "100",
        "--out",
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert any(line.startswith("1 of 100: ") for line in lines)

        os.killpg(child.pid, signal.SIGINT)
        rest = "".join(lines)

    assert child.returncode == 130
    assert "did not end and count for nothing" in rest
    rows = rows_of(folder)
    assert rows
    assert all(math.isfinite(float(row["seconds"])) for row in rows)
    runs = {path.parent for path in folder.glob("*/*/metrics.jsonl")}
    assert runs == {Path(row["folder"]) for row in rows}
    deadline = time.monotonic() + DEADLINE_S
    while _is_alive(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
