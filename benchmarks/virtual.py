"""A federation on a virtual clock: real tasks and the product's global model, without a broker.

Each worker's round takes its own time; what it learns is folded when the round is over, in the order in which
the rounds end. So the same seed gives the same run on any machine, however busy it is. The aggregator may be
away for a while: what workers send meanwhile waits in its order, as in the queue.
"""

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

from benchmarks.taking_in import WayIn
from fluffle.checked_task import CheckedTask
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.record import Evaluation, ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.task import Task
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.initial_model import first_version
from fluffle_aggregator.schedules import Schedule
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_worker.base_version import most_in_flight
from fluffle_worker.round import minibatch_seed, train_round

FEDERATION = "virtual"


@dataclass(frozen=True, slots=True)
class Course:
    """How a federation is run: `round_s` is what each worker's round takes, in virtual seconds.

    The aggregator is away from `away[0]` to `away[1]`. With `is_bounded` a worker that has as many updates
    under way as it may waits for a newer version. `train_shares` are those of the workers; without them, all
    train the whole model.
    """

    strategy: Strategy
    plan: Plan
    round_s: Sequence[float]
    updates: int
    seed: int
    evaluate_every: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    away: tuple[float, float] | None = None
    is_bounded: bool = True
    train_shares: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of a version, when, and after how many updates."""

    at_s: float
    version: int
    updates: int
    metrics: Mapping[str, float]

    @property
    def cost(self) -> float:
        """How far from right the model is: the rmse of a regression, else the error rate."""
        return self.metrics["rmse"] if "rmse" in self.metrics else 1 - self.metrics["accuracy"]


@dataclass(slots=True)
class _Client:
    task: CheckedTask
    local: Weights
    base: ModelVersion
    sent: int = 0


class VirtualFederation:
    """Plays one course; `tasks` are the workers, with their data prepared, `judge` has what is held out."""

    def __init__(self, course: Course, tasks: Sequence[Task], judge: Task) -> None:
        self._course = course
        checked = [CheckedTask(task) for task in tasks]
        self._judge = CheckedTask(judge)
        first = self._judge.model(course.seed)
        record = first_version(
            ModelFile(first.layout, first.weights),
            federation=FEDERATION,
            plan=course.plan,
            strategy=str(course.strategy),
        )
        self._model = GlobalModel(
            record,
            strategy=course.strategy,
            plan=course.plan,
            goal=Goal(),
            term=1,
            schedule=course.schedule,
        )
        self._way_in = WayIn(self._model)
        self._newest = record
        self._clients = [_Client(task, task.model(course.seed).local, record) for task in checked]
        for client, share in zip(self._clients, chain(course.train_shares, repeat(1.0)), strict=False):
            if share < 1:
                client.task.train_last(share)
            client.task.restore_optimizer({})
        self._rounds: list[tuple[float, int, int]] = []
        self._queue: deque[WeightUpdate] = deque()
        self._idle: list[int] = []
        self._folded = 0
        self.points: list[Point] = []

    def run(self) -> list[Point]:
        """Fold as many updates as the course says, and return what was measured on the way."""
        for index in range(len(self._clients)):
            self._start(index, 0.0)
        while self._folded < self._course.updates:
            if not self._rounds:
                # Everybody waits for a version: the next thing that happens is the aggregator's return.
                self._work_off(self._course.away[1] if self._course.away else math.inf)
                continue
            now, _, index = heapq.heappop(self._rounds)
            self._queue.append(self.train(index))
            self._work_off(now)
            self._start(index, now)
        return self.points

    def weight_share(self, worker: str) -> float:
        """Return a worker's share of all the weight that was given."""
        given = self._newest.contributors
        return given[worker].weight_sum / sum(one.weight_sum for one in given.values())

    def _start(self, index: int, now: float) -> None:
        client = self._clients[index]
        client.base = self._newest
        most = most_in_flight(self._newest, f"worker-{index}")
        if self._course.is_bounded and client.sent - self._contained(index) >= most:
            self._idle.append(index)
            return
        order = len(self._clients) * client.sent + index
        heapq.heappush(self._rounds, (now + self._course.round_s[index], order, index))

    def _contained(self, index: int) -> int:
        contributor = self._newest.contributors.get(f"worker-{index}")
        return contributor.updates if contributor else 0

    def train(self, index: int) -> WeightUpdate:
        """Train a worker's round, and return what it sends."""
        client = self._clients[index]
        client.sent += 1
        trained = train_round(
            client.task,
            client.base,
            client.local,
            update_id=UpdateId(f"worker-{index}", "0" * 16, client.sent),
            seed=minibatch_seed(self._course.seed, index, client.sent),
            progress=lambda _done, _total: None,
        )
        client.local = trained.local
        return trained.update

    def _work_off(self, now: float) -> None:
        """Fold what waits, unless the aggregator is away, and let those train on who waited for a version."""
        away = self._course.away
        while self._queue and not (away and away[0] <= now < away[1]):
            update = self._queue.popleft()
            self._way_in.take_in(encode_update(update), update.id.worker, now=now)
            self._folded += 1
            if self._model.steps:
                self._commit(now)

    def _commit(self, now: float) -> None:
        record = self._model.next_record(now=now, elapsed_s=now)
        # A record is what others read: the model's own arrays are written to.
        record = replace(record, vector=record.vector.copy(), statistics=record.statistics.copy())
        self._model.advance(record)
        self._newest = record
        if record.version % self._course.evaluate_every == 0:
            metrics = self._judge.evaluate(record.weights)
            self._model.note_evaluation(Evaluation(FEDERATION, "judge", record.version, metrics))
            self.points.append(Point(now, record.version, self._folded, metrics))
        idle, self._idle = self._idle, []
        for index in idle:
            self._start(index, now)
