"""`make demo-spark`: four shops train one model in the executors of Spark, on data in HDFS.

    PYTHONPATH=examples python -m clothing_on_spark.demo --out runs/mine

What you would write yourself is `train.py`. Here is what stands around it: servers on this machine, data
for the shops, lines that say how far it is, and a picture of it at the end.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, NoReturn

import typer
from pyspark.sql import Row
from rich.text import Text

from clothing_on_spark.picture import draw
from clothing_on_spark.servers import Servers, servers_in, stderr_to
from clothing_on_spark.shops import SHOPS, tables_of_shops, write_tables
from clothing_on_spark.train import FEDERATION, TARGET, train
from fluffle import logs
from fluffle.command_line import plain_command, run_program
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.rabbit import RabbitBroker
from fluffle.topology import topology_of
from fluffle_aggregator.goal import parse_target
from fluffle_cli.report.command import make_run, write_report
from fluffle_cli.report.run import FederationRun, make_empty_folder, read_run
from fluffle_cli.watching.terminal import plain_line, plain_table
from fluffle_cli.watching.watcher import Watcher
from harness.federation import HEARTBEAT_S

SAY_EVERY_S: Final = 3.0
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SUBMIT: Final = """\
The same without a program of your own, in the folder examples with .venv activated:
  export FLUFFLE_BROKER_URL=amqp://USER:PASSWORD@{broker}
  export FLUFFLE_TARGET="{target}"
  spark-submit --master "{master}" ../spark/fluffle-spark.py \\
    --task clothing_on_spark.task:task --federation {federation} --data {data} \\
    --features pixels --label kind --site-column shop --with-aggregator --with-evaluator"""


def main(out: Path | None = None) -> None:
    """Train a model of clothing at four shops, whose data is in HDFS, inside the executors of Spark.

    Everything runs on this machine and is stopped at the end. The folder `out` must be empty.
    """
    folder = (
        out or Path("runs") / f"clothing-on-spark-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    ).resolve()
    (make_empty_folder(folder, given_as="--out ") / "logs").mkdir()
    _stop_on_signals()
    try:
        with stderr_to(folder / "logs" / "driver.log"):
            logs.configure("json", verbose=False, part="driver")
            run = Demo(folder).play()
    except (KeyboardInterrupt, FluffleError):
        typer.echo(f"Stopped. The logs are in {folder / 'logs'}")
        raise
    finally:
        logs.configure("pretty", verbose=False, part="driver")
    if run.seconds_to(parse_target(TARGET)) is None:
        raise FluffleError(f"the model did not reach {TARGET}: {run.last.finished}")


class Demo:
    """One run of the demo, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._console = PlainConsole(highlight=False)
        self._began = time.monotonic()

    def play(self) -> FederationRun:
        """Start everything, train, stop everything, and show what came out of it."""
        self._say("Four shops train one model in Spark's executors, on data in HDFS. This takes 2 minutes.")
        self._say(f"The run is in {self._folder}; Ctrl-C stops everything.")
        shops = tables_of_shops()
        self._step("starting RabbitMQ, HDFS (a NameNode and a DataNode) and Spark")
        with servers_in(self._folder / "servers", self._folder / "logs") as servers:
            # PySpark has set a handler of its own.
            _stop_on_signals()
            self._step(f"all of them run; Spark's UI is {servers.spark.sparkContext.uiWebUrl}")
            data_url = f"{servers.hdfs.url}/clothing"
            write_tables(shops, data_url)
            rows = ", ".join(f"{shop} {table.num_rows:,}" for shop, table in shops.items())
            self._step(f"the pictures of each shop are in {data_url}: {rows}")
            self._show_command(servers, data_url)
            self._step("training: each shop is a Spark task, whose worker loads TensorFlow first")
            with self._progress(servers.node.amqp_url):
                sites = train(servers.spark, data_url, servers.node.amqp_url).collect()
            run = self._report(servers.node.amqp_url)
            self._step("the federation has finished: stopping Spark, HDFS and RabbitMQ")
        self._show(sites, run)
        return run

    def _show_command(self, servers: Servers, data_url: str) -> None:
        self._say(
            SUBMIT.format(
                broker=servers.node.amqp_url.rpartition("@")[2],
                target=TARGET,
                master=servers.spark.sparkContext.master,
                federation=FEDERATION,
                data=data_url,
            )
        )

    @contextmanager
    def _progress(self, broker_url: str) -> Iterator[None]:
        """Say how far the federation is while the block lasts, from a thread of its own."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(broker_url, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, broker_url: str, over: threading.Event) -> None:
        topology, said = topology_of(FEDERATION), ""
        watcher = Watcher(topology, name="demo", past_mib=0)
        with _connected(broker_url, "demo") as broker:
            broker.declare(topology)
            for _ in watcher.follow(broker, over, every_s=SAY_EVERY_S):
                view = watcher.view()
                line = f"{len(view.workers)} of {len(SHOPS)} workers are connected"
                if view.newest and view.newest.updates:
                    line = plain_line(view)
                if line != said:
                    self._step(line)
                    said = line

    def _report(self, broker_url: str) -> FederationRun:
        """Write the report of the federation, as `fluffle report --from-broker` does, and return its run."""
        folder = self._folder / "report"
        with _connected(broker_url, "report") as broker:
            make_run(broker, topology_of(FEDERATION), folder)
        run = read_run(folder)
        write_report(run, [])
        return run.federations[0]

    def _show(self, sites: Sequence[Row], run: FederationRun) -> None:
        """Show the rows that `federate` returned, and draw which executor trained what."""
        picture = self._folder / "picture.svg"
        # `ran_on` is the executor's number and its host.
        executors = {site.site: site.ran_on.partition(" ")[0] for site in sites}
        draw(run, parse_target(TARGET), executors, picture)
        heads = ["site", "rows", "rounds", "updates", "executor"]
        rows = [
            [site.site, *(f"{site[name]:,}" for name in heads[1:4]), executors[site.site]] for site in sites
        ]
        self._console.print()
        self._console.print(plain_table(heads, rows, right=heads[1:4]))
        self._console.print()
        self._step(f"done: {run.last.finished}, after {run.seconds:.0f} s of training")
        self._say(f"  {picture}  accuracy over time, and which executor trained what")
        self._say(f"  {self._folder / 'report' / 'report.html'}  everything else about the federation")
        self._say(f"  {self._folder / 'logs'}  logs of the driver, the executors and the servers")

    def _step(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:4.0f} s  {what}")

    def _say(self, what: str) -> None:
        self._console.print(Text(what), soft_wrap=True)


def _connected(broker_url: str, name: str) -> RabbitBroker:
    return RabbitBroker(broker_url, name=f"{FEDERATION}/{name}", heartbeat_s=HEARTBEAT_S)


def _stop_on_signals() -> None:
    for each in SIGNALS:
        signal.signal(each, _stop)


def _stop(_: int, __: object) -> NoReturn:
    """Raise KeyboardInterrupt, once: what stops everything is not stopped itself."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    typer.echo("Stopping everything, which takes some seconds")
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_program("make demo-spark", plain_command(main))
