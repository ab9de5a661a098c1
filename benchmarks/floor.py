"""The floor under an aggregator: plain pika that acks and republishes on queues of the same kind."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

import numpy as np
import pika
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks.publishers import HEARTBEAT_S
from fluffle.topology import Topology, topology_of


@dataclass
class AckingOnly:
    """A process that takes updates, and after every so many publishes a body of the model's size and acks."""

    url: str
    federation: str
    every: int
    reply_bytes: int
    _pipe: Connection | None = None
    _process: BaseProcess | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        spawning = get_context("spawn")
        self._pipe, there = spawning.Pipe()
        arguments = (self.url, self.federation, self.every, self.reply_bytes, there)
        self._process = spawning.Process(target=_ack_and_republish, args=arguments, daemon=True)
        self._process.start()
        self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.join()

    @property
    def pid(self) -> int:
        """The process."""
        return (self._process and self._process.pid) or 0

    def wait_until_acked(self, updates: int) -> float:
        """Wait until so many are acked since the beginning; return when the last was (Unix time)."""
        if not self._pipe:
            raise RuntimeError("enter it first")
        acked, ended = 0, 0.0
        while acked < updates:
            acked, ended = self._pipe.recv()
        return ended


def _ack_and_republish(url: str, federation: str, every: int, reply_bytes: int, pipe: Connection) -> None:
    topology = topology_of(federation)
    reply = np.random.default_rng(0).bytes(reply_bytes)
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    count = 0

    def on_update(
        channel: BlockingChannel, method: pika.spec.Basic.Deliver, _: pika.BasicProperties, _body: bytes
    ) -> None:
        nonlocal count
        count += 1
        if count % every == 0:
            channel.basic_publish(topology.versions_in.name, "", reply, persistent, mandatory=True)
            channel.basic_ack(method.delivery_tag, multiple=True)
            pipe.send((count, time.time()))

    with_channel(url, lambda channel: _consume(channel, topology, every, on_update, pipe))


def _consume(
    channel: BlockingChannel, topology: Topology, every: int, on_update: Callable[..., None], pipe: Connection
) -> None:
    channel.confirm_delivery()
    # As many as the product holds: what one commit contains, and two more.
    channel.basic_qos(prefetch_count=every + 2)
    channel.basic_consume(topology.updates.name, on_update)
    pipe.send("ready")
    channel.start_consuming()


def declare(url: str, topology: Topology) -> None:
    """Declare a federation's exchanges and queues, just as the product does."""

    def declare_all(channel: BlockingChannel) -> None:
        for exchange in topology.exchanges:
            channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=True)
        for queue in topology.queues:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            for exchange in queue.exchanges:
                channel.queue_bind(queue.name, exchange.name)

    with_channel(url, declare_all)


def delete(url: str, topology: Topology) -> None:
    """Delete a federation's queues and exchanges, with all that lies in them."""

    def delete_all(channel: BlockingChannel) -> None:
        for queue in topology.queues:
            channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            channel.exchange_delete(exchange.name)

    with_channel(url, delete_all)


def server_version(url: str) -> str:
    """Return the version that a RabbitMQ says it is."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return str(connection._impl.server_properties["version"])


def with_channel(url: str, action: Callable[[BlockingChannel], None]) -> None:
    """Do something on a channel of a connection of its own."""
    with pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat={HEARTBEAT_S}")) as connection:
        action(connection.channel())
