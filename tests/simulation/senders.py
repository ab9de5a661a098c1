"""The workers and the evaluator of the simulation, and what some of them should not send."""

import functools
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from builders import FEDERATION, SIZE, a_site_evaluation, a_vector, an_evaluation, float32s
from fake_broker import FakeBroker, FakeServer

from fluffle.errors import QueueFull
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import decode_version
from fluffle.sites import SiteEvaluation
from fluffle.survey import statistics_of
from fluffle.survey.messages import SiteStatistics
from fluffle.topology import Topology
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_evaluation, encode_site_evaluation, encode_statistics, encode_update

POISON = b"poison"


@dataclass(slots=True)
class Ledger:
    """What was sent, and what of it the broker has confirmed: a kind for each message by its bytes."""

    kinds: dict[bytes, str] = field(default_factory=dict)
    ids: dict[bytes, UpdateId] = field(default_factory=dict)
    updates: dict[UpdateId, list[WeightUpdate]] = field(default_factory=dict)
    confirmed: set[bytes] = field(default_factory=set)
    reports: dict[str, list[SiteEvaluation]] = field(default_factory=dict)
    answers: dict[bytes, SiteStatistics] = field(default_factory=dict)


@dataclass(slots=True)
class Worker:
    """A worker's memory: the versions that it has read, and the update that waits for its confirm."""

    name: str
    run: str = "r1"
    sequence: int = 0
    known: list[ModelVersion] = field(default_factory=list)
    waiting: WeightUpdate | None = None
    last: WeightUpdate | None = None

    def begin_anew(self, chance: Random) -> None:
        """Die and come back: with the spool, or without it and so as another run."""
        self.known = []
        if chance.random() < 0.5:
            self.run, self.sequence, self.waiting = f"r{chance.randrange(10**9)}", 0, None

    @property
    def is_asked(self) -> bool:
        """Whether a survey is open that does not name it, in the newest version that it has read."""
        survey = self.known[-1].survey
        return survey is not None and survey.is_open and self.name not in survey.answered

    def train(self, chance: Random) -> WeightUpdate:
        """Return an update that starts from the newest version, or from an older one."""
        behind = chance.choice([1, 1, 1, 2, 3, 5])
        base = self.known[-min(behind, len(self.known))]
        return WeightUpdate(
            federation=FEDERATION,
            id=UpdateId(self.name, self.run, self.sequence + 1),
            base_term=base.term,
            base_version=base.version,
            layout_digest=base.layout.digest,
            sends=base.plan.sends,
            codec="float32",
            vector=float32s(a_vector(*(chance.uniform(-1, 1) for _ in range(SIZE)))),
            integers=b"",
            examples=chance.randint(1, 20),
        )


