"""The demo from start to end: a broker, one federation or two, and what is made of their results."""

import json
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fluffle import logs
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.safetensors_file import write_model
from fluffle.settings import SharedSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.federation_run import DemoFederation
from fluffle_cli.demo.private_broker import PrivateBroker
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.results import print_results
from fluffle_cli.demo.settings import BASELINE, DemoSettings
from fluffle_cli.node import BrokerNode
from fluffle_cli.report.command import FILE as REPORT
from fluffle_cli.report.run import About, Run, versions_in_use, write_summary
from fluffle_cli.watching.terminal import Screen

Metrics = Mapping[str, float]
EXIT_MISSED = 1
TICK_S = 0.1


def run(settings: DemoSettings) -> None:
    """Run the demo; a target that was not reached gives exit code 1.

    After Ctrl-C or SIGTERM everything is stopped, and KeyboardInterrupt raised.
    """
    settings.check()
    stop = stop_asked_by_signals()
    console = PlainConsole(highlight=False)
    folder = settings.make_folder()
    (folder / "logs").mkdir()
    with (folder / "logs" / "demo.log").open("w", encoding="utf-8") as log:
        # No line of this process may land in the middle of the view.
        logs.configure("json", verbose=settings.verbose, part="demo", console=PlainConsole(file=log))
        try:
            results = Demo(settings, folder, console, stop).play()
        except (KeyboardInterrupt, FluffleError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left that could be stopped
            _print(console, f"Stopped. What there is of the run lies in {folder}")
            raise
    if any(each.seconds_to(results.goal) is None for each in results.federations):
        sys.exit(EXIT_MISSED)


def stop_asked_by_signals() -> threading.Event:
    """Return an event that Ctrl-C, SIGTERM and a closed terminal set.

    However often it is asked, nothing is broken off in the middle: whatever waits looks at the event, and
    whatever ends processes ends them all.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    return stop


class Demo:
    """One run of `fluffle demo`."""

    def __init__(self, settings: DemoSettings, folder: Path, console: Console, stop: threading.Event) -> None:
        self._settings = settings
        self._folder = folder
        self._console = console
        self._stop = stop

    def play(self) -> Run:
        """Do everything in turn; whatever happens, no process stays but the broker that is to be kept."""
        _print(self._console, introduction(self._settings, self._folder))
        played = self._play_federations()
        for each in played:
            final = each.final_version
            about = {"federation": final.federation, "version": str(final.version), "term": str(final.term)}
            write_model(each.folder / "model.safetensors", final.weights, about, layout=final.layout)
        finals, central = self._look_afterwards(played)
        federations = [
            each.results(str(each.folder.relative_to(self._folder)), final)
            for each, final in zip(played, finals, strict=True)
        ]
        run = Run(
            folder=self._folder,
            about=About(
                task=self._settings.task,
                seed=self._settings.seed,
                target=str(self._settings.goal),
                delays_s=self._settings.delays_s,
                central=central,
                runs=[each.about for each in federations],
                settings=shown_settings(self._settings),
                versions=versions_in_use(played[0].server),
            ),
            federations=federations,
        )
        write_summary(run)
        self._work(parts.report(self._folder), "drawing the pictures and the report")
        print_results(self._console, run)
        _print(self._console, conclusion(self._settings, self._folder))
        return run

    def _play_federations(self) -> list[DemoFederation]:
        initial_model = self._folder / "logs" / "version-0.safetensors"
        private = PrivateBroker(
            self._folder / "broker", on_serving=lambda node: _print(self._console, announcement(node))
        )
        builder = Processes(self._folder / "logs")
        strategies: list[str] = [self._settings.strategy]
        if self._settings.compare:
            strategies.insert(0, BASELINE)
        try:
            builder.start([parts.initial_model(self._settings, initial_model)])
            return [
                self._play_federation(strategy, private, builder, initial_model) for strategy in strategies
            ]
        finally:
            builder.stop(patience_s=0.0)
            private.close(keep=self._settings.keep_broker, log=self._folder / "logs" / "rabbitmq.log")
            initial_model.unlink(missing_ok=True)
            if private.folder.exists():
                _print(self._console, f"RabbitMQ still runs. To stop it: {how_to_stop(private.folder)}")

    def _play_federation(
        self, strategy: str, private: PrivateBroker, builder: Processes, initial_model: Path
    ) -> DemoFederation:
        settings = self._settings
        with Screen.on(self._console, metric=settings.goal.metric) as screen:
            run = DemoFederation(
                settings,
                strategy,
                federation=f"{settings.task_name}-{strategy}" if settings.compare else settings.task_name,
                folder=self._folder / strategy if settings.compare else self._folder,
                screen=screen,
                stop=self._stop,
            )
            run.play(private, builder, initial_model)
        return run

    def _look_afterwards(self, runs: Sequence[DemoFederation]) -> tuple[Sequence[Metrics], Metrics]:
        """Return the metrics of the final models, and of one that is trained in one place.

        They are empty where that fails: it does not spoil the run.
        """
        out = self._folder / "logs" / "final_metrics.json"
        models = [each.folder / "model.safetensors" for each in runs]
        part = parts.afterwards(self._settings, models=models, out=out)
        self._work(part, "evaluating the final model, and training the same one in one place to compare")
        if not out.exists():
            return [{} for _ in runs], {}
        found = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        return found["finals"], found["central"]

    def _work(self, part: parts.Part, what: str) -> None:
        """Run one child process to its end; if it fails, say so and go on."""
        processes = Processes(self._folder / "logs")
        try:
            if not self._console.is_terminal:
                _print(self._console, what)
            with self._console.status(what):
                processes.start([part])
                while processes.alive:
                    if self._stop.wait(TICK_S):
                        raise KeyboardInterrupt
            for child in processes.newly_dead():
                _print(self._console, child.cause_of_death(), "yellow")
        finally:
            processes.stop(patience_s=0.0)


def shown_settings(settings: DemoSettings) -> dict[str, str]:
    """Return the demo's own settings, as a person types them."""
    own = [name for name in DemoSettings.model_fields if name not in SharedSettings.model_fields]
    shown = {name.replace("_", "-"): getattr(settings, name) for name in own}
    return {name: str(value) for name, value in shown.items() if value is not None}


def introduction(settings: DemoSettings, folder: Path) -> str:
    """Say what the demo will show."""
    strategies = f"fedavg, then {settings.strategy}" if settings.compare else settings.strategy
    delays = ", ".join(f"{delay:g}" for delay in settings.delays_s)
    return (
        f"fluffle demo: {settings.task} with {strategies}, until {settings.goal} holds\n"
        f"{settings.workers} workers idle {delays} s in each round, to play devices of different speed\n"
        f"The run lies in {folder}; Ctrl-C stops everything."
    )


def announcement(node: BrokerNode) -> str:
    """Say where RabbitMQ's own pages are."""
    return f"RabbitMQ's UI: {node.management_url}  user {node.user}  password {node.password}"


def how_to_stop(folder: Path) -> str:
    """Return the command that stops a broker which was kept."""
    return f"fluffle broker down --folder {shlex.quote(str(folder))}"


def conclusion(settings: DemoSettings, folder: Path) -> str:
    """Say where the run lies and what to look at next."""
    each = "for each strategy, in its folder: " if settings.compare else ""
    said = [
        "",
        f"The run lies in {folder}",
        f"  {REPORT}        all of it on one page: open it in a browser",
        *(["  compare.png        both over the same seconds"] if settings.compare else []),
        f"  {each}accuracy.png, staleness.png, contributions.png, timeline.png,",
        "  metrics.jsonl (a line per version), model.keras, model.safetensors, tensorboard/ and logs/",
        "Next: fluffle demo --compare (why not to wait for the slowest), --strategy fedasync, --workers 8,",
        "  --split iid; or the same parts by hand: fluffle broker up, fluffle aggregator, fluffle worker",
    ]
    return "\n".join(said)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
