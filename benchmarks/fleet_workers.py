"""Many light workers as threads of one process, each with a connection and a spool of its own.

    python -m benchmarks.fleet_workers 0 125 --federation F --folder PLACE

Each runs the product's own loop. At SIGTERM they finish, and PLACE/ledger-FIRST.jsonl has a line for each
update that the broker has confirmed: its id, when its publish began, and when it was confirmed (Unix time).
"""

import argparse
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.small_networks import a_few_digits
from fluffle.connection import say_hello
from fluffle.pieces import Body
from fluffle.rabbit import RabbitBroker
from fluffle.stopping import stop_on_signals
from fluffle.task import Site
from fluffle.topology import MIB, Topology, topology_of
from fluffle_cli.demo.small_network import OneHiddenLayer
from fluffle_worker.loop import Worker
from fluffle_worker.spool import open_spool
from fluffle_worker.tasks import digits as digits_data

URL = "FLUFFLE_BROKER_URL"
HEARTBEAT_S = 60
STACK_BYTES = 512 * 1024

Ledger = dict[str, list[float]]
"""For each update: when its publish first began, and when it was confirmed (Unix time)."""


class NotingBroker(RabbitBroker):
    """A connection that keeps a ledger of the updates that were published on it."""

    ledger: Ledger

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        times = self.ledger.setdefault(headers["id"], [time.time()]) if headers["kind"] == "update" else []
        super().publish(exchange, routing_key, body, headers)
        times.append(time.time())


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the workers of this process have in common."""

    topology: Topology
    folder: Path
    pauses_s: tuple[float, float]
    stop: threading.Event

    def work(self, index: int) -> Ledger:
        """Be one worker until asked to stop, and return its ledger."""
        name, ledger = f"light-{index:03}", Ledger()
        task = OneHiddenLayer(64, a_few_digits, digits_data.eval_data)
        task.prepare(Site(index=index))

        def connect() -> RabbitBroker:
            broker = NotingBroker(
                os.environ[URL], name=name, heartbeat_s=HEARTBEAT_S, speaks_for=name, stop=self.stop
            )
            broker.ledger = ledger
            broker.check(self.topology)
            say_hello(broker, self.topology.updates_in, federation=self.topology.federation, name=name)
            return broker

        with open_spool(self.folder / "spool" / name, worker=name, max_bytes=64 * MIB) as spool:
            Worker(
                name=name,
                task=task,
                topology=self.topology,
                spool=spool,
                seed=index,
                delay_s=float(np.random.default_rng(index).uniform(*self.pauses_s)),
                stop=self.stop,
            ).work(connect)
        return ledger


def main() -> None:
    """Work until SIGTERM, then write the ledger."""
    parser = argparse.ArgumentParser(prog="fleet_workers", description="Be many workers.")
    parser.add_argument("first", type=int, help="index of the first of them")
    parser.add_argument("count", type=int, help="how many they are")
    parser.add_argument("--federation", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pauses", type=float, nargs=2, help="seconds of each round")
    arguments = parser.parse_args()
    threading.stack_size(STACK_BYTES)
    # Hundreds say at once that they were asked to stop.
    logging.disable(logging.WARNING)
    topology = topology_of(arguments.federation)
    fleet = Fleet(topology, arguments.folder, tuple(arguments.pauses), stop_on_signals())
    with ThreadPoolExecutor(arguments.count) as pool:
        everyone = range(arguments.first, arguments.first + arguments.count)
        ledgers = list(pool.map(fleet.work, everyone))
    with (arguments.folder / f"ledger-{arguments.first}.jsonl").open("w") as sink:
        for update, times in (entry for ledger in ledgers for entry in ledger.items()):
            # With one time only, it was never confirmed: it waits in the spool.
            if len(times) > 1:
                sink.write(json.dumps([update, *times[:2]]) + "\n")


if __name__ == "__main__":
    main()
