"""How good the model is after the same number of updates, for each codec beside float32.

    python -m benchmarks.codecs

No broker: one process plays eight workers and the aggregator, on a virtual clock, so that every codec sees
the same updates arrive in the same order. What is played is the product's: error feedback with a spool on
disk, the message to bytes and back, the strategy and the global model (FedBuff, K=4, polynomial discount).
The workers' rounds take between 1 and 4 units of time, so that updates are stale by some versions. The data
is split by Dirichlet(0.5); the model is one hidden layer of 64 in numpy, SGD 0.1, minibatches of 32, one
local epoch.

`accuracy` is on the held-out data, in percent: the mean of the last tenth of the versions. `points` is that
minus float32's with the same seed (another split, version 0 and order of minibatches each). `update_bytes` is
the mean of whole messages, and `smaller` says how many of them take the place of one in float32.
"""

import argparse
import heapq
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import small_networks
from benchmarks.measuring import OtherWork, Report, Spread, in_processes, wide_console
from benchmarks.taking_in import WayIn
from fluffle.codecs.floats import Float32Vector
from fluffle.compression import compress, leaves_out
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.safetensors_file import ModelFile
from fluffle.task import Site
from fluffle.topology import MIB
from fluffle.update import WeightUpdate
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.initial_model import first_version
from fluffle_aggregator.strategies.fedbuff import FedBuffSettings
from fluffle_cli.demo.small_network import OneHiddenLayer
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.spool import Spool, open_spool

# zstd loses nothing: with one codec it shows what it saves.
CODECS = ("float32", "bfloat16", "int8", "int8+zstd", "topk", "topk:0.05")
UPDATES = {"digits": 1200, "fashion_mnist": 160}
SEEDS = {"digits": 3, "fashion_mnist": 1}
WORKERS = 8
BUFFER_SIZE = 4
SLOWEST = 4.0

FEDERATION = "codecs"
MEMORY = str(Path("/dev") / "shm")


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    data: str
    codec: str
    seed: int
    updates: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: accuracy in percent, and the mean bytes of an update's message."""

    accuracy: float
    update_bytes: float


@dataclass
class Client:
    """One worker: its data, its spool, and the version that it trains from."""

    index: int
    task: OneHiddenLayer
    spool: Spool
    base: ModelVersion
    sent: list[int] = field(default_factory=list)

    def update(self, seed: int) -> bytes:
        """Train a round, and send what it gave through the spool, as the worker's loop does."""
        base, update_id = self.base, self.spool.next_id
        weights = base.weights
        minibatches = int(np.random.SeedSequence([seed, self.index, update_id.sequence]).generate_state(1)[0])
        trained = self.task.train(weights, base.plan, seed=minibatches, progress=lambda _done, _total: None)
        flat = base.layout.flatten(trained.weights)
        vector = np.subtract(flat.vector, base.vector, out=flat.vector)
        codec, random = base.plan.codec, np.random.default_rng([seed, self.index, update_id.sequence, 1])
        update = WeightUpdate(
            federation=FEDERATION,
            id=update_id,
            base_term=base.term,
            base_version=base.version,
            layout_digest=base.layout.digest,
            sends="delta",
            codec=codec,
            vector=Float32Vector.of(vector),
            statistics=flat.statistics,
            integers=flat.integers,
            examples=trained.examples,
        )
        if leaves_out(codec):
            made = compress_with_feedback(self.spool, base.applied, codec, vector, random)
            self.spool.add(replace(update, vector=made.vector, absorbs=made.absorbs), made.residual)
        else:
            self.spool.add(replace(update, vector=compress(codec, vector, random)))
        waiting = self.spool.oldest()
        if waiting is None:
            raise RuntimeError("the spool gives nothing back")
        self.spool.confirm()
        self.sent.append(len(waiting[1]))
        return waiting[1]


def play(case: Case) -> Outcome:
    """Run one federation on a virtual clock."""
    with threadpool_limits(1):
        return _play(case)


