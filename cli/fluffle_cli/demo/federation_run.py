"""One federation of the demo, from its first process to its last version."""

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from fluffle.broker import Broker, Listener, StreamReader
from fluffle.errors import FluffleError
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import topology_of
from fluffle.wire import decode_version
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.dashboard.program import a_page
from fluffle_cli.dashboard.settings import DashboardSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.private_broker import PrivateBroker
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.report.run import EVENTS, METRICS, AboutFederation, FederationRun, append_lines
from fluffle_cli.watching.state import DIED, FederationState, happenings_in
from fluffle_cli.watching.terminal import Screen
from fluffle_cli.watching.version import Version
from fluffle_cli.watching.view import FederationView, Happening
from fluffle_cli.watching.watcher import LOOK_EVERY_S, believable, queue_states

TICK_S: Final = 0.1
STARTING: Final = "starting"
START_TIMEOUT_S: Final = 300.0
# The aggregator ends the federation; if even that fails, the demo does.
GRACE_S: Final = 30.0
LEAVE_S: Final = 10.0
STOP_S: Final = 2.0
# While the processes import TensorFlow they would not listen.
STOP_AT_ONCE_S: Final = 0.5


def overdue(waited_s: float, max_seconds: float, *, is_training: bool) -> str:
    """Say what has not come in time; empty while there is time.

    As for the aggregator, `max_seconds` count from the first update on: Keras may compile a large model for
    minutes. `waited_s` are the seconds since the first version with updates, or since the start before it.
    """
    limit_s = max_seconds + GRACE_S
    if is_training:
        late = f"the federation has not finished {GRACE_S:.0f} s after --max-seconds {max_seconds:g}"
        return late if waited_s > limit_s else ""
    limit_s = max(limit_s, START_TIMEOUT_S)
    return f"no update has come for {limit_s:.0f} s" if waited_s > limit_s else ""


