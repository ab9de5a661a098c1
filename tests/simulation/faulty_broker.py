"""A connection that is lost at one of its calls, in each of the ways in which that can happen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NoReturn

from fake_broker import FakeBroker, FakeServer

from fluffle.broker import Delivery
from fluffle.errors import ConnectionLost
from fluffle.pieces import Body
from fluffle.topology import Topology

# What the broker has heard of a call when its caller loses the connection. "late": it will hear of a publish
# when others have long gone on. "half": a power cut, after one of two queues or some of the acks.
Heard = Literal["nothing", "all", "late", "half"]


@dataclass(frozen=True, slots=True)
class Late:
    """A publish on its way to the broker, whose sender has lost its connection."""

    exchange: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(slots=True)
class Aftermath:
    """What the world has to do about what its connections went through.

    `records` are the versions that the head was sent, and a leader knows that `confirmed` is there.
    """

    late: list[Late] = field(default_factory=list)
    power_is_cut: bool = False
    confirmed: bytes | None = None
    records: list[bytes] = field(default_factory=list)


class FaultyBroker(FakeBroker):
    """An aggregator's connection.

    Acks need no answer, so they may be on their way for a while, and be lost with the connection.
    """

    def __init__(
        self, server: FakeServer, topology: Topology, aftermath: Aftermath, chance: Random, *, lazy_acks: bool
    ) -> None:
        super().__init__(server)
        self._topology = topology
        self._aftermath = aftermath
        self._chance = chance
        self._lazy_acks = lazy_acks
        self._acks_on_their_way: list[int] = []
        self.unacked: dict[int, bytes] = {}
        self._fuse: tuple[int, Heard] | None = None

    def lose_at(self, call: int, heard: Heard) -> None:
        """Lose the connection at the so-manieth publish or ack from now on."""
        self._fuse = call, heard

    def take(self, queue: str, delivery: Delivery) -> None:
        """Receive a message from the server."""
        super().take(queue, delivery)
        self.unacked[delivery.tag] = delivery.body

    def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
        """See Broker."""
        self._let_acks_arrive()
        heard = self._burn()
        if heard == "late" and not self._aftermath.late:
            self._aftermath.late.append(Late(exchange, bytes(body), headers))
        if heard == "half" and exchange == self._topology.versions_in.name:
            halves = [self._topology.head_in.name, self._topology.models_in.name]
            # A stream with a version beside an empty head is an operator's case: see test_head_missing.py.
            exchange = self._chance.choice(
                halves if self.state(self._topology.head.name).messages else halves[:1]
            )
        to_head = {self._topology.versions_in.name, self._topology.head_in.name}
        is_record = headers.get("kind") == "version" and exchange in to_head
        if heard in {"all", "half", None}:
            super().publish(exchange, routing_key, body, headers)
            if is_record:
                self._aftermath.records.append(bytes(body))
        if heard:
            self._lose(heard)
        if is_record:
            self._aftermath.confirmed = bytes(body)

    def ack(self, tags: Iterable[int]) -> None:
        """See Broker."""
        self._let_acks_arrive()
        heard, acked = self._burn(), list(tags)
        if heard in {"nothing", "late"}:
            self._lose(heard)
        if heard == "half":
            acked = acked[: self._chance.randint(0, len(acked))]
        if self._lazy_acks and not heard:
            self._acks_on_their_way += acked
            return
        self._ack_now(acked)
        if heard:
            self._lose(heard)

    def give_back(self, tags: Iterable[int]) -> None:
        """See Broker."""
        self._let_acks_arrive()
        returned = list(tags)
        for tag in returned:
            # What comes again at once has another tag.
            del self.unacked[tag]
        super().give_back(returned)

    def next_delivery(self, timeout_s: float) -> Delivery | None:
        """See Broker."""
        self._let_acks_arrive()
        return super().next_delivery(timeout_s)

    def _let_acks_arrive(self) -> None:
        if self._acks_on_their_way and self._chance.random() < 0.7:
            on_their_way, self._acks_on_their_way = self._acks_on_their_way, []
            self._ack_now(on_their_way)

    def _ack_now(self, tags: list[int]) -> None:
        super().ack(tags)
        for tag in tags:
            del self.unacked[tag]

    def _burn(self) -> Heard | None:
        if self._fuse is None:
            return None
        calls, heard = self._fuse
        self._fuse = (calls - 1, heard)
        return heard if calls == 0 else None

    def _lose(self, heard: Heard) -> NoReturn:
        self._aftermath.power_is_cut |= heard == "half"
        self.close()
        raise ConnectionLost(f"lost when the broker had heard {heard}")