class Senders:
    """All who publish to F.updates and F.evaluations."""

    def __init__(self, server: FakeServer, topology: Topology, ledger: Ledger, chance: Random) -> None:
        self._server = server
        self._topology = topology
        self._ledger = ledger
        self._chance = chance
        self._workers = [Worker(f"w{number}") for number in range(chance.randint(1, 4))]
        # Whether the sites evaluate, or leave that to the evaluator.
        self._evaluates = chance.random() < 0.5

    def turn(self) -> str:
        """Let somebody do something, and say what."""
        worker = self._chance.choice(self._workers)
        if self._chance.random() < 0.07:
            worker.begin_anew(self._chance)
            return f"{worker.name} begins anew as {worker.run}"
        newest = self._newest()
        if newest and (not worker.known or newest.term >= worker.known[-1].term):
            worker.known.append(newest)
        if not worker.known:
            return f"{worker.name} finds no model"
        if self._chance.random() < 0.15:
            return self._do_wrong(worker)
        if self._chance.random() < 0.1:
            return self._evaluate(worker.known[-1].version)
        if self._evaluates and self._chance.random() < 0.6:
            return self._report(worker)
        if worker.is_asked and self._chance.random() < 0.7:
            return self._answer(worker)
        if worker.waiting is None:
            worker.waiting = worker.train(self._chance)
            worker.sequence += 1
        return self._send_update(worker, luck=self._chance.random())

    def send_what_waits(self) -> None:
        """Let every worker send what was not confirmed, and let nothing go wrong."""
        for worker in self._workers:
            if worker.waiting:
                self._send_update(worker, luck=1.0)

    def _newest(self) -> ModelVersion | None:
        """Read the stream's last chunk, as large as that may be, and go by rank."""
        stream = self._server.queue(self._topology.models.name).ready
        chunk = min(len(stream), self._chance.randint(1, 3))
        versions = [decode_version(stream[-1 - back].body) for back in range(chunk)]
        return max(versions, key=lambda version: version.rank, default=None)

    def _send_update(self, worker: Worker, *, luck: float) -> str:
        update = worker.waiting
        assert update
        said = f"{worker.name} sends {update.id} from {Rank(update.base_term, update.base_version)}"
        if luck < 0.07:
            return f"{said}: it does not arrive"
        if not self._send("update", worker.name, update):
            return f"{said}: the queue is full"
        if luck < 0.15:
            return f"{said}: its confirm does not arrive"
        worker.waiting, worker.last = None, update
        return said

    def _do_wrong(self, worker: Worker) -> str:
        number = len(self._ledger.kinds)
        other = replace(worker.train(self._chance), id=UpdateId(worker.name, f"bad{number}", 1))
        last = worker.last or other
        wrongs: list[tuple[str, str, WeightUpdate | bytes]] = [
            ("garbage", worker.name, b"garbage %d" % number),
            ("poison", worker.name, POISON + b" %d" % number),
            ("impostor", "mallory", replace(last, train_s=number)),
            ("impostor", "", replace(last, train_s=number)),
            ("update", worker.name, last),
            ("update", worker.name, replace(other, id=last.id)),
            ("of the future", worker.name, replace(other, base_version=other.base_version + 50)),
            ("of another line", worker.name, replace(other, base_term=99)),
            ("unsound", worker.name, replace(other, vector=float32s(a_vector(1, float("nan"), 0, 0)))),
            ("unsound", worker.name, replace(other, vector=float32s(a_vector(1, 2.0**60, 0, 0)))),
            ("unsound", worker.name, replace(other, examples=0)),
        ]
        kind, user, message = self._chance.choice(wrongs)
        sent = self._send(kind, user, message)
        what = message.decode() if isinstance(message, bytes) else str(message.id)
        return f"{user or 'nobody'} sends {kind}: {what}{'' if sent else ': the queue is full'}"

    def _evaluate(self, version: int) -> str:
        late, loss = self._chance.choice([0, 0, 0, 50]), self._chance.random()
        body = encode_evaluation(an_evaluation(version + late, {"loss": loss}))
        by_evaluator = self._chance.random() < 0.8
        exchange = self._topology.evaluations_in if by_evaluator else self._topology.updates_in
        self._ledger.kinds[body] = "evaluation"
        self._publish("e1", exchange.name, body)
        return f"e1 evaluates version {version + late} through {exchange.name}"

    def _report(self, worker: Worker) -> str:
        """Let a worker tell what a version is worth at its site: again, perhaps, or of one that is not."""
        base, late = self._chance.choice(worker.known[-3:]), self._chance.choice([0, 0, 0, 50])
        found = a_site_evaluation(
            worker.name,
            base.version + late,
            self._chance.random(),
            term=base.term,
            examples=self._chance.randint(1, 20),
            tuned=self._chance.choice([None, self._chance.random()]),
        )
        if self._chance.random() < 0.3:
            found = self._chance.choice([found, *self._ledger.reports.get(worker.name, ())])
        body = encode_site_evaluation(found)
        self._ledger.kinds[body] = "site's evaluation"
        self._ledger.reports.setdefault(found.worker, []).append(found)
        self._publish(worker.name, self._topology.updates_in.name, body)
        return f"{worker.name} evaluates version {found.term}/{found.version} at its site"

    def _answer(self, worker: Worker) -> str:
        """Let a worker answer a survey, perhaps again, or in the name of another one."""
        is_impostor = self._chance.random() < 0.1
        user, answer = ("mallory" if is_impostor else worker.name), answer_of(worker.name, int(is_impostor))
        body, said = encode_statistics(answer), f"{user} answers the survey as {worker.name}"
        self._ledger.kinds[body] = "impostor" if is_impostor else "answer"
        if not is_impostor:
            self._ledger.answers[body] = answer
        if self._chance.random() < 0.1:
            return f"{said}: it does not arrive"
        has_room = self._publish(user, self._topology.updates_in.name, body)
        return said if has_room else f"{said}: the queue is full"

    def _send(self, kind: str, user: str, message: WeightUpdate | bytes) -> bool:
        body = message if isinstance(message, bytes) else encode_update(message)
        self._ledger.kinds.setdefault(body, kind)
        if kind == "update" and isinstance(message, WeightUpdate) and body not in self._ledger.ids:
            self._ledger.ids[body] = message.id
            self._ledger.updates.setdefault(message.id, []).append(message)
        return self._publish(user, self._topology.updates_in.name, body)

    def _publish(self, user: str, exchange: str, body: bytes) -> bool:
        with FakeBroker(self._server) as broker:
            try:
                broker.publish_as(user, exchange, "", body, {})
            except QueueFull:
                return False
        self._ledger.confirmed.add(body)
        return True


@functools.cache
def answer_of(worker: str, more: int = 0) -> SiteStatistics:
    """Return the statistics of a worker's data, always the same; with `more` rows they are another's."""
    rows = np.random.default_rng(int(worker[1:])).normal(size=(5 + more, 2))
    return SiteStatistics(FEDERATION, worker, statistics_of(rows, names=("age", "pulse")))
