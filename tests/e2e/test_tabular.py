"""Federations of the ready task tabular, as somebody starts them who writes no code."""

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from federation import ROOT, Federation, Part, assert_every_confirmed_update_counts_once, assert_refused
from in_threads import all_of
from tables import HELD_OUT, LABEL, SITES, table_of, write_tables

from fluffle.task import load_task
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.making_sealed_key import make_key
from fluffle_cli.node import BrokerNode
from fluffle_worker.evaluator import EvaluatorResult
from fluffle_worker.loop import WorkerResult
from fluffle_worker.running import run_evaluator, run_worker

NOISY_SITES = ("--dp-epsilon", "500")
SEALED_SITES = ("--sealed-secret", "sealed.secret")
PAGE = ROOT / "docs/how-to/tabular.md"
MODULES = {"aggregator": "fluffle_aggregator", "worker": "fluffle_worker", "evaluator": "fluffle_cli.main"}


def commands_of_the_page() -> list[list[str]]:
    """The commands in the page, in its order, as a shell would split them."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def started(running: Federation, command: list[str], *more: str) -> Part:
    """Start a part of the federation by a command of the page."""
    part, *flags = command
    before = [part] if MODULES[part] == "fluffle_cli.main" else []
    return running.start(f"{part}-{len(running.parts)}", MODULES[part], *before, *flags, *more)


@pytest.mark.long
def test_the_commands_of_the_page_train_a_good_model_on_a_table_that_no_code_knows(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    whole = write_tables("wines", tmp_path)
    commands = commands_of_the_page()
    parts = [each for each in commands if each[0] in MODULES]
    with Federation(federation, node.amqp_url, tmp_path, task="tabular") as running:
        begun = [started(running, each) for each in parts]
        codes = [part.wait_for_exit() for part in begun]

        assert codes == [0] * 5, [part.log.read_text()[-2000:] for part in begun]
        final = running.newest()
        assert "accuracy>=0.9" in final.finished
        assert final.layout.table is not None
        assert set(final.layout.table.columns) == set(whole.columns) - {LABEL}
        assert final.survey is not None
        assert final.survey.result is not None
        assert final.survey.result.sites == len(SITES)
        assert final.survey.result.names == final.layout.table.columns
        assert_every_confirmed_update_counts_once(running, final)
        for command in commands:
            if command[0] not in MODULES:
                done = running.fluffle(*command)
                assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert (tmp_path / "model.keras").is_file()
        assert "It takes the columns " + ", ".join(final.layout.table.columns) in done.stdout


@pytest.mark.parametrize(("name", "target"), [("tumours", "accuracy>=0.94"), ("diabetes", "rmse<=60")])
def test_a_table_is_learnt_in_the_threads_of_one_process_too(
    node: BrokerNode, tmp_path: Path, federation: str, name: str, target: str
) -> None:
    write_tables(name, tmp_path)
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url, "label": LABEL}
    held_out = {"data": str(tmp_path / HELD_OUT), **where}

    led, judged, *worked = asyncio.run(
        all_of(
            lambda: run_aggregator(
                load_task("tabular"), target=target, survey=len(SITES), max_updates=600, **held_out
            ),
            lambda: run_evaluator(load_task("tabular"), **held_out),
            *(
                lambda data=data: run_worker(
                    load_task("tabular"), name=data, data=str(tmp_path / data), spool=tmp_path, **where
                )
                for data in SITES
            ),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert target in led.ended_by
    assert isinstance(judged, EvaluatorResult)
    assert judged.ended_by == led.ended_by
    for each in worked:
        assert isinstance(each, WorkerResult)
        assert (each.ended_by, each.refused, each.waiting) == (led.ended_by, 0, 0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("protection", "of_sites"),
    [
        (("--dp", "local", "--dp-clip", "0.5", "--dp-epsilon", "500", "--dp-max-updates", "3"), NOISY_SITES),
        (("--sealed", "sealed.public", "--sealed-clip", "2", "--max-versions", "3"), SEALED_SITES),
    ],
)
def test_without_a_survey_a_table_is_learnt_with_noise_or_sealed(
    node: BrokerNode, tmp_path: Path, federation: str, protection: tuple[str, ...], of_sites: tuple[str, ...]
) -> None:
    whole = table_of("tumours")
    inputs = whole.drop(columns=LABEL)
    whole[inputs.columns] = (inputs - inputs.mean()) / inputs.std()
    for name, rows in {"held-out": whole[:100], "site-0": whole[100:300], "site-1": whole[300:]}.items():
        rows.to_parquet(tmp_path / f"{name}.parquet", index=False)
    make_key(tmp_path)
    with Federation(federation, node.amqp_url, tmp_path, task="tabular") as running:
        begin = ("--data", "held-out.parquet", "--label", LABEL, "--buffer-size", "2")
        leader = running.aggregator("leader", *begin, *protection)
        workers = [running.worker(site, "--data", f"site-{site}.parquet", *of_sites) for site in range(2)]

        for part in (*workers, leader):
            assert part.wait_for_exit() == 0, part.log.read_text()[-2000:]
        final = running.newest()
        assert final.layout.table is not None
        assert not final.layout.table.surveyed
        assert final.version >= 3


@pytest.mark.long
def test_a_worker_that_joins_late_needs_nothing_but_its_rows_and_one_with_other_rows_is_refused(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    write_tables("wines", tmp_path)
    table_of("wines").drop(columns="hue").to_parquet(tmp_path / "less.parquet", index=False)
    config = tmp_path / "named.toml"
    columns = [name for name in table_of("wines").columns if name != LABEL]
    config.write_text(
        f"[tabular]\ncolumns = {json.dumps(columns)}\nhidden = [8]\n"
        'classes = ["class_0", "class_1", "class_2"]\n'
    )
    with Federation(federation, node.amqp_url, tmp_path, task="tabular") as running:
        # It has no rows at all.
        begin = ("--label", LABEL, "--config", str(config), "--survey", "1", "--buffer-size", "1")
        aggregator = running.aggregator("leader", *begin)
        first = running.worker(0, "--data", "site-0", "--local-validation", "0.2")
        first.wait_for("update published", count=2)
        late = running.worker(1, "--data", "site-1/*.parquet", "--label", LABEL)
        late.wait_for("update published")

        assert_refused(running.worker(2, "--data", "less.parquet"), "less.parquet lacks 'hue' of the 13")
        assert_refused(running.worker(3, "--data", "site-0", "--label", "hue"), "tells 'outcome'")

        [table] = late.events("the federation's model is of a table")
        assert table["network"] == "hidden units 8, dropout 0, inputs scaled by the survey"
        assert late.events("columns are left out, since the model does not take them")
        assert running.newest().sites["site-0"].metrics
        for part in (first, late, aggregator):
            part.ask_to_stop()
        assert [part.wait_for_exit() for part in (first, late, aggregator)] == [0, 0, 0]


def test_a_task_of_tables_leaves_a_federation_of_another_task(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    write_tables("wines", tmp_path)
    with Federation(federation, node.amqp_url, tmp_path, task="numpy_task:task") as running:
        running.aggregator("leader").wait_for("leading")

        worker = running.worker(0, "--task", "tabular", "--data", HELD_OUT)

        assert_refused(worker, f"the federation '{federation}' trains no model of a table")


def test_a_task_of_tables_that_waits_for_its_federation_can_be_asked_to_stop(
    node: BrokerNode, tmp_path: Path, federation: str
) -> None:
    write_tables("wines", tmp_path)
    rows = ("--data", HELD_OUT, "--label", LABEL)
    with Federation(federation, node.amqp_url, tmp_path, task="tabular") as running:
        parts = [running.worker(0, *rows), running.evaluator(*rows)]
        for part in parts:
            part.wait_for("waiting for the federation")
            part.ask_to_stop()

        assert [part.wait_for_exit() for part in parts] == [0, 0]
