"""A whole federation in one thread, as a pure function of a seed."""

import functools
import itertools
from collections.abc import Callable
from random import Random

from builders import FEDERATION
from fake_broker import FakeBroker, FakeServer
from simulation.aggregators import Aggregator
from simulation.configs import some_config, some_strategy, some_survey, some_topology
from simulation.faulty_broker import Aftermath, Heard
from simulation.promises import Promises
from simulation.senders import Ledger, Senders

from fluffle.topology import topology_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.leader import Leader

FAULTS: tuple[Heard, ...] = ("nothing", "all", "late", "late", "half")
MORE_THAN_ANY_TIMEOUT_S = 1_000.0
MOST_TURNS = 2_000


class World:
    """Aggregators, workers, an evaluator, a broker and the clocks; `log` tells what happened so far."""

    def __init__(
        self,
        seed: int,
        *,
        make_leader: type[Leader] = Leader,
        told: Callable[[AggregatorConfig], AggregatorConfig] = lambda it: it,
    ) -> None:
        chance = self._chance = Random(seed)
        self.log: list[str] = []
        self._server = FakeServer(longest_wait_s=0)
        self._topology = some_topology(chance, topology_of(FEDERATION))
        strategies = [some_strategy(chance) for _ in range(chance.choice([1, 1, 1, 2]))]
        survey = some_survey(chance)
        self._configs = [told(some_config(chance, one, self._topology, survey)) for one in strategies]
        self._aftermath = Aftermath()
        self._seconds = 0.0
        self._aggregators = [
            Aggregator(
                f"a{number}",
                self._server,
                self._aftermath,
                chance,
                make_leader=make_leader,
                clock=lambda: self._seconds,
                # Somebody sets the clock, forwards and backwards; nothing may come of it.
                now=lambda: chance.uniform(-1e9, 4e9),
            )
            for number in range(chance.randint(1, 3))
        ]
        ledger = Ledger()
        with FakeBroker(self._server) as broker:
            broker.declare(self._topology)
        self._senders = Senders(self._server, self._topology, ledger, chance)
        known = {str(strategy): strategy for strategy in strategies}
        self._promises = Promises(self._server, self._topology, self._aggregators, known, ledger)
        self._deeds = {
            self._let_an_aggregator_go_on: 45,
            self._let_somebody_send: 35,
            self._let_time_pass: 7,
            self._kill_an_aggregator: 2,
            self._freeze_an_aggregator: 2,
            self._drop_a_frozen_one: 3,
            self._wake_an_aggregator: 2,
            self._let_something_arrive_late: 5,
            self._restart_the_broker: 1,
            self._cut_the_power: 1,
            self._shorten_the_stream: 1,
        }

    def run(self) -> None:
        """Do so many things at random, and then let the federation come to rest."""
        deeds, weights = list(self._deeds), list(self._deeds.values())
        # Most faults need few; that something is replaced by what is older needs several versions.
        number = self._chance.choice([self._chance.randint(10, 70)] * 9 + [250])
        for deed in self._chance.choices(deeds, weights, k=number):
            self._do(deed)
        self._come_to_rest()

    def _do(self, deed: Callable[[], str]) -> None:
        self._seconds += 0.01
        said = deed()
        if not said:
            return
        self.log.append(said)
        if self._aftermath.power_is_cut:
            self._aftermath.power_is_cut = False
            self.log.append(self._cut_the_power())
        confirmed, self._aftermath.confirmed = self._aftermath.confirmed, None
        records, self._aftermath.records = self._aftermath.records, []
        self._promises.check(confirmed, records)

    def _come_to_rest(self) -> None:
        """Let nothing more go wrong, and see to it that everything sent comes to its end."""
        for each in self._aggregators:
            self._do(functools.partial(self._kill, each))
        while self._aftermath.late:
            self._do(self._let_something_arrive_late)
        config, [aggregator, *_] = self._configs[-1], self._aggregators
        for turn in itertools.count():
            assert turn < MOST_TURNS, "the federation does not come to rest"
            self._senders.send_what_waits()
            self._do(lambda: f"{aggregator.name} {aggregator.turn(config)}")
            if not self._server.bodies(self._topology.updates.name):
                self._seconds += MORE_THAN_ANY_TIMEOUT_S
                if turn > 1 and not (aggregator.broker and aggregator.broker.unacked):
                    break
        self._promises.check_end()

    def _let_an_aggregator_go_on(self) -> str:
        aggregator = self._chance.choice(self._aggregators)
        if aggregator.is_frozen or (aggregator.has_left and self._chance.random() < 0.8):
            return ""
        fault = None
        if self._chance.random() < 0.15:
            fault = self._chance.randrange(3), self._chance.choice(FAULTS)
        return f"{aggregator.name} {aggregator.turn(self._chance.choice(self._configs), fault)}"

    def _let_somebody_send(self) -> str:
        return self._senders.turn()

    def _let_time_pass(self) -> str:
        seconds = self._chance.choice([1.0, 6.0, 30.0, 1000.0])
        self._seconds += seconds
        return f"{seconds} seconds pass"

    def _kill_an_aggregator(self) -> str:
        return self._kill(self._chance.choice(self._aggregators))

    def _kill(self, aggregator: Aggregator) -> str:
        aggregator.kill()
        return f"{aggregator.name} is killed"

    def _freeze_an_aggregator(self) -> str:
        aggregator = self._chance.choice(self._aggregators)
        aggregator.freeze()
        return f"{aggregator.name} is frozen"

    def _drop_a_frozen_one(self) -> str:
        frozen = [one for one in self._aggregators if one.is_frozen and one.broker]
        if not frozen:
            return ""
        aggregator = self._chance.choice(frozen)
        if aggregator.broker:
            aggregator.broker.close()
        return f"the broker lets go of {aggregator.name}, which is frozen"

    def _wake_an_aggregator(self) -> str:
        frozen = [one for one in self._aggregators if one.is_frozen]
        if not frozen:
            return ""
        aggregator = self._chance.choice(frozen)
        return f"{aggregator.name} wakes up and {aggregator.wake()}"

    def _let_something_arrive_late(self) -> str:
        if not self._aftermath.late:
            return ""
        late = self._aftermath.late.pop(0)
        if self._chance.random() < 0.2:
            return f"what was on its way to {late.exchange} is lost"
        with FakeBroker(self._server) as broker:
            broker.publish(late.exchange, "", late.body, late.headers)
        self._promises.note_late_arrival(late)
        return f"what was on its way to {late.exchange} arrives late"

    def _restart_the_broker(self) -> str:
        # Standbys first: otherwise each would be given, and hand back, what the one before had.
        for aggregator in sorted(self._aggregators, key=lambda one: one.leads):
            if aggregator.broker:
                aggregator.broker.close()
        return "the broker restarts"

    def _cut_the_power(self) -> str:
        self._restart_the_broker()
        lost = []
        for queue in (self._topology.models, self._topology.records):
            stream = self._server.queue(queue.name).ready
            lost.append(self._chance.randint(0, len(stream)))
            for _ in range(lost[-1]):
                stream.pop()
        return f"the power is cut, and the streams lose their last {lost[0]} versions and {lost[1]} records"

    def _shorten_the_stream(self) -> str:
        stream = self._server.queue(self._topology.models.name).ready
        gone = self._chance.randrange(max(1, len(stream) - 4))
        for _ in range(gone):
            stream.popleft()
        return f"the stream's retention takes {gone} versions"
