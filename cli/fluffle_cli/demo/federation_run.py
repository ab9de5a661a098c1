"""One federation of the demo, from its first process to its last version."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fluffle.broker import Broker, Listener, StreamReader
from fluffle.errors import FluffleError
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import Topology, topology_of
from fluffle.wire import decode_version
from fluffle_cli.dashboard.program import a_page
from fluffle_cli.dashboard.settings import DashboardSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.log_tail import AGGREGATOR_STATES, EVALUATOR_STATES, WORKER_STATES
from fluffle_cli.demo.private_broker import PrivateBroker
from fluffle_cli.demo.processes import Crew
from fluffle_cli.demo.settings import DemoSettings, Strategy
from fluffle_cli.report import happenings
from fluffle_cli.report.happenings import DIED, Happening, append, happenings_in
from fluffle_cli.report.metrics import VersionRow, append_row, row_of
from fluffle_cli.screen import Screen
from fluffle_cli.snapshot import Snapshot, SnapshotReader
from fluffle_cli.view import Inside

TICK_S = 0.1
START_TIMEOUT_S = 300.0
# The aggregator ends the federation; if even that fails, the demo does.
GRACE_S = 30.0
LEAVE_S = 10.0
STOP_S = 2.0
# While they import TensorFlow they would not listen.
STOP_AT_ONCE_S = 0.5


def overdue(waited_s: float, max_seconds: float, *, is_training: bool) -> str:
    """Say what has not come in time, nothing while there is time.

    As for the aggregator, `max_seconds` count from the first update on: Keras may compile a large model for
    minutes. `waited_s` are the seconds since the first version with updates, or since the start before it.
    """
    limit_s = max_seconds + GRACE_S
    if is_training:
        late = f"the federation has not finished {GRACE_S:.0f} s after --max-seconds {max_seconds:g}"
        return late if waited_s > limit_s else ""
    limit_s = max(limit_s, START_TIMEOUT_S)
    return f"no update has come for {limit_s:.0f} s" if waited_s > limit_s else ""


@dataclass(slots=True, kw_only=True, eq=False)
class FederationRun:
    """One federation: its strategy, its folder, its processes, and the versions that were seen.

    `began_at` is when version 0 was committed and the first round began, in Unix time; `server` says which
    broker it was.
    """

    settings: DemoSettings
    strategy: Strategy
    federation: str
    folder: Path
    screen: Screen
    stop: threading.Event
    rows: list[VersionRow] = field(default_factory=list)
    final: ModelVersion | None = None
    _crew: Crew = field(init=False)
    _lookout: SnapshotReader = field(init=False)
    began_at: float = 0.0
    server: str = ""

    def __post_init__(self) -> None:
        self._crew = Crew(self.folder / "logs")
        self._lookout = SnapshotReader(self.topology)

    @property
    def final_version(self) -> ModelVersion:
        """The newest version, after the end the last one."""
        if self.final is None:
            raise FluffleError(f"the federation {self.federation!r} has no version yet")
        return self.final

    @property
    def topology(self) -> Topology:
        """The federation's queues."""
        return topology_of(self.federation)

    def play(self, private: PrivateBroker, builder: Crew, initial_model: Path) -> None:
        """Start everything, follow the versions to the last, and stop everything, whatever happens.

        `builder` is the process that makes `initial_model`. Raises FluffleError when the federation cannot
        reach its end, and KeyboardInterrupt soon after `stop` is set.
        """
        try:
            url, management_url = self._start_workers(private)
            with self._page(url, management_url), self._connect(private, url) as broker:
                broker.declare(self.topology)
                self.server = broker.server
                with (
                    broker.read_stream(self.topology.models.name, offset="first") as reader,
                    broker.listen(self.topology.events.name, name="demo") as listener,
                ):
                    self._await_everyone(builder, initial_model)
                    self._start_aggregators(url, management_url, initial_model)
                    self._follow(broker, reader, listener)
                    self._let_leave(broker, listener)
        finally:
            self._crew.stop(patience_s=STOP_AT_ONCE_S if self.stop.is_set() else STOP_S)

    def _page(self, url: str, management_url: str | None) -> AbstractContextManager[object]:
        """Serve the live page while the federation runs, if it is wanted."""
        if not self.settings.dashboard:
            return nullcontext()
        settings = DashboardSettings(
            federation=self.federation, broker_url=url, management_url=management_url
        )
        return a_page(settings, lambda address: self.screen.say(f"The live page: {address}"))

    def _start_workers(self, private: PrivateBroker) -> tuple[str, str | None]:
        """Start the workers and the evaluator; return where the broker is, and where its management is."""
        while (node := private.known()) is None:
            self._tick("starting RabbitMQ")
        where = {"federation": self.federation, "broker_url": node.amqp_url}
        self._crew.start(parts.workers(self.settings, **where, spool=self.folder / "spool"), WORKER_STATES)
        curves = self.folder / "tensorboard"
        self._crew.start([parts.evaluator(self.settings, **where, curves=curves)], EVALUATOR_STATES)
        return node.amqp_url, node.management_url

    def _connect(self, private: PrivateBroker, url: str) -> RabbitBroker:
        while private.serving() is None:
            self._tick("starting RabbitMQ, the workers and the evaluator")
        return RabbitBroker(url, name=f"{self.federation}/demo", heartbeat_s=self.settings.heartbeat_s)

    def _await_everyone(self, builder: Crew, initial_model: Path) -> None:
        """Wait until version 0 is built and all workers are there to take it: a fair start for each."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not initial_model.exists() or not all(
            child.tail.is_ready for child in self._crew.children.values()
        ):
            self._tick("the workers and the evaluator load TensorFlow and their data")
            builder.read_logs()
            dead = [*builder.newly_dead(), *self._crew.newly_dead()]
            if dead:
                raise FluffleError(dead[0].obituary())
            if time.monotonic() > deadline:
                raise FluffleError(
                    f"after {START_TIMEOUT_S:.0f} s the workers are still not ready: see {self._crew.logs}"
                )

    def _start_aggregators(self, url: str, management_url: str | None, initial_model: Path) -> None:
        both = parts.aggregators(
            self.settings,
            self.strategy,
            federation=self.federation,
            broker_url=url,
            management_url=management_url,
            initial_model=initial_model,
        )
        self._crew.start(both, AGGREGATOR_STATES)

    def _follow(self, broker: Broker, reader: StreamReader, listener: Listener) -> None:
        began, is_training = time.monotonic(), False
        while self.final is None or not self.final.finished:
            # Looked at before the stream: whoever ended in good order has published the end before.
            hopeless = self._hopeless()
            self._read_versions(reader)
            self._note_what_happened(listener)
            self._show(broker)
            if self.final is not None and self.final.finished:
                break
            if hopeless:
                raise FluffleError(f"the demo cannot go on: {hopeless}")
            if not is_training and self.final is not None and self.final.version > 0:
                is_training, began = True, time.monotonic()
            if late := overdue(time.monotonic() - began, self.settings.max_seconds, is_training=is_training):
                raise FluffleError(f"{late}: see {self._crew.logs}")

    def _read_versions(self, reader: StreamReader) -> None:
        """Take in the versions that are there, and wait for one for a moment."""
        body = reader.next_body(TICK_S)
        while body is not None:
            version = decode_version(body)
            # A lower rank comes from an aggregator that has lost the lead.
            if self.final is None or version.rank > self.final.rank:
                self._note(version)
            body = reader.next_body(0.0)
        self._check_stop()

    def _note(self, version: ModelVersion) -> None:
        if self.final is None:
            self.began_at = version.committed_at
        self.final = version
        self._lookout.history.read(version)
        self.rows.append(row_of(version, started_at=self.began_at))
        append_row(self.folder / "metrics.jsonl", self.rows[-1])

    def _note_what_happened(self, listener: Listener) -> None:
        """Write down what is told, and who has died, of whom nobody tells."""
        happened: list[Happening] = []
        while delivery := listener.next_delivery(0.0):
            happened += happenings_in(delivery)
        for child in self._crew.newly_dead():
            self.screen.say(child.obituary(), "yellow")
            happened.append(Happening(at=time.time(), name=child.name, what=DIED, detail=child.obituary()))
        append(self.folder / happenings.FILE, happened)

    def _let_leave(self, broker: Broker, listener: Listener) -> None:
        """Give everyone the time to see the end and leave."""
        deadline = time.monotonic() + LEAVE_S
        while self._crew.alive and time.monotonic() < deadline:
            if self.screen.console.is_terminal:
                self._show(broker)
            self._check_stop()
            self.stop.wait(TICK_S)
        self._note_what_happened(listener)
        self.screen.show_now(self._look(broker), self._inside())

    def _show(self, broker: Broker) -> None:
        snapshot = self._look(broker)
        if self.final is None:
            self.screen.show_phase("an aggregator takes the lead", snapshot, self._inside())
        else:
            self.screen.show(snapshot, self._inside())

    def _look(self, broker: Broker) -> Snapshot:
        """Take in logs and queues, and return what is known now."""
        self._crew.read_logs()
        return self._lookout.look(broker, self.final)

    def _tick(self, phase: str) -> None:
        """Wait for a moment while there is no version yet."""
        self._check_stop()
        self._crew.read_logs()
        self.screen.show_phase(phase, self._lookout.nothing_yet(), self._inside())
        self.stop.wait(TICK_S)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _hopeless(self) -> str:
        """Say why the federation can never finish any more; empty while it can."""
        children = self._crew.children
        workers = [children[name] for name in self.settings.worker_names]
        dead_workers = [child for child in workers if child.has_died]
        if children[parts.EVALUATOR].has_died:
            return children[parts.EVALUATOR].obituary()
        if all(children[name].exit_code is not None for name in parts.AGGREGATORS):
            return children[parts.AGGREGATORS[0]].obituary()
        if len(dead_workers) == len(workers) or (self.strategy == "fedavg" and dead_workers):
            return dead_workers[0].obituary()
        return ""

    def _inside(self) -> Inside:
        states = {name: child.state for name, child in self._crew.children.items()}
        for name in self.settings.worker_names:
            # Nobody trains before version 0, whatever a worker is ready for.
            if self.final is None and states.get(name) == "fetching":
                states[name] = "waiting"
        names = self.settings.worker_names
        return Inside(
            workers={name: states.get(name, "starting") for name in names},
            parts={name: states[name] for name in (*parts.AGGREGATORS, parts.EVALUATOR) if name in states},
        )