class DemoFederation:
    """One federation: its strategy, its folder, its processes, and the versions that were seen."""

    def __init__(
        self,
        settings: DemoSettings,
        strategy: str,
        *,
        federation: str,
        folder: Path,
        screen: Screen,
        stop: threading.Event,
    ) -> None:
        self.federation, self.folder = federation, folder
        # Which broker it was.
        self.server = ""
        self._settings, self._strategy = settings, strategy
        self._screen, self._stop = screen, stop
        self._topology = topology_of(federation)
        self._processes = Processes(folder / "logs")
        self._state = FederationState(federation, time.time())
        self._versions: list[Version] = []
        self._newest: ModelVersion | None = None
        self._looked_at = 0.0

    @property
    def final_version(self) -> ModelVersion:
        """The newest version, after the end the last one."""
        if self._newest is None:
            raise FluffleError(f"the federation {self.federation!r} has no version yet")
        return self._newest

    def results(self, folder: str, final: Mapping[str, float]) -> FederationRun:
        """Return what came out of it, with its folder in the run's and its last model's metrics."""
        about = AboutFederation(strategy=self._strategy, folder=folder, final=final)
        return FederationRun(about=about, folder=self.folder, versions=self._versions)

    def play(self, private: PrivateBroker, builder: Processes, initial_model: Path) -> None:
        """Start everything, follow the versions to the last, and stop everything, whatever happens.

        `builder` is the process that makes `initial_model`. Raises FluffleError when the federation cannot
        reach its end, and KeyboardInterrupt soon after `stop` is set.
        """
        try:
            url, management_url = self._start_workers(private)
            with self._page(url, management_url), self._connect(private, url) as broker:
                self.server = broker.server
                broker.declare(self._topology)
                with (
                    broker.read_stream(self._topology.models.name, offset="first") as reader,
                    broker.listen(self._topology.events.name, name="demo") as listener,
                ):
                    self._state.listen_from(time.time())
                    self._await_everyone(builder, initial_model, listener)
                    self._start_aggregators(url, management_url, initial_model)
                    self._follow(broker, reader, listener)
                    self._let_leave(broker, listener)
        finally:
            self._processes.stop(patience_s=STOP_AT_ONCE_S if self._stop.is_set() else STOP_S)

    def _page(self, url: str, management_url: str | None) -> AbstractContextManager[object]:
        """Serve the live page while the federation runs, if it is wanted."""
        if not self._settings.dashboard:
            return nullcontext()
        settings = DashboardSettings(
            federation=self.federation, broker_url=url, management_url=management_url
        )
        return a_page(settings, lambda address: self._screen.say(f"The live page: {address}"))

    def _start_workers(self, private: PrivateBroker) -> tuple[str, str | None]:
        """Start the workers and the evaluator; return where the broker is, and where its management is."""
        while (node := private.known()) is None:
            self._tick("starting RabbitMQ")
        where = {"federation": self.federation, "broker_url": node.amqp_url}
        spool, curves = self.folder / "spool", self.folder / "tensorboard"
        self._processes.start(parts.workers(self._settings, **where, spool=spool))
        self._processes.start([parts.evaluator(self._settings, **where, curves=curves)])
        return node.amqp_url, node.management_url

    def _connect(self, private: PrivateBroker, url: str) -> RabbitBroker:
        while private.serving() is None:
            self._tick("starting RabbitMQ, the workers and the evaluator")
        return RabbitBroker(url, name=f"{self.federation}/demo", heartbeat_s=self._settings.heartbeat_s)

    def _await_everyone(self, builder: Processes, initial_model: Path, listener: Listener) -> None:
        """Wait until version 0 is built and everybody is connected to take it: a fair start for each."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (initial_model.exists() and self._has_heard_from_all()):
            self._tick("the workers and the evaluator load TensorFlow and their data")
            self._listen(listener)
            if dead := [*builder.newly_dead(), *self._processes.newly_dead()]:
                raise FluffleError(dead[0].cause_of_death())
            if time.monotonic() > deadline:
                raise FluffleError(
                    f"after {START_TIMEOUT_S:.0f} s the workers are still not ready: see "
                    f"{self._processes.logs}"
                )

    def _has_heard_from_all(self) -> bool:
        """Tell whether each process has said something: the first thing is that it is connected."""
        view = self._state.view(time.time())
        states = dict(view.parts) | {name: each.state for name, each in view.workers.items()}
        return all(states.get(name, STARTING) != STARTING for name in self._processes.children)

    def _start_aggregators(self, url: str, management_url: str | None, initial_model: Path) -> None:
        both = parts.aggregators(
            self._settings,
            self._strategy,
            federation=self.federation,
            broker_url=url,
            management_url=management_url,
            initial_model=initial_model,
        )
        self._processes.start(both)

    def _follow(self, broker: Broker, reader: StreamReader, listener: Listener) -> None:
        began, is_training = time.monotonic(), False
        while True:
            # Looked at before the stream: an aggregator that ended as it should has published the end before.
            hopeless = self._hopeless()
            self._read_versions(reader)
            self._listen(listener)
            self._show(broker)
            if self._newest and self._newest.finished:
                return
            if hopeless:
                raise FluffleError(f"the demo cannot go on: {hopeless}")
            if not is_training and self._newest and self._newest.version > 0:
                is_training, began = True, time.monotonic()
            max_seconds = self._settings.max_seconds
            if late := overdue(time.monotonic() - began, max_seconds, is_training=is_training):
                raise FluffleError(f"{late}: see {self._processes.logs}")

    def _read_versions(self, reader: StreamReader) -> None:
        """Take in the versions that are there, and wait for one for a moment."""
        self._check_stop()
        body = reader.next_body(TICK_S)
        while body is not None:
            version = decode_version(body)
            # A lower rank comes from an aggregator that has lost the lead.
            if self._newest is None or version.rank > self._newest.rank:
                self._newest = version
                self._versions.append(Version.of(version))
                self._state.read(self._versions[-1])
                append_lines(self.folder / METRICS, self._versions[-1:])
            body = reader.next_body(0.0)

    def _listen(self, listener: Listener) -> None:
        """Take in and write down what is said, and who has died, which nobody says."""
        happened: list[Happening] = []
        while delivery := listener.next_delivery(0.0):
            if report := believable(delivery, self._topology):
                self._state.hear(report, time.time())
                happened += happenings_in(report)
        for child in self._processes.newly_dead():
            cause = child.cause_of_death()
            self._screen.say(cause, "yellow")
            happened.append(Happening(at=time.time(), name=child.name, what=DIED, detail=cause))
        append_lines(self.folder / EVENTS, happened)

    def _let_leave(self, broker: Broker, listener: Listener) -> None:
        """Give everyone the time to see the end and leave."""
        deadline = time.monotonic() + LEAVE_S
        while self._processes.alive and time.monotonic() < deadline:
            self._check_stop()
            self._listen(listener)
            if self._screen.console.is_terminal:
                self._show(broker)
            self._stop.wait(TICK_S)
        self._listen(listener)
        self._screen.show_now(self._view())

    def _show(self, broker: Broker) -> None:
        if time.monotonic() >= self._looked_at + LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            self._state.look(queue_states(broker, self._topology), time.time())
        if self._newest is None:
            self._screen.show_phase("an aggregator takes the lead", self._view())
        else:
            self._screen.show(self._view())

    def _tick(self, phase: str) -> None:
        """Wait for a moment while there is no version yet."""
        self._check_stop()
        self._screen.show_phase(phase, self._view())
        self._stop.wait(TICK_S)

    def _view(self) -> FederationView:
        """Return what is known now, also of processes that say nothing: those that start, and the dead."""
        view = self._state.view(time.time())
        heard = view.workers.keys() | view.parts.keys()
        for name, child in self._processes.children.items():
            if child.part.role and (child.has_died or name not in heard):
                self._state.note_process(child.part.role, name, DIED if child.has_died else STARTING)
        return self._state.view(time.time())

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt

    def _hopeless(self) -> str:
        """Say why the federation can never finish any more; empty while it can."""
        children = self._processes.children
        workers = [children[name] for name in self._settings.worker_names]
        dead_workers = [child for child in workers if child.has_died]
        if children[parts.EVALUATOR].has_died:
            return children[parts.EVALUATOR].cause_of_death()
        if all(children[name].exit_code is not None for name in parts.AGGREGATORS):
            return children[parts.AGGREGATORS[0]].cause_of_death()
        if len(dead_workers) == len(workers) or (STRATEGIES[self._strategy].is_synchronous and dead_workers):
            return dead_workers[0].cause_of_death()
        return ""
