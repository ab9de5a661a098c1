"""One aggregator of the simulation: the product's Leader, one message at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from random import Random

from fake_broker import FakeServer
from simulation.faulty_broker import Aftermath, FaultyBroker, Heard

from fluffle.broker import Broker, Delivery
from fluffle.errors import ConnectionLost, QueueFull
from fluffle.events import Applied, Event
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.head import StreamHealth
from fluffle_aggregator.leader import Leader
from fluffle_aggregator.leading import Leading
from fluffle_aggregator.service import join, wake_standby

Clock = Callable[[], float]


class Killed(BaseException):
    """The process ended in the middle of what it did: nothing in the product may catch it."""


class DiesWhileItTells:
    """Kills its process now and then, between an update that is folded and the commit that contains it."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def __call__(self, event: Event) -> None:
        """See EventSink."""
        if isinstance(event, Applied) and self._chance.random() < 0.02:
            raise Killed

    def over(self, broker: Broker) -> AbstractContextManager[object]:
        """See EventSink."""
        return nullcontext(broker)


class Aggregator:
    """One process after the other, each as `fluffle_aggregator.service.stand_by_and_lead` describes it.

    `clock` never goes backwards, `now` does as it likes.
    """

    def __init__(
        self,
        name: str,
        server: FakeServer,
        aftermath: Aftermath,
        chance: Random,
        *,
        make_leader: type[Leader],
        clock: Clock,
        now: Clock,
    ) -> None:
        self.name = name
        self._server = server
        self._aftermath = aftermath
        self._chance = chance
        self._make_leader = make_leader
        self._clock = clock
        self._now = now
        self._config: AggregatorConfig | None = None
        self._leader: Leading | None = None
        self._readings = StreamHealth()
        self._in_hand: Delivery | None = None
        self.broker: FaultyBroker | None = None
        self.is_frozen = False
        self.has_left = False

    @property
    def leads(self) -> bool:
        """Whether it leads, and the broker has not let go of it."""
        return self._leader is not None and self.broker is not None and self.broker.is_open

    def turn(self, config: AggregatorConfig, fault: tuple[int, Heard] | None = None) -> str:
        """Go on by one message, and say what happened; `config` is for a process that begins."""
        try:
            if self.broker is None:
                return self._connect(config)
            if fault:
                self.broker.lose_at(*fault)
            return self._go_on(self.broker)
        except (ConnectionLost, QueueFull) as error:
            self._let_go()
            return str(error)
        except Killed:
            self.kill()
            return "is killed by a message, or before its commit"

    def kill(self) -> None:
        """End its process."""
        self._let_go()
        self._config, self._readings, self.is_frozen = None, StreamHealth(), False

    def freeze(self) -> None:
        """Stop in the middle of a message."""
        self.is_frozen = True
        if self.leads and self.broker:
            self._in_hand = self.broker.next_delivery(0)

    def wake(self) -> str:
        """Go on, with what it had in its hands."""
        self.is_frozen = False
        try:
            if self._leader and self._in_hand:
                self._leader.take_in(self._in_hand)
            if self._leader:
                self._leader.tick()
        except (ConnectionLost, QueueFull) as error:
            self._let_go()
            return str(error)
        except Killed:
            self.kill()
            return "is killed by a message, or before its commit"
        finally:
            self._in_hand = None
        return "has noticed nothing"

    def _connect(self, config: AggregatorConfig) -> str:
        # A process keeps its settings over all its connections.
        config = self._config = self._config or replace(config, event_sink=DiesWhileItTells(self._chance))
        self.has_left = False
        lazy_acks = self._chance.random() < 0.3
        broker = self.broker = FaultyBroker(
            self._server, config.topology, self._aftermath, self._chance, lazy_acks=lazy_acks
        )
        join(replace(config, name=self.name), broker)
        return "connects"

    def _go_on(self, broker: FaultyBroker) -> str:
        assert self._config
        delivery = broker.next_delivery(0)
        if self._leader is None:
            if delivery is None:
                return "stands by"
            self._leader = Leading(
                self._config,
                broker,
                self._readings,
                clock=self._clock,
                unix_clock=self._now,
                make_leader=self._make_leader,
            )
        if delivery:
            self._leader.take_in(delivery)
        self._leader.hear()
        self._leader.tick()
        if self._leader.finished and delivery is None:
            wake_standby(self._config, broker)
            self.kill()
            self.has_left = True
            return "leaves: the federation has finished"
        return f"holds {self._leader.held}"

    def _let_go(self) -> None:
        if self.broker:
            self.broker.close()
        self.broker = self._leader = self._in_hand = None
