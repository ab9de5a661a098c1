"""A real federation for tests: processes as a user starts them, their logs, and the ledger of its updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fluffle.broker import Delivery
from fluffle.model_stream import all_versions, newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import Topology, topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_cli.guard import Watched, guard

DEADLINE_S = 300.0
TESTS = Path(__file__).parent
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
HEARTBEAT_S = 5


def wait_until(
    condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S, every_s: float = 0.05
) -> None:
    """Look again and again until a condition holds; fail with `what` was waited for."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:.0f} s in vain for {what}"
        time.sleep(every_s)


@dataclass
class Part:
    """One process of a federation, and its log of JSON lines."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def events(self, event: str) -> list[Mapping[str, object]]:
        """Return the log lines of one kind so far."""
        lines = self.log.read_text().splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in parsed if line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until an event was logged so many times; fail at once when the process is gone."""

        def is_there() -> bool:
            found = len(self.events(event)) >= count
            assert found or self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()[-2000:]}"
            return found

        wait_until(is_there, f"{count} times {event!r} in the log of {self.name}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def wait_for_exit(self) -> int:
        """Return the exit code once the process has ended by itself."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log.read_text()[-2000:]}") from None


@dataclass
class Federation:
    """The processes of one federation on one broker; `with` ends them all."""

    name: str
    broker_url: str
    folder: Path
    task: str = "digits"
    # What stands before each command: a program that starts it as another user, for example.
    prefix: tuple[str, ...] = ()
    parts: list[Part] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self.parts:
            if part.process.poll() is None:
                part.kill()
            guard().release(part.process.pid)

    @property
    def topology(self) -> Topology:
        """The federation's queues."""
        return topology_of(self.name)

    def aggregator(self, name: str, *flags: str) -> Part:
        """Start an aggregator."""
        return self.start(name, "fluffle_aggregator", "--name", name, *flags)

    def worker(self, site: int, *flags: str, sites: int = 4) -> Part:
        """Start the worker of a site."""
        place = ["--site", str(site), "--sites", str(sites), "--name", f"site-{site}"]
        return self.start(f"worker-{site}-{len(self.parts)}", "fluffle_worker", *place, *flags)

    def evaluator(self, *flags: str) -> Part:
        """Start an evaluator."""
        return self.start("evaluator", "fluffle_cli.main", "evaluator", "--name", "evaluator", *flags)

    def connect(self) -> RabbitBroker:
        """Return a connection of the test's own."""
        return RabbitBroker(self.broker_url, name=f"{self.name}/test", heartbeat_s=HEARTBEAT_S)

    def newest(self) -> ModelVersion:
        """Return the newest version."""
        with self.connect() as broker:
            version = newest_version(broker, self.topology, stop=threading.Event())
        assert version is not None
        return version

    def confirmed(self) -> set[UpdateId]:
        """Return the ids of the updates that workers have logged as confirmed."""
        found = set()
        for part in self.parts:
            for line in part.events("update published"):
                worker, run, sequence = str(line["update"]).split("/")
                found.add(UpdateId(worker, run, int(sequence)))
        return found

    def waiting_in(self, queue: str) -> set[UpdateId]:
        """Return the ids of the updates in a queue, once nobody else consumes it; they stay there."""
        return set(_update_ids([delivery.body for delivery in self.deliveries_in(queue)]))

    def deliveries_in(self, queue: str) -> list[Delivery]:
        """Return the messages in a queue, once nobody else consumes it; they stay there."""
        deliveries: list[Delivery] = []
        with self.connect() as broker:
            messages = broker.state(queue).messages
            broker.consume(queue, prefetch=messages + 1)
            while len(deliveries) < messages:
                delivery = broker.next_delivery(DEADLINE_S)
                assert delivery is not None, f"{queue} holds {messages} messages, but gives {len(deliveries)}"
                deliveries.append(delivery)
        return deliveries

    def fluffle(self, *arguments: str, broker_url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of `fluffle` to its end, as somebody types it; nobody is at its terminal."""
        return subprocess.run(
            [sys.executable, "-m", "fluffle_cli.main", *arguments],
            env=os.environ
            | {"FLUFFLE_FEDERATION": self.name, "FLUFFLE_BROKER_URL": broker_url or self.broker_url},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def start(self, name: str, module: str, *arguments: str) -> Part:
        """Start a program as a part of the federation."""
        log = self.folder / f"{name}.log"
        environment = os.environ | {
            "FLUFFLE_FEDERATION": self.name,
            "FLUFFLE_BROKER_URL": self.broker_url,
            "FLUFFLE_TASK": self.task,
            "FLUFFLE_HEARTBEAT_S": str(HEARTBEAT_S),
            "FLUFFLE_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(map(str, [self.folder, EXAMPLES, TESTS, ROOT])),
            # Many processes share two cores.
            "OMP_NUM_THREADS": "1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        }
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", module, *arguments],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        # So that an interrupted run of the tests leaves nothing behind.
        guard().watch(Watched(process.pid))
        part = Part(name, process, log)
        self.parts.append(part)
        return part


def applied_ids(version: ModelVersion) -> set[UpdateId]:
    """Return the ids of all updates that a version contains, from the first version on."""
    return {
        UpdateId(worker, run, sequence)
        for (worker, run), log in version.applied.runs.items()
        for sequence in range(1, log.highest + 1)
        if sequence in log
    }


def assert_every_confirmed_update_counts_once(federation: Federation, final: ModelVersion) -> None:
    """Hold the ledger of the workers' logs against what the final version says."""
    applied = applied_ids(final)
    queued = federation.waiting_in(federation.topology.updates.name)
    rejected = federation.waiting_in(federation.topology.rejected.name)
    confirmed = federation.confirmed()

    assert confirmed, "no update was confirmed at all"
    assert confirmed <= applied | queued | rejected
    # Each fold counts one more update for its worker; a set holds each id once: equal only if none is twice.
    assert final.updates == len(applied)


def assert_refused(part: Part, *words: str) -> None:
    """The process ends with 2, and its last line is one sentence with these words in it."""
    code = part.wait_for_exit()
    log = part.log.read_text()
    last = json.loads(log.strip().splitlines()[-1])
    assert code == 2, log
    assert "Traceback" not in log
    assert last["level"] == "error"
    for word in words:
        assert word in last["event"]


def end_and_balance(federation: Federation, *, workers: list[Part], aggregators: list[Part]) -> ModelVersion:
    """Ask the workers to stop, let the aggregators fold what waits, end them, and balance the ledger."""
    for part in workers:
        part.ask_to_stop()
    codes = {part.name: part.wait_for_exit() for part in workers}
    with federation.connect() as broker:
        queue = federation.topology.updates.name
        wait_until(lambda: broker.state(queue).messages == 0, f"an aggregator to take all from {queue}")
    for part in aggregators:
        part.ask_to_stop()
    codes |= {part.name: part.wait_for_exit() for part in aggregators}
    with federation.connect() as broker:
        history = list(all_versions(broker, federation.topology))
    folded = [one.id for version in history for one in version.folded]

    assert codes == dict.fromkeys(codes, 0)
    assert len(folded) == len(set(folded)) == history[-1].updates
    assert_every_confirmed_update_counts_once(federation, history[-1])
    return history[-1]


def _update_ids(bodies: list[bytes]) -> Iterator[UpdateId]:
    for body in bodies:
        message = decode_inbound(body)
        if isinstance(message, WeightUpdate):
            yield message.id
