"""A federation on a virtual clock: the deployed leader, gates, strategies and wire format, and real training.

One heap of events stands where RabbitMQ is: an update arrives when its device has trained and sent it. Each
device trains when its update arrives, from the version that it had when it began, so that the same settings
give the same bits on any machine, however busy it is.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np

from fluffle.broker import Delivery
from fluffle.checked_task import CheckedTask
from fluffle.compression import compress
from fluffle.errors import FluffleError
from fluffle.framing import record_digest
from fluffle.model import Weights
from fluffle.record import Evaluation, ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.task import Site, Task
from fluffle.topology import topology_of
from fluffle.update import UpdateId
from fluffle.wire import decode_version, encode_copy, encode_evaluation, encode_update, encode_version
from fluffle_aggregator.effects import Commit, Effect
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.initial_model import first_version
from fluffle_aggregator.leader import Leader, Now
from fluffle_aggregator.schedules import parse_schedule
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_worker.base_version import FIRST_PATIENCE_S, most_in_flight
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.round import ignore_progress, minibatch_seed, train_round

# The Unix time at which every simulation begins, so that two runs are equal to the byte.
BEGINS_AT: Final = 1_767_225_600.0
EVALUATOR: Final = "evaluator"
RUN: Final = "0" * 16


@dataclass(slots=True)
class Client:
    """A device: `site` is its part of the data, and `base` the version that its round started from."""

    name: str
    site: Site
    task: CheckedTask
    examples: int
    fixed_s: float
    example_s: float
    local: Weights
    base: ModelVersion
    optimizer: Weights = field(default_factory=dict)
    sent: int = 0
    round_s: float = 0.0
    in_flight: list[UpdateId] = field(default_factory=list)


class SimulatedFederation:
    """One federation, from its first version to its end; `seconds` is the virtual clock."""

    def __init__(
        self, settings: SimulateSettings, task: Task, on_version: Callable[[ModelVersion], None]
    ) -> None:
        """Build the model, and load the data of every site."""
        self.seconds = 0.0
        self._settings, self._on_version = settings, on_version
        self._evaluator = CheckedTask(task)
        model = self._evaluator.model(settings.seed)
        self._local = model.local
        strategy = settings.make_strategy()
        plan = settings.make_plan(strategy)
        self._topology = topology_of(settings.federation)
        file = ModelFile(model.layout, model.weights)
        first = first_version(file, federation=settings.federation, plan=plan, strategy=str(strategy))
        self._newest = replace(first, committed_at=BEGINS_AT)
        global_model = GlobalModel(
            self._newest,
            {},
            strategy=strategy,
            plan=plan,
            goal=settings.make_goal(),
            term=1,
            schedule=parse_schedule(settings.learning_rate_schedule),
        )
        self._leader = Leader(
            global_model,
            self._topology,
            settings,
            settings.make_commit_schedule(strategy),
            parent=record_digest(encode_version(self._newest)),
            now=self._now,
        )
        self._clients = list(self._make_clients(task))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = self._tags = 0
        self._idle: list[Client] = []
        self._next_tick_s = -1.0

    def _make_clients(self, task: Task) -> Iterator[Client]:
        settings, evaluator = self._settings, self._evaluator
        width = len(str(settings.clients - 1))
        for index, (fixed_s, example_s) in enumerate(zip(*settings.seconds_of_devices(), strict=True)):
            # The data of another kind of task are loaded again for each round.
            own = evaluator.with_the_same_model() if isinstance(task, KerasTask) else evaluator
            site = settings.site(index)
            examples = own.prepare(site)
            name = f"worker-{index:0{width}d}"
            yield Client(name, site, own, examples, fixed_s, example_s, self._local, self._newest)

    @property
    def _now(self) -> Now:
        return Now(self.seconds, BEGINS_AT + self.seconds)

    def run(self) -> None:
        """Play the federation to its end; `on_version` gets each version, the first one too."""
        self._on_version(self._newest)
        self._perform(self._leader.begin(self._now))
        for client in self._clients:
            self._start_when_allowed(client)
        while not self._leader.finished:
            if not self._events:
                self._end_vain_waits()
            at, _, event = heapq.heappop(self._events)
            self.seconds = max(self.seconds, at)
            event()
            self._tick()

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.seconds + seconds, self._order, event))

    def _tick(self) -> None:
        self._perform(self._leader.tick(self._now))
        if self._leader.held and self._next_tick_s <= self.seconds:
            # A partial buffer is used after a while, even if no update comes.
            timeout_s = self._settings.buffer_timeout
            self._next_tick_s = self.seconds + timeout_s
            self._later(timeout_s, lambda: None)

    def _start_when_allowed(self, client: Client) -> None:
        """Let a client begin a round, or wait for a newer version, as `fluffle worker` does."""
        newest = self._newest
        client.in_flight = [one for one in client.in_flight if not newest.applied.is_past(one)]
        is_done = newest.plan.one_update_per_version and client.base is newest and client.sent > 0
        if is_done or len(client.in_flight) >= most_in_flight(newest, client.name):
            self._idle.append(client)
        else:
            self._start(client)

    def _start(self, client: Client) -> None:
        plan = self._newest.plan
        client.base = self._newest
        steps = plan.local_steps
        examples = steps * plan.batch_size if steps else plan.local_epochs * client.examples
        client.round_s = client.fixed_s + client.example_s * examples
        self._later(client.round_s, lambda: self._finish_round(client))

    def _end_vain_waits(self) -> None:
        """Let clients that wait for a newer version in vain train again from the same one."""
        if self._newest.plan.one_update_per_version:
            raise FluffleError("the simulation stands still: no client may train, and no update is held")
        idle, self._idle = self._idle, []
        self.seconds += FIRST_PATIENCE_S
        for client in idle:
            self._start(client)

    def _finish_round(self, client: Client) -> None:
        """Train the round that ends now, and send its update."""
        version, seed = client.base, self._settings.seed
        client.sent += 1
        if client.task is self._evaluator:
            client.task.prepare(client.site)
        if version.plan.keep_optimizer:
            client.task.restore_optimizer(client.optimizer)
        trained = train_round(
            client.task,
            version,
            client.local,
            update_id=UpdateId(client.name, RUN, client.sent),
            seed=minibatch_seed(seed, client.sent),
            progress=ignore_progress,
        )
        if trained.unusable:
            raise FluffleError(f"{client.name}, version {version.version}: {trained.unusable}")
        client.local = trained.local
        if version.plan.keep_optimizer:
            client.optimizer = client.task.optimizer_state()
        random = np.random.default_rng([seed, client.sent, 1])
        vector = compress(version.plan.codec, trained.vector, random)
        body = encode_update(replace(trained.update, vector=vector, train_s=client.round_s))
        client.in_flight.append(trained.update.id)
        bandwidth = self._settings.bandwidth
        self._later(8e-6 * len(body) / bandwidth if bandwidth else 0.0, lambda: self._arrive(client, body))

    def _arrive(self, client: Client, body: bytes) -> None:
        self._deliver(body, client.name, self._topology.updates_in.name)
        self._tick()
        self._start_when_allowed(client)

    def _deliver(self, body: bytes, user: str, exchange: str) -> None:
        self._tags += 1
        headers = {"at": f"{self._now.unix:.3f}"}
        delivery = Delivery(self._tags, body, user=user, exchange=exchange, headers=headers)
        self._perform(self._leader.take_in(delivery, self._now))

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Perform the commits among these effects: nothing here is acked, delivered again or told."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            if isinstance(effect, Commit):
                waiting.extendleft(reversed(self._commit(effect.record)))

    def _commit(self, record: ModelVersion) -> list[Effect]:
        body = encode_version(record)
        digest, codec = record_digest(body), self._settings.downlink_codec
        sent = body if codec == "float32" else bytes(encode_copy(record, codec, digest))
        # Read back, as a worker does; the leader goes on to write to its own arrays.
        self._newest = decode_version(sent)
        effects = self._leader.committed(record, digest=digest, took_s=0.0, now=self._now)
        self._on_version(self._newest)
        if record.version % self._settings.evaluate_every == 0 and not record.finished:
            self._later(0.0, partial(self._evaluate, self._newest))
        idle, self._idle = self._idle, []
        for client in idle:
            self._start_when_allowed(client)
        return effects

    def _evaluate(self, version: ModelVersion) -> None:
        metrics = self._evaluator.evaluate({**version.weights, **self._local})
        report = Evaluation(self._settings.federation, EVALUATOR, version.version, metrics)
        self._deliver(encode_evaluation(report), EVALUATOR, self._topology.evaluations_in.name)