def _play(case: Case) -> Outcome:
    whole: OneHiddenLayer = getattr(small_networks, case.data)
    model = first_model(whole, case)
    record, way_in = model.record, WayIn(model)
    accuracies: list[float] = []
    # In memory where that can be: no power cut is played here.
    place = MEMORY if Path(MEMORY).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fluffle-codecs-", dir=place) as folder, ExitStack() as spools:
        clients = []
        for index in range(WORKERS):
            task = replace(whole)
            task.prepare(Site(index=index, count=WORKERS, seed=case.seed))
            name = f"worker-{index}"
            spool = open_spool(Path(folder) / name, worker=name, max_bytes=64 * MIB)
            clients.append(Client(index, task, spools.enter_context(spool), record))
        for number, index in enumerate(arrivals(case), start=1):
            way_in.take_in(clients[index].update(case.seed), f"worker-{index}")
            if model.steps:
                record = model.next_record(now=0.0)
                # A record is what others read: the model's own vector is written to.
                record = replace(record, vector=record.vector.copy())
                model.advance(record)
                if number > 0.9 * case.updates:
                    weights = record.weights
                    accuracies.append(100 * whole.evaluate(weights)["accuracy"])
            clients[index].base = record
    return Outcome(mean(accuracies), mean(each for client in clients for each in client.sent))


def first_model(task: OneHiddenLayer, case: Case) -> GlobalModel:
    """Return what a new aggregator holds."""
    weights = task.initial_weights(case.seed)
    strategy, plan = FedBuffSettings(buffer_size=BUFFER_SIZE, weigh_by="none").make(), Plan(codec=case.codec)
    file = ModelFile(Layout.of(weights), weights)
    first = first_version(file, federation=FEDERATION, plan=plan, strategy=str(strategy))
    return GlobalModel(first, strategy=strategy, plan=plan, goal=Goal(), term=1)


def arrivals(case: Case) -> Iterator[int]:
    """Yield whose update comes next: each worker has a pace of its own, give or take a tenth."""
    random = np.random.default_rng([case.seed, 2])
    paces = np.linspace(1.0, SLOWEST, WORKERS)
    ends = [(float(pace), index) for index, pace in enumerate(paces)]
    heapq.heapify(ends)
    for _ in range(case.updates):
        now, index = heapq.heappop(ends)
        heapq.heappush(ends, (now + float(paces[index] * random.uniform(0.9, 1.1)), index))
        yield index


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="codecs", description="Measure what codecs cost.")
    parser.add_argument("--data", nargs="+", choices=tuple(UPDATES), default=tuple(UPDATES))
    parser.add_argument("--codecs", nargs="+", default=CODECS, help="beside float32")
    parser.add_argument("--seeds", type=int, help=f"default: {SEEDS}")
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the updates of a run")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    console, others = wide_console(), OtherWork()
    report = Report("codecs", "codecs: the accuracy after the same number of updates")
    codecs = list(dict.fromkeys(["float32", *arguments.codecs]))
    cases = [
        Case(data, codec, seed, round(arguments.effort * UPDATES[data]))
        for data, codec in product(arguments.data, codecs)
        for seed in range(arguments.seeds or SEEDS[data])
    ]
    outcomes = in_processes(play, cases, arguments.processes)
    for data, codec in product(arguments.data, codecs):
        mine, plain = (
            [outcome for case, outcome in outcomes.items() if (case.data, case.codec) == (data, each)]
            for each in (codec, "float32")
        )
        accuracy = Spread(tuple(outcome.accuracy for outcome in mine))
        points = [one.accuracy - other.accuracy for one, other in zip(mine, plain, strict=True)]
        size_bytes = mean(outcome.update_bytes for outcome in mine)
        report.add(
            {
                "data": data,
                "updates": round(arguments.effort * UPDATES[data]),
                "codec": codec,
                "seeds": len(mine),
                "accuracy": accuracy,
                "mean_accuracy": mean(accuracy.values),
                "mean_points": mean(points),
                "worst_points": min(points),
                "update_bytes": round(size_bytes),
                "smaller": mean(outcome.update_bytes for outcome in plain) / size_bytes,
            },
            others=others.share,
        )
    report.show(console)


if __name__ == "__main__":
    main()
