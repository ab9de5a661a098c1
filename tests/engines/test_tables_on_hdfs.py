"""The task tabular where all rows lie in HDFS: each site's in a folder of its own."""

import asyncio
from pathlib import Path
from typing import Any

from in_threads import all_of
from tables import HELD_OUT, LABEL, SITES, write_tables

from fluffle.storage import write_to
from fluffle.task import load_task
from fluffle_aggregator.running import run_aggregator
from fluffle_aggregator.service import AggregatorResult
from fluffle_cli.node import BrokerNode
from fluffle_worker.running import run_evaluator, run_worker
from harness.hdfs import Hdfs


def test_sites_learn_tables_that_lie_in_hdfs(
    hdfs: Hdfs, node: BrokerNode, federation: str, tmp_path: Path
) -> None:
    write_tables("tumours", tmp_path)
    top = f"{hdfs.url}/{federation}"
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        write_to(f"{top}/{file.relative_to(tmp_path)}", [file.read_bytes()])
    places = (f"{top}/site-0/*.parquet", f"{top}/site-1", f"{top}/site-2.csv")
    where: dict[str, Any] = {"federation": federation, "broker_url": node.amqp_url, "label": LABEL}
    held_out = {"data": f"{top}/{HELD_OUT}", **where}

    led, *_ = asyncio.run(
        all_of(
            lambda: run_aggregator(
                load_task("tabular"), target="accuracy>=0.93", survey=3, max_updates=600, **held_out
            ),
            lambda: run_evaluator(load_task("tabular"), **held_out),
            *(
                lambda name=name, data=data: run_worker(
                    load_task("tabular"), name=name, data=data, spool=tmp_path / "spool", **where
                )
                for name, data in zip(SITES, places, strict=True)
            ),
        )
    )

    assert isinstance(led, AggregatorResult)
    assert "accuracy>=0.93" in led.ended_by
