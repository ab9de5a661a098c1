"""Client processes that publish real updates: through the product's connection, or through pika alone.

Each makes the messages beforehand, since training is not what is measured, and waits for the confirm of one
before it sends the next, as a worker does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

import numpy as np
import pika

from benchmarks.measuring import random_floats
from fluffle.compression import compress
from fluffle.plan import Sends
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update

# Distinct vectors of one client: each message is a different one, without minutes spent on drawing them.
VECTORS = 4
HEARTBEAT_S = 60

Send = Callable[[str, UpdateId, bytes], None]
"""Publish an update's message to an exchange, and return when the broker has confirmed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What an update says of the version that it started from."""

    federation: str
    term: int
    version: int
    layout_digest: str
    parameters: int
    sends: Sends
    codec: str

    @classmethod
    def of(cls, version: ModelVersion) -> Self:
        """Return what updates of this version say, with the codec that its plan asks for."""
        return cls(
            federation=version.federation,
            term=version.term,
            version=version.version,
            layout_digest=version.layout.digest,
            parameters=version.layout.size,
            sends=version.plan.sends,
            codec=version.plan.codec,
        )

    def update(self, update_id: UpdateId, seed: int) -> WeightUpdate:
        """Return a random update."""
        return WeightUpdate(
            federation=self.federation,
            id=update_id,
            base_term=self.term,
            base_version=self.version,
            layout_digest=self.layout_digest,
            sends=self.sends,
            codec=self.codec,
            vector=compress(self.codec, random_floats(self.parameters, seed), np.random.default_rng(seed)),
            integers=b"",
            examples=32,
        )


@contextmanager
def by_the_product(url: str, worker: str) -> Iterator[Send]:
    """Publish as a worker does."""
    with RabbitBroker(url, name=worker, heartbeat_s=HEARTBEAT_S, speaks_for=worker) as broker:

        def send(exchange: str, update_id: UpdateId, body: bytes) -> None:
            headers = {"kind": "update", "id": str(update_id), "worker": worker}
            broker.publish(exchange, "", body, headers)

        yield send


@contextmanager
def by_pika(url: str, _worker: str) -> Iterator[Send]:
    """Publish as little as a durable, confirmed publish can be."""
    parameters = pika.URLParameters(f"{url}?heartbeat={HEARTBEAT_S}")
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        def send(exchange: str, _update_id: UpdateId, body: bytes) -> None:
            channel.basic_publish(exchange, "", body, persistent, mandatory=True)

        yield send


SENDERS = {"product": by_the_product, "pika": by_pika}


@dataclass
class Publishers:
    """So many client processes; `with` ends them."""

    sender: str
    url: str
    base: Base
    clients: int
    _processes: list[tuple[BaseProcess, Connection]] = field(default_factory=list)

    def __enter__(self) -> Self:
        spawning = get_context("spawn")
        for client in range(self.clients):
            here, there = spawning.Pipe()
            arguments = (self.sender, self.url, self.base, client, there)
            process = spawning.Process(target=_publish_on_demand, args=arguments, daemon=True)
            process.start()
            self._processes.append((process, here))
        return self

    def __exit__(self, *_: object) -> None:
        for process, _pipe in self._processes:
            process.kill()
            process.join()

    @property
    def pids(self) -> list[int]:
        """The client processes."""
        return [process.pid for process, _ in self._processes if process.pid]

    def prepare(self, updates: int) -> None:
        """Let them make so many messages in all, and return when they are made."""
        for client, (_, pipe) in enumerate(self._processes):
            pipe.send(updates // self.clients + (client < updates % self.clients))
        for _, pipe in self._processes:
            pipe.recv()

    def start(self) -> float:
        """Let them publish what they have made; return when the first began (Unix time)."""
        for _, pipe in self._processes:
            pipe.send("go")
        return min(float(pipe.recv()) for _, pipe in self._processes)

    def finish(self) -> float:
        """Wait until the last update is confirmed; return when that was."""
        return max(float(pipe.recv()) for _, pipe in self._processes)


def _publish_on_demand(sender: str, url: str, base: Base, client: int, pipe: Connection) -> None:
    worker = f"client-{client}"
    first = base.update(UpdateId(worker, "r1", 1), client)
    vectors = [base.update(first.id, VECTORS * client + n).vector for n in range(VECTORS)]
    exchange, sequence = topology_of(base.federation).updates_in.name, 0
    with SENDERS[sender](url, worker) as send:
        while True:
            ids = [UpdateId(worker, "r1", sequence + n) for n in range(1, pipe.recv() + 1)]
            sequence += len(ids)
            bodies = [
                encode_update(replace(first, id=each, vector=vectors[each.sequence % VECTORS]))
                for each in ids
            ]
            pipe.send("ready")
            pipe.recv()
            pipe.send(time.time())
            for each, body in zip(ids, bodies, strict=True):
                send(exchange, each, body)
            pipe.send(time.time())
            del bodies
