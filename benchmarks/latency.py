"""How long from the publish of an update until another worker holds the version that contains it.

    python -m benchmarks.latency

One update of 100 KB at a time, and an aggregator that commits each. In turns with that, the same hops by
plain pika: publish, a consumer that publishes as many bytes to head and stream and acks, a reader of the
stream. `waiting worker` asks as a worker in synchronous rounds does, which looks for a while whether a still
newer version comes.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import pika
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks.floor import with_channel
from benchmarks.measuring import Cell, OtherWork, Report, Spread, wide_console
from benchmarks.publishers import HEARTBEAT_S, SENDERS, Base
from benchmarks.sides import floor_side, private_broker, product_side
from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record import Rank
from fluffle.record_wire import decode_version
from fluffle.topology import topology_of
from fluffle.update import UpdateId
from fluffle.wire import encode_update
from fluffle_cli.node import BrokerNode

PARAMETERS = 25_000
PATIENCE_S = 60.0
WORKER = "client-0"

Measure = Callable[[], float]


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="latency", description="Measure how soon an update is seen.")
    parser.add_argument("--updates", type=int, default=50, help="updates of one side in a turn (default: 50)")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: 5)")
    arguments = parser.parse_args()
    report = Report("latency", "latency: from publish until another worker has the version, 100 KB")
    measure(report, updates=arguments.updates, repeats=arguments.repeats)
    report.show(wide_console())


def measure(report: Report, *, updates: int, repeats: int) -> None:
    """Take a row for each way into the report."""
    flags = ("--strategy", "fedbuff", "--buffer-size", "1")
    with ExitStack() as stack:
        folder, node = stack.enter_context(private_broker(report))
        real = stack.enter_context(product_side(folder / "latency", node, 0, PARAMETERS, flags))
        waited = stack.enter_context(product_side(folder / "waited", node, 0, PARAMETERS, flags))
        stack.enter_context(floor_side("floor", node, 0, real.base, every=1))
        floor_base = replace(real.base, federation="floor")
        ways = {
            "plain pika": stack.enter_context(_one_by_one("pika", node, floor_base, _read_by_pika)),
            "Fluffle": stack.enter_context(_one_by_one("product", node, real.base, _read_by_the_product)),
            "Fluffle, waiting worker": stack.enter_context(
                _one_by_one("product", node, waited.base, _read_as_a_waiting_worker)
            ),
        }
        other_work = OtherWork()
        turns = _in_turns(ways, updates, repeats)
        others = other_work.share
    floor = _milliseconds(turns["plain pika"], 50)
    for way, found in turns.items():
        medians = _milliseconds(found, 50)
        row: dict[str, Cell | Spread] = {
            "way": way,
            "n": updates * repeats,
            "median_ms": medians,
            "p99_ms": float(np.percentile(np.concatenate(found), 99) * 1000),
            "to_pika": medians.over(floor),
        }
        report.add(row, others=others)


def _in_turns(ways: dict[str, Measure], updates: int, repeats: int) -> dict[str, list[list[float]]]:
    turns: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, measure_one in ways.items():
            found = [measure_one() for _ in range(updates)]
            if turn:
                turns[way].append(found)
    return turns


def _milliseconds(turns: list[list[float]], percent: float) -> Spread:
    return Spread(tuple(float(np.percentile(turn, percent) * 1000) for turn in turns))


@contextmanager
def _one_by_one(
    sender: str, node: BrokerNode, base: Base, read: Callable[[str, str, Connection], None]
) -> Iterator[Measure]:
    """Give a function that publishes one update, and returns the seconds until the reader has it."""
    here, there = get_context("spawn").Pipe()
    reader = get_context("spawn").Process(
        target=read, args=(node.amqp_url, base.federation, there), daemon=True
    )
    reader.start()
    here.recv()
    update, sequences = base.update(UpdateId(WORKER, "r1", 1), 0), count(1)
    exchange = topology_of(base.federation).updates_in.name
    with SENDERS[sender](node.amqp_url, WORKER) as send:

        def measure_one() -> float:
            update_id = UpdateId(WORKER, "r1", next(sequences))
            body = encode_update(replace(update, id=update_id))
            here.send("look")
            began = time.time()
            send(exchange, update_id, body)
            if not here.poll(PATIENCE_S):
                raise RuntimeError(f"update {update_id} of {base.federation} was never seen")
            return float(here.recv()) - began

        yield measure_one
    reader.kill()
    reader.join()


def _read_by_the_product(url: str, federation: str, pipe: Connection) -> None:
    """Report when each version has come and is decoded."""
    with (
        RabbitBroker(url, name="reader", heartbeat_s=HEARTBEAT_S) as broker,
        broker.read_stream(topology_of(federation).models.name, offset="next") as reader,
    ):
        pipe.send("ready")
        while True:
            body = reader.next_body(PATIENCE_S)
            if body is not None and decode_version(body).folded:
                pipe.send(time.time())


def _read_as_a_waiting_worker(url: str, federation: str, pipe: Connection) -> None:
    """Report when a worker that was waiting for a newer version goes on to train from it."""
    known, stop = Rank(1, 0), threading.Event()
    with RabbitBroker(url, name="reader", heartbeat_s=HEARTBEAT_S) as broker:
        pipe.send("ready")
        while pipe.recv():
            found = newest_version(broker, topology_of(federation), stop=stop, newer_than=known)
            if found:
                known = found.rank
            pipe.send(time.time())


def _read_by_pika(url: str, federation: str, pipe: Connection) -> None:
    """Report when each message of the stream has come."""

    def on_message(
        channel: BlockingChannel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, _body: bytes
    ) -> None:
        pipe.send(time.time())
        channel.basic_ack(method.delivery_tag)

    def consume(channel: BlockingChannel) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(
            topology_of(federation).models.name, on_message, arguments={"x-stream-offset": "next"}
        )
        pipe.send("ready")
        channel.start_consuming()

    with_channel(url, consume)


if __name__ == "__main__":
    main()
