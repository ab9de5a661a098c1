"""A federation on a virtual clock: the deployed leader, gates, strategies and wire format, and real training.

One heap of events stands where RabbitMQ is: an update arrives when its device has trained and sent it. Each
device trains from the version that it had when it began, and at the latest when its round ends. What is
trained together depends on the virtual clock alone, so that the same settings give the same bits on any
machine, however busy it is.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from fluffle.checked_task import CheckedTask
from fluffle.compression import compress
from fluffle.errors import FluffleError
from fluffle.record import Evaluation, ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.task import Task
from fluffle.update import UpdateId
from fluffle.wire import encode_evaluation, encode_update
from fluffle_cli.simulate.client import Client
from fluffle_cli.simulate.in_memory import LeaderInMemory
from fluffle_cli.simulate.memory import available_bytes, needed_bytes, require_memory
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sites import Sites
from fluffle_cli.simulate.training import Round, make_trainer

EVALUATOR: Final = "evaluator"
RUN: Final = "0" * 16
# Later than any rounding of two times, so that a timer that fires a little early is not set for ever.
SHORTEST_WAIT_S: Final = 1e-3

Event = tuple[float, int, Callable[[], None]]


class SimulatedFederation:
    """One federation, from its first version to its end; `seconds` is the virtual clock.

    `crashes` and `duplicates` count the rounds that were lost, and the updates that came twice, `aborted` the
    rounds that clients ended early because their update would have been refused, and `sent_bytes` the bytes
    of all updates that came.
    """

    def __init__(
        self, settings: SimulateSettings, task: Task, on_version: Callable[[ModelVersion], None]
    ) -> None:
        """Build the model, and load the data of every site."""
        self.seconds = 0.0
        self.crashes = self.duplicates = self.aborted = self.sent_bytes = 0
        self._settings, self._on_version = settings, on_version
        sites = Sites(settings, task)
        self._evaluator = CheckedTask(sites.task)
        model = self._evaluator.model(settings.seed)
        self._local = model.local
        self.leader = LeaderInMemory(settings, ModelFile(model.layout, model.weights), self._committed)
        self._population = settings.make_population()
        self._require_memory(model.layout.size)
        self._trainer = make_trainer(self._evaluator, sites, self.leader.newest, self._local, settings.seed)
        self._clients = list(self._make_clients())
        self._events: list[Event] = []
        self._order = 0
        # By number, in the order in which they began to wait.
        self._waiting: dict[int, Client] = {}
        # With a limit of the staleness, the rounds that began and their numbers: the oldest base first.
        self._rounds: deque[tuple[Client, int]] = deque()
        self._next_tick_s = math.inf

    def _require_memory(self, size: int) -> None:
        """Raise ConfigError when so many devices with a model of `size` numbers may not fit into memory."""
        plan, clients = self.leader.newest.plan, self._settings.clients
        needed = needed_bytes(
            clients=clients,
            model_bytes=4 * size,
            plan=plan,
            optimizer_bytes=sum(array.nbytes for array in self._evaluator.optimizer_state().values()),
            local_bytes=sum(array.nbytes for array in self._local.values()),
        )
        require_memory(needed, available_bytes(), clients=clients, model_bytes=4 * size)

    def _make_clients(self) -> Iterator[Client]:
        width, first = len(str(self._settings.clients - 1)), self.leader.newest
        for index in range(self._settings.clients):
            examples = self._trainer.examples(index)
            yield Client(index, f"worker-{index:0{width}d}", examples, self._local, first)

    @property
    def refused(self) -> Counter[str]:
        """How many messages the leader has refused, by reason."""
        return self.leader.refused

    def run(self) -> None:
        """Play the federation to its end; `on_version` gets each version, the first one too."""
        self._on_version(self.leader.newest)
        self.leader.begin()
        for client in self._clients:
            self._at(self._population.joins_s.get(client.index, 0.0), partial(self._begin, client))
        while not self.leader.finished:
            if not self._events:
                raise FluffleError("the simulation stands still: no client may train, and no update is held")
            self.seconds, _, event = heapq.heappop(self._events)
            event()
            self._tick()

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_s, self._order, event))

    def _when_on(self, client: Client, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen when a client's device has been on for so many seconds."""
        self._at(self._population.availability.after(client.index, self.seconds, seconds), event)

    def _tick(self) -> None:
        self.leader.tick(self.seconds)
        due_s = self.leader.next_tick(self.seconds)
        if self._next_tick_s <= self.seconds:
            self._next_tick_s = math.inf
        if due_s is not None and due_s < self._next_tick_s:
            self._next_tick_s = max(due_s, self.seconds + SHORTEST_WAIT_S)
            self._at(self._next_tick_s, lambda: None)

    def _go_on(self, client: Client) -> None:
        """Let a client begin a round, or wait for a newer version, as `fluffle worker` does."""
        newest = self.leader.newest
        if not client.must_wait(newest):
            self._begin(client)
            return
        client.waits += 1
        self._waiting[client.index] = client
        if not newest.plan.one_update_per_version:
            vain = partial(self._end_vain_wait, client, client.waits)
            self._at(self.seconds + client.patience_s, vain)

    def _end_vain_wait(self, client: Client, wait: int) -> None:
        """Let a client that waits for a newer version in vain train again from the same one."""
        if client.index in self._waiting and client.waits == wait:
            del self._waiting[client.index]
            client.lose_patience()
            self._train(client)

    def _begin(self, client: Client) -> None:
        """Let a client begin a round from the newest version, as soon as its device is on."""
        on_s = self._population.availability.after(client.index, self.seconds, 0.0)
        if on_s > self.seconds:
            self._at(on_s, partial(self._begin, client))
            return
        newest = self.leader.newest
        # Workers leave when no more updates are taken.
        if not newest.is_over:
            client.read(newest)
            self._train(client)

    def _train(self, client: Client) -> None:
        """Let a client's round begin, and be lost or end when its device has been on for long enough."""
        plan = client.base.plan
        client.begun += 1
        client.is_training = True
        if plan.max_staleness is not None:
            self._rounds.append((client, client.begun))
        client.round_s = self._population.round_s(client.index, plan.examples_of_round(client.examples))
        lost_after = self._population.lost_after(client.index, client.begun)
        if lost_after is not None:
            self._when_on(client, lost_after * client.round_s, partial(self._crash, client, client.begun))
            return
        ends_s = self._population.availability.after(client.index, self.seconds, client.round_s)
        update_id = UpdateId(client.name, RUN, client.sent + 1)
        one = Round(client.index, client.base, client.local, update_id, self._settings.seed, ends_s)
        self._trainer.begin(one)
        self._at(ends_s, partial(self._finish_round, client, one, client.begun))

    def _abort_stale_rounds(self, newest: ModelVersion) -> None:
        """Let clients whose update would be refused begin anew; `fluffle worker` notices a little later."""
        limit = newest.plan.max_staleness
        while self._rounds and limit is not None:
            client, number = self._rounds[0]
            if client.trains(number) and newest.version - client.base.version <= limit:
                return
            self._rounds.popleft()
            if client.trains(number):
                self.aborted += 1
                client.is_training = False
                self._trainer.abort(client.index)
                self._begin(client)

    def _crash(self, client: Client, number: int) -> None:
        """Lose a round unless it was aborted, and begin anew from the newest version."""
        if not client.trains(number):
            return
        self.crashes += 1
        client.crash()
        self._begin(client)

    def _finish_round(self, client: Client, one: Round, number: int) -> None:
        """Send the update of the round that ends now, unless it was aborted."""
        if not client.trains(number):
            return
        client.is_training = False
        version, seed = one.base, self._settings.seed
        client.sent += 1
        trained = self._trainer.trained(one)
        if trained.unusable:
            raise FluffleError(f"{client.name}, version {version.version}: {trained.unusable}")
        client.local = trained.local
        random = np.random.default_rng([seed, client.sent, 1])
        vector = compress(version.plan.codec, trained.vector, random)
        body = encode_update(replace(trained.update, vector=vector, train_s=client.round_s))
        client.note_sent(trained.update.id)
        bandwidth = self._settings.bandwidth
        sending_s = 8e-6 * len(body) / bandwidth if bandwidth else 0.0
        self._when_on(client, sending_s, partial(self._arrive, client, body))

    def _arrive(self, client: Client, body: bytes) -> None:
        self.sent_bytes += len(body)
        self._deliver(body, client.name, self.leader.topology.updates_in.name)
        if self._population.comes_twice(client.index, client.sent):
            # As after a confirm that was lost with its connection.
            self.duplicates += 1
            self._deliver(body, client.name, self.leader.topology.updates_in.name)
        self._go_on(client)

    def _deliver(self, body: bytes, user: str, exchange: str) -> None:
        self.leader.deliver(body, user, exchange, self.seconds)
        self._tick()

    def _committed(self, version: ModelVersion) -> None:
        """Show a version that workers can read now, evaluate it if that is due, and end waits for it."""
        self._on_version(version)
        is_due = version.version % self._settings.evaluate_every == 0 or version.closing
        if is_due and not version.finished:
            self._at(self.seconds, partial(self._evaluate, version))
        waiting, self._waiting = self._waiting, {}
        self._abort_stale_rounds(version)
        for client in waiting.values():
            self._begin(client)

    def _evaluate(self, version: ModelVersion) -> None:
        metrics = self._evaluator.evaluate({**version.weights_to_evaluate, **self._local})
        report = Evaluation(self._settings.federation, EVALUATOR, version.version, metrics)
        self._deliver(encode_evaluation(report), EVALUATOR, self.leader.topology.evaluations_in.name)
