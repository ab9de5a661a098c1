"""A federation on a virtual clock: the deployed leader, gates, strategies and wire format, and real training.

One heap of events stands where RabbitMQ is: an update arrives when its device has trained and sent it. Each
device trains from the version that it had when it began, and at the latest when its round ends. What is
trained together depends on the virtual clock alone, so that the same settings give the same bits on any
machine, however busy it is.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from fluffle.checked_task import CheckedTask
from fluffle.compression import compress
from fluffle.errors import FluffleError, NoHeldOutData
from fluffle.free_memory import available_bytes
from fluffle.record import Evaluation, ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.sites import SiteEvaluation
from fluffle.task import Task
from fluffle.update import UpdateId
from fluffle.wire import encode_evaluation, encode_site_evaluation, encode_update
from fluffle_cli.simulate.client import Client
from fluffle_cli.simulate.in_memory import LeaderInMemory
from fluffle_cli.simulate.memory import Memory, needed_bytes
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sites import Sites
from fluffle_cli.simulate.timeline import Timeline
from fluffle_cli.simulate.training import OneByOne, Round, make_trainer
from fluffle_cli.simulate.turn import is_spent
from fluffle_worker.local_noise import with_noise
from fluffle_worker.pace.steps import stamped
from fluffle_worker.round import wait_after_unusable

EVALUATOR: Final = "evaluator"
RUN: Final = "0" * 16
# When so many updates of each device were refused, and none was taken, it is not to be expected any more.
MOST_IN_VAIN: Final = 10


class Hopeless(FluffleError):
    """No update will ever be applied any more: a lower learning rate, or other limits, may help."""


class SimulatedFederation(Timeline[Client]):
    """One federation, from its first version to its end.

    `duplicates` counts the updates that came twice, and `sent_bytes` the bytes of all updates that came.
    `unusable` counts the rounds whose update must not be sent, by the reason.
    """

    def __init__(
        self,
        settings: SimulateSettings,
        task: Task,
        on_version: Callable[[ModelVersion], None],
        memory: Memory | None = None,
    ) -> None:
        """Build the model, and load the data of every site; `memory` is by default all that is available.

        Raises ConfigError when so many devices with such a model may not fit into it.
        """
        super().__init__(settings.make_population())
        self.duplicates = self.sent_bytes = 0
        self.unusable: Counter[str] = Counter()
        self._settings, self._on_version = settings, on_version
        sites = Sites(settings, task)
        self._evaluator = CheckedTask(sites.task)
        model = self._evaluator.model(settings.seed)
        self._local = model.local
        self._leader = LeaderInMemory(settings, ModelFile(model.layout, model.weights), self._committed)
        self._require_room(memory or Memory(available_bytes()), model_bytes=4 * model.layout.size)
        self._one_by_one = OneByOne(self._evaluator, sites)
        self._trainer = make_trainer(self._one_by_one, self._leader.newest, self._local, settings.seed)
        # Whether sites hold out data: as far as none has said that it does not.
        self._validates = self._evaluator.can_validate
        self._clients = list(self._make_clients())

    def _require_room(self, memory: Memory, *, model_bytes: int) -> None:
        plan, clients = self._leader.newest.plan, self._settings.clients
        needed = needed_bytes(
            clients=clients,
            model_bytes=model_bytes,
            plan=plan,
            optimizer_bytes=sum(array.nbytes for array in self._evaluator.optimizer_state().values()),
            local_bytes=sum(array.nbytes for array in self._local.values()),
            noise_bytes=plan.privacy.noise.memory_bytes(model_bytes // 4) if plan.privacy else 0,
        )
        memory.require(needed, clients=clients, model_bytes=model_bytes)

    def _make_clients(self) -> Iterator[Client]:
        width, first = len(str(self._settings.clients - 1)), self._leader.newest
        for index in range(self._settings.clients):
            examples = self._trainer.examples(index)
            yield Client(index, f"worker-{index:0{width}d}", examples, self._local, first)

    @property
    def refused(self) -> Counter[str]:
        """How many messages the leader has refused, by reason."""
        return self._leader.refused

    @property
    def leader(self) -> LeaderInMemory:
        """The deployed leader."""
        return self._leader

    def run(self) -> None:
        """Play the federation to its end; `on_version` gets each version, the first one too."""
        self._on_version(self._leader.newest)
        self._play(self._clients)

    def _has_read(self, worker: Client) -> bool:
        newest = self._leader.newest
        if newest.is_over or is_spent(worker.name, newest, worker.released):
            return False
        worker.read(newest)
        if not newest.plan.is_private and worker.begun % self._settings.evaluate_every == 0:
            self._at(self.seconds, self._validate, worker, newest)
        return True

    def _must_wait(self, worker: Client) -> bool:
        return worker.must_wait(self._leader.newest)

    def _examples(self, worker: Client) -> int:
        return worker.round_plan.examples_of_round(worker.examples)

    def _begin_training(self, worker: Client, ends_s: float) -> None:
        update_id = UpdateId(worker.name, RUN, worker.sent + 1)
        # Each `fluffle worker` adds its site to its seed.
        seed = self._settings.seed + worker.index
        base = replace(worker.base, plan=worker.round_plan)
        one = Round(worker.index, base, worker.local, update_id, seed, ends_s)
        self._trainer.begin(one)
        self._at(ends_s, self._finish_round, worker, one, worker.begun)

    def _abort_training(self, worker: Client) -> None:
        self._trainer.abort(worker.index)

    def _finish_round(self, client: Client, one: Round, number: int) -> None:
        """Send the update of the round that ends now, unless it was aborted."""
        if not client.trains(number):
            return
        client.is_training = False
        version = one.base
        client.sent += 1
        self._note_speed(client, version.plan)
        trained = self._trainer.trained(one)
        if trained.unusable:
            self._pause_after(client, trained.unusable)
            return
        client.unusable = 0
        client.local = trained.local
        update = stamped(trained.update, version.plan, client.examples)
        whole, promised = trained.vector, version.plan.privacy
        if promised and promised.mechanism == "local":
            # Not the operating system's bits, so that a seed gives the same run.
            whole = with_noise(whole, promised, np.random.default_rng([one.seed, client.sent, 2]).bytes)
            client.released += 1
            update = replace(update, released=client.released)
        random = np.random.default_rng([one.seed, client.sent, 1])
        vector = compress(version.plan.codec, whole, random)
        update = replace(update, vector=vector, train_s=client.round_s)
        body = encode_update(update.saying_nothing if version.plan.is_private else update)
        client.note_sent(trained.update.id)
        bandwidth = self._settings.bandwidth
        sending_s = 8e-6 * len(body) / bandwidth if bandwidth else 0.0
        self._at(self._ends_s(client, sending_s), self._arrive, client, body)

    def _pause_after(self, client: Client, because: str) -> None:
        """Let a client wait, as `fluffle worker` does, before it trains again: its update is not sent."""
        self.unusable[because] += 1
        pause_s = wait_after_unusable(client.unusable)
        client.unusable += 1
        if all(each.unusable >= MOST_IN_VAIN for each in self._clients):
            raise Hopeless(
                f"the simulation would never end: the last {MOST_IN_VAIN} rounds of each client gave no "
                f"update, since {because}"
            )
        self._at(self._ends_s(client, pause_s), self._begin, client)

    def _arrive(self, client: Client, body: bytes) -> None:
        self.sent_bytes += len(body)
        self._deliver(body, client.name, self._leader.topology.updates_in.name)
        self._require_hope()
        if self._population.comes_twice(client.index, client.sent):
            # As after a confirm that was lost with its connection.
            self.duplicates += 1
            self._deliver(body, client.name, self._leader.topology.updates_in.name)
        self._go_on(client)

    def _require_hope(self) -> None:
        """Raise Hopeless when the leader refuses whatever comes: no limit would ever be reached."""
        in_vain = self._leader.refused_in_a_row
        if len(in_vain) == self._settings.clients and min(in_vain.values()) >= MOST_IN_VAIN:
            raise Hopeless(
                f"the simulation would never end: the last {in_vain.total():,} updates were all refused, at "
                f"least {MOST_IN_VAIN} of each client. The newest was {self._leader.last_refusal}"
            )

    def _deliver(self, body: bytes, user: str, exchange: str) -> None:
        self._leader.deliver(body, user, exchange, self.seconds)
        self._tick()

    def _committed(self, version: ModelVersion) -> None:
        """Show a version that workers can read now, evaluate it if that is due, and end waits for it."""
        self._on_version(version)
        is_due = version.version % self._settings.evaluate_every == 0 or version.closing
        if is_due and not version.finished:
            self._at(self.seconds, self._evaluate, version)
        if version.closing and not version.finished and not version.plan.is_private:
            for client in self._clients:
                self._at(self.seconds, self._validate, client, version)
        self._note_version(version.version, version.plan.max_staleness)

    def _evaluate(self, version: ModelVersion) -> None:
        try:
            metrics = self._evaluator.evaluate({**version.weights_to_evaluate, **self._local})
        except NoHeldOutData as error:
            if not self._validates:
                raise NoHeldOutData(
                    f"{error}; or let the sites hold out data (--local-validation)"
                ) from error
            return
        report = Evaluation(self._settings.federation, EVALUATOR, version.version, metrics)
        self._deliver(encode_evaluation(report), EVALUATOR, self._leader.topology.evaluations_in.name)

    def _validate(self, client: Client, version: ModelVersion) -> None:
        """Let a client report what a version is worth on the data that it holds out."""
        found = None
        if self._validates:
            weights = {**version.weights_to_evaluate, **client.local}
            found = self._one_by_one.validate(client.index, weights)
        self._validates = found is not None
        if found is None:
            return
        report = SiteEvaluation(version.federation, client.name, version.term, version.version, *found)
        self._deliver(encode_site_evaluation(report), client.name, self._leader.topology.updates_in.name)
