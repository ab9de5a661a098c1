"""How long late joiners take to hold the newest version of a large model, and what it costs the broker.

    python -m benchmarks.join

The joiners are threads of a few processes on this machine: all connect at once, read the newest version as a
worker does when it starts, and let it go. In turns with them, as many plain pika readers that take the last
message of the stream. The broker's memory is its process's peak while they read.
"""

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pika
import pika.exceptions
import tenacity
from pika.adapters.blocking_connection import BlockingChannel
from rich.console import Console

from benchmarks.floor import with_channel
from benchmarks.measuring import Report, in_turns, peak_mb, reset_peak, wide_console
from benchmarks.publishers import HEARTBEAT_S
from benchmarks.sides import private_broker, product_side
from fluffle.errors import ConnectionLost
from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode

SIZE_MB = 100.0
JOINERS = (1, 10, 50)
MOST_PROCESSES = 5
# Where fifty connect at once on two cores, a handshake may take too long; whoever joins tries again.
patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type((ConnectionLost, pika.exceptions.AMQPError)),
    wait=tenacity.wait_random(0.1, 0.5),
    stop=tenacity.stop_after_delay(300),
    reraise=True,
)
FEDERATION = "join"


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="join", description="Measure how soon late joiners have the model.")
    parser.add_argument("--size", type=float, default=SIZE_MB, help="MB of float32")
    parser.add_argument("--joiners", type=int, nargs="+", default=JOINERS)
    parser.add_argument("--repeats", type=int, default=3, help="turns that count (default: 3)")
    arguments = parser.parse_args()
    report = Report("join", f"join: until all hold the newest version of {arguments.size:g} MB")
    console = wide_console()
    measure(arguments.joiners, report, console, size_mb=arguments.size, repeats=arguments.repeats)
    report.show(console)


def measure(
    joiners: Sequence[int], report: Report, console: Console, *, size_mb: float, repeats: int
) -> None:
    """Take a row for each number of joiners into the report."""
    with (
        private_broker(report) as (folder, node),
        product_side(folder / FEDERATION, node, 0, round(size_mb * 1e6 / 4), ()),
        console.status("") as status,
    ):
        for count in joiners:
            status.update(f"join: {count} joiners")
            with (
                report.row() as row,
                _joiners(node, count, "product") as real,
                _joiners(node, count, "pika") as floor,
            ):
                turns = in_turns({"product": real.join, "floor": floor.join}, repeats)
                row["joiners"] = count
                row["seconds"] = turns["product"]
                row["pika_seconds"] = turns["floor"]
                row["ratio"] = turns["floor"].over(turns["product"])
                row["mb_s"] = turns["product"].rates(count * size_mb).median
                row["broker_mb"] = round(max(real.broker_mb))
                row["pika_broker_mb"] = round(max(floor.broker_mb))


class Joiners:
    """Processes whose threads join when told to."""

    def __init__(self, node: BrokerNode, pipes: Sequence[Connection]) -> None:
        self._node = node
        self._pipes = pipes
        self.broker_mb: list[float] = []

    def join(self) -> float:
        """Return the seconds until all hold the newest version."""
        reset_peak(self._node.pid)
        began = time.monotonic()
        for pipe in self._pipes:
            pipe.send("join")
        for pipe in self._pipes:
            pipe.recv()
        took_s = time.monotonic() - began
        self.broker_mb.append(peak_mb(self._node.pid))
        return took_s


@contextmanager
def _joiners(node: BrokerNode, count: int, way: str) -> Iterator[Joiners]:
    spawning, processes, pipes = get_context("spawn"), [], []
    for number in range(min(count, MOST_PROCESSES)):
        here, there = spawning.Pipe()
        threads = count // MOST_PROCESSES + (number < count % MOST_PROCESSES)
        process = spawning.Process(
            target=_join_on_demand, args=(node.amqp_url, threads, way, there), daemon=True
        )
        process.start()
        processes.append(process)
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()
    yield Joiners(node, pipes)
    for process in processes:
        process.kill()
        process.join()


def _join_on_demand(url: str, threads: int, way: str, pipe: Connection) -> None:
    read = patiently.wraps(_read_by_the_product if way == "product" else _read_by_pika)
    with ThreadPoolExecutor(threads) as pool:
        pipe.send("ready")
        while pipe.recv():
            list(pool.map(read, [url] * threads))
            pipe.send("joined")


def _read_by_the_product(url: str) -> None:
    with RabbitBroker(url, name="joiner", heartbeat_s=HEARTBEAT_S) as broker:
        if newest_version(broker, topology_of(FEDERATION), stop=threading.Event()) is None:
            raise RuntimeError("there is no version in the stream")


def _read_by_pika(url: str) -> None:
    def on_message(
        channel: BlockingChannel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, _body: bytes
    ) -> None:
        channel.basic_ack(method.delivery_tag)
        # As the product does: cancelling the consumer of a stream closes the connection on 3.10.
        channel.connection.close()

    def consume(channel: BlockingChannel) -> None:
        channel.basic_qos(prefetch_count=1)
        queue = topology_of(FEDERATION).models.name
        channel.basic_consume(queue, on_message, arguments={"x-stream-offset": "last"})
        channel.start_consuming()

    with_channel(url, consume)


if __name__ == "__main__":
    main()
