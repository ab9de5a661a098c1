"""A real federation for tests and benchmarks: processes as a user starts them, their logs, its updates."""

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

from fluffle import guard
from fluffle.broker import Delivery
from fluffle.model_stream import newest_version
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import Topology, topology_of
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import decode_inbound

DEADLINE_S = 300.0
ROOT = Path(__file__).parent.parent
HEARTBEAT_S = 5


def wait_until(
    condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S, every_s: float = 0.05
) -> None:
    """Look again and again until a condition holds; fail with `what` was waited for."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {deadline_s:.0f} s in vain for {what}")
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
            ended = self.process.poll() is not None
            found = len(self.events(event)) >= count
            if ended and not found:
                raise AssertionError(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
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
            guard.release(part.process.pid)

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
        return self.start("evaluator", "fluffle_cli", "evaluator", "--name", "evaluator", *flags)

    def connect(self) -> RabbitBroker:
        """Return a connection of this process."""
        return RabbitBroker(self.broker_url, name=f"{self.name}/test", heartbeat_s=HEARTBEAT_S)

    def newest(self) -> ModelVersion:
        """Return the newest version."""
        with self.connect() as broker:
            version = newest_version(broker, self.topology, stop=threading.Event())
        if version is None:
            raise AssertionError(f"the federation {self.name} has no version yet")
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
            # A moment after a consumer has gone, RabbitMQ returns what it had not acknowledged.
            wait_until(
                lambda: broker.state(queue).consumers == 0, f"the consumers of {queue} to go", deadline_s=30
            )
            messages = broker.state(queue).messages
            broker.consume(queue, prefetch=messages + 1)
            while len(deliveries) < messages:
                delivery = broker.next_delivery(DEADLINE_S)
                if delivery is None:
                    raise AssertionError(f"{queue} holds {messages} messages, but gives {len(deliveries)}")
                deliveries.append(delivery)
        return deliveries

    def fluffle(self, *arguments: str, broker_url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of `fluffle` to its end, as somebody types it; nobody is at its terminal."""
        return subprocess.run(
            [sys.executable, "-m", "fluffle_cli", *arguments],
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
            "PYTHONPATH": os.pathsep.join([str(self.folder), *_own_import_paths()]),
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
                start_new_session=True,
            )
        # So that an interrupted run of the tests leaves nothing behind.
        guard.watch(process.pid)
        part = Part(name, process, log)
        self.parts.append(part)
        return part


def _own_import_paths() -> list[str]:
    """Return where this process finds modules of the checkout, such as the tasks of the tests."""
    return [each for each in sys.path if Path(each).is_relative_to(ROOT) and "site-packages" not in each]


def applied_ids(version: ModelVersion) -> set[UpdateId]:
    """Return the ids of all updates that a version contains, from the first version on."""
    return {
        UpdateId(worker, run, sequence)
        for (worker, run), log in version.applied.runs.items()
        for sequence in range(1, log.highest + 1)
        if sequence in log
    }


def _update_ids(bodies: list[bytes]) -> Iterator[UpdateId]:
    for body in bodies:
        message = decode_inbound(body)
        if isinstance(message, WeightUpdate):
            yield message.id
