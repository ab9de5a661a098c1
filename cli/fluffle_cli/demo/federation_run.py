"""One federation of the demo, from its first process to its last version."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Final

from fluffle.broker import Broker
from fluffle.errors import FluffleError
from fluffle.events import Report
from fluffle.model_stream import version_at_hand
from fluffle.rabbit import RabbitBroker
from fluffle.record import ModelVersion
from fluffle.topology import topology_of
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.dashboard.program import DashboardSettings, a_page
from fluffle_cli.demo import parts
from fluffle_cli.demo.keys import Keys, make_noise_secret
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.sealed import DemoKey
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.demo.setups import Setup
from fluffle_cli.held import HOLD_S
from fluffle_cli.node import BrokerNode
from fluffle_cli.report.run import EVENTS, METRICS, AboutFederation, FederationRun, append_lines
from fluffle_cli.watching.state import DIED, happenings_in
from fluffle_cli.watching.terminal import Screen
from fluffle_cli.watching.view import FederationView, Happening, Version
from fluffle_cli.watching.watcher import Watcher, all_versions

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
    """One federation: its setup, its folder, its processes, and what a watcher sees of it."""

    def __init__(
        self,
        settings: DemoSettings,
        setup: Setup,
        *,
        federation: str,
        folder: Path,
        screen: Screen,
        stop: threading.Event,
        table: Path | None = None,
    ) -> None:
        """Prepare a federation whose files lie in `folder`; `table` is the file with [data] of all sites."""
        self.federation, self.folder = federation, folder
        # Which broker it was.
        self.server = ""
        self._settings, self._setup, self._table = settings, setup, table
        self._keys = Keys(folder / "keys") if settings.secure_aggregation else None
        self._secret = folder / "noise.secret"
        self._sealed = DemoKey(folder / "sealed") if settings.sealed else None
        self._screen, self._stop = screen, stop
        self._topology = topology_of(federation)
        self._processes = Processes(folder / "logs")
        self._watcher = Watcher(self._topology, name="demo", past_mib=0, on_report=self._note_happenings)
        self._versions: list[Version] = []
        self._happened: list[Happening] = []

    def results(self, folder: str) -> FederationRun:
        """Return what came out of it; `folder` is its own in that of the run."""
        about = AboutFederation(
            strategy=self._setup.strategy,
            folder=folder,
            seed=self._settings.seed,
            held_seconds=HOLD_S,
            name=self._setup.name,
        )
        return FederationRun(about=about, versions=self._versions)

    def play(self, node: BrokerNode, builder: Processes, initial_model: Path) -> ModelVersion:
        """Start everything, follow the federation to its end, and stop everything, whatever happens.

        Returns the last version. `builder` is the process that makes `initial_model`. Raises FluffleError
        when the federation cannot reach its end, and KeyboardInterrupt soon after `stop` is set.
        """
        try:
            where: dict[str, str | None] = {"federation": self.federation, "broker_url": node.amqp_url}
            self._write_tables()
            if self._keys:
                self._keys.make(self.federation, [each.name for each in self._setup.sites])
                self._start(parts.helpers(self._keys, **where))
            if self._settings.dp_epsilon is not None:
                make_noise_secret(self._secret)
            if self._sealed:
                self._sealed.make()
            self._start_sites(where)
            while not node.serves():
                self._wait("starting RabbitMQ, the workers and the evaluator")
            where["management_url"] = node.management_url
            name, heartbeat_s = f"{self.federation}/demo", self._settings.heartbeat_s
            with RabbitBroker(node.amqp_url, name=name, heartbeat_s=heartbeat_s) as broker, self._page(where):
                self.server = broker.server
                return self._train(broker, where, builder, initial_model)
        finally:
            self._processes.stop(patience_s=STOP_AT_ONCE_S if self._stop.is_set() else STOP_S)
            for each in (self._keys, self._sealed):
                if each:
                    each.delete()
            # With it the noise could be taken off the models of this demo.
            self._secret.unlink(missing_ok=True)

    def _start_sites(self, where: Mapping[str, str | None]) -> None:
        """Start the workers and the evaluator."""
        settings, setup, table, sealed = self._settings, self._setup, self._table, self._sealed
        self._start(
            parts.workers(
                settings,
                setup,
                **where,
                folder=self.folder,
                table=table,
                keys=self._keys,
                sealed=sealed,
            )
        )
        curves = self.folder / "tensorboard"
        self._start([parts.evaluator(settings, **where, curves=curves, table=table, sealed=sealed)])

    def _train(
        self, broker: Broker, where: Mapping[str, str | None], builder: Processes, initial_model: Path
    ) -> ModelVersion:
        broker.declare(self._topology)
        try:
            with closing(self._watcher.follow(broker, self._stop, every_s=TICK_S)) as looks:
                self._await_everyone(looks, builder, initial_model)
                settings, setup = self._settings, self._setup
                aggregators = parts.aggregators(
                    settings,
                    setup,
                    **where,
                    initial_model=initial_model,
                    keys=self._keys,
                    secret=self._secret,
                    sealed=self._sealed,
                )
                self._start(aggregators)
                self._follow(looks, broker)
                self._let_leave(looks)
        finally:
            if parts.AGGREGATORS[0] in self._processes.children:
                self._versions = list(all_versions(broker, self._topology))
                append_lines(self.folder / METRICS, self._versions)
        if final := version_at_hand(broker, self._topology):
            return self._sealed.opened(final) if self._sealed else final
        raise FluffleError(f"the federation {self.federation!r} has no version yet")

    def _page(self, where: Mapping[str, str | None]) -> AbstractContextManager[object]:
        """Serve the live page while the federation runs, if it is wanted."""
        if not self._settings.dashboard:
            return nullcontext()
        settings = DashboardSettings.model_validate(where)
        return a_page(settings, lambda address: self._screen.say(f"The live page: {address}"))

    def _write_tables(self) -> None:
        """Write the TOML files of the sites that have a table [data]."""
        for site in self._setup.sites:
            if site.data:
                path = parts.table_of(site, self.folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(parts.text_of(site.data), encoding="utf-8")

    def _start(self, processes: Iterable[parts.Part]) -> None:
        for part in processes:
            self._processes.start([part])
            if part.role:
                self._watcher.note_process(part.role, part.name, STARTING)

    def _wait(self, phase: str) -> None:
        """Wait for a moment while nobody is connected."""
        self._screen.show(self._watcher.view(), phase)
        if self._stop.wait(TICK_S):
            raise KeyboardInterrupt

    def _await_everyone(self, looks: Iterator[None], builder: Processes, initial_model: Path) -> None:
        """Wait until version 0 is built and everybody is connected to take it: a fair start for each."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            view = self._look(looks, "the workers and the evaluator load their libraries and data")
            # The first thing that a process says is that it is connected.
            states = [*view.parts.values(), *(each.state for each in view.workers.values())]
            if initial_model.exists() and STARTING not in states:
                return
            for child in (*builder.children.values(), *self._processes.children.values()):
                if child.has_died:
                    raise FluffleError(child.cause_of_death())
            if time.monotonic() > deadline:
                raise FluffleError(
                    f"after {START_TIMEOUT_S:.0f} s the workers are still not ready: see "
                    f"{self._processes.logs}"
                )

    def _follow(self, looks: Iterator[None], broker: Broker) -> None:
        began, is_training = time.monotonic(), False
        while True:
            cause = self._cause_of_failure()
            view = self._look(looks, "an aggregator takes the lead")
            if cause:
                # An aggregator that ended as it should has published the end before.
                view = self._watcher.look_once(broker)
            if view.finished:
                return
            if cause:
                raise FluffleError(f"the demo cannot go on: {cause}")
            if not is_training and view.newest and view.newest.version > 0:
                is_training, began = True, time.monotonic()
            max_seconds = self._settings.max_seconds
            if late := overdue(time.monotonic() - began, max_seconds, is_training=is_training):
                raise FluffleError(f"{late}: see {self._processes.logs}")

    def _let_leave(self, looks: Iterator[None]) -> None:
        """Give everyone the time to see the end and leave."""
        deadline = time.monotonic() + LEAVE_S
        while self._processes.alive and time.monotonic() < deadline:
            self._look(looks)
        self._screen.show_now(self._look(looks))

    def _look(self, looks: Iterator[None], phase: str = "") -> FederationView:
        """Look once more, write down what has happened, show what is known, and return it."""
        next(looks, None)
        if self._stop.is_set():
            raise KeyboardInterrupt
        for child in self._processes.newly_dead():
            cause = child.cause_of_death()
            self._screen.say(cause, "yellow")
            self._happened.append(Happening(at=time.time(), name=child.part.name, what=DIED, detail=cause))
        append_lines(self.folder / EVENTS, self._happened)
        self._happened.clear()
        for child in self._processes.children.values():
            # Again each time: a leader's successor makes the watcher forget it.
            if child.part.role and child.has_died:
                self._watcher.note_process(child.part.role, child.part.name, DIED)
        view = self._watcher.view()
        self._screen.show(view, phase)
        return view

    def _note_happenings(self, report: Report) -> None:
        self._happened += happenings_in(report)

    def _cause_of_failure(self) -> str:
        """Say why the federation can never finish any more; empty while it can."""
        children = self._processes.children
        workers = [children[each.name] for each in self._setup.sites]
        dead_workers = [child for child in workers if child.has_died]
        if children[parts.EVALUATOR].has_died:
            return children[parts.EVALUATOR].cause_of_death()
        if all(children[name].exit_code is not None for name in parts.AGGREGATORS):
            return children[parts.AGGREGATORS[0]].cause_of_death()
        if len(dead_workers) == len(workers) or (
            STRATEGIES[self._setup.strategy].is_synchronous and dead_workers
        ):
            return dead_workers[0].cause_of_death()
        return ""
