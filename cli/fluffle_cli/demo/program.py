"""The demo from start to end: a broker, one federation or two, and what is made of their results."""

import json
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fluffle import logs
from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.safetensors_file import write_model
from fluffle.settings import SharedSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.federation_run import DemoFederation
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.settings import BASELINE, DemoSettings
from fluffle_cli.node import BrokerNode
from fluffle_cli.report.command import FILE as REPORT
from fluffle_cli.report.run import About, Run, versions_in_use, write_summary
from fluffle_cli.watching.terminal import Screen, plain_table, workers_table
from fluffle_cli.words import number

EXIT_MISSED = 1
TICK_S = 0.1


def run(settings: DemoSettings) -> None:
    """Run the demo; a target that was not reached gives exit code 1.

    After Ctrl-C or SIGTERM everything is stopped, and KeyboardInterrupt raised.
    """
    settings.check()
    # However often it is set: whatever waits looks at it, and whatever ends processes ends them all.
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: stop.set())
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
        finally:
            logs.configure("pretty", verbose=settings.verbose, part="demo")
    if any(each.seconds_to(results.goal) is None for each in results.federations):
        sys.exit(EXIT_MISSED)


class Demo:
    """One run of `fluffle demo`."""

    def __init__(self, settings: DemoSettings, folder: Path, console: Console, stop: threading.Event) -> None:
        self._settings = settings
        self._folder = folder
        self._console = console
        self._stop = stop

    def play(self) -> Run:
        """Do everything in turn; whatever happens, no process stays but the broker that is to be kept."""
        settings, folder = self._settings, self._folder
        _print(self._console, introduction(settings, folder))
        played = self._play_federations()
        central = self._look_afterwards(played)
        federations = [each.results(str(each.folder.relative_to(folder))) for each in played]
        about = About(
            task=settings.task,
            seed=settings.seed,
            target=str(settings.goal),
            delays_s=settings.delays_s,
            central=central,
            runs=[each.about for each in federations],
            settings=shown_settings(settings),
            versions=versions_in_use(played[0].server),
        )
        run = Run(folder=folder, about=about, federations=federations)
        write_summary(run)
        self._work(parts.report(folder), "writing the report")
        print_results(self._console, run)
        _print(self._console, conclusion(settings, folder))
        return run

    def _play_federations(self) -> list[DemoFederation]:
        logs_folder = self._folder / "logs"
        initial_model = logs_folder / "version-0.safetensors"
        node = BrokerNode.begin_start(self._folder / "broker")
        login = f"user {node.user}  password {node.password}"
        _print(self._console, f"RabbitMQ's UI: {node.management_url}  {login}")
        builder = Processes(logs_folder)
        strategies = [*([BASELINE] if self._settings.compare else []), self._settings.strategy]
        try:
            builder.start([parts.initial_model(self._settings, initial_model)])
            return [self._play_federation(each, node, builder, initial_model) for each in strategies]
        finally:
            builder.stop(patience_s=0.0)
            initial_model.unlink(missing_ok=True)
            if self._settings.keep_broker and node.is_running:
                node.outlive()
                stop = f"fluffle broker down --folder {shlex.quote(str(node.folder))}"
                _print(self._console, f"RabbitMQ still runs. To stop it: {stop}")
            else:
                node.kill()
                with suppress(FileNotFoundError):
                    (node.folder / "log" / "broker.log").replace(logs_folder / "rabbitmq.log")
                shutil.rmtree(node.folder, ignore_errors=True)

    def _play_federation(
        self, strategy: str, node: BrokerNode, builder: Processes, initial_model: Path
    ) -> DemoFederation:
        settings, compare = self._settings, self._settings.compare
        with Screen.on(self._console) as screen:
            run = DemoFederation(
                settings,
                strategy,
                federation=f"{settings.task_name}-{strategy}" if compare else settings.task_name,
                folder=self._folder / strategy if compare else self._folder,
                screen=screen,
                stop=self._stop,
            )
            final = run.play(node, builder, initial_model)
        about = {"federation": final.federation, "version": str(final.version), "term": str(final.term)}
        write_model(run.folder / "model.safetensors", final.weights_to_evaluate, about, layout=final.layout)
        return run

    def _look_afterwards(self, runs: Sequence[DemoFederation]) -> Mapping[str, float]:
        """Return the metrics of the same model trained in one place; none if that fails."""
        out = self._folder / "logs" / "central_metrics.json"
        models = [each.folder / "model.safetensors" for each in runs]
        part = parts.afterwards(self._settings, models=models, out=out)
        self._work(part, "saving the final model, and training the same one in one place to compare")
        if not out.exists():
            return {}
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        return found

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
    shown = settings.model_dump(exclude=set(SharedSettings.model_fields), exclude_none=True)
    return {name.replace("_", "-"): str(value) for name, value in shown.items()}


def introduction(settings: DemoSettings, folder: Path) -> str:
    """Say what the demo will show."""
    strategies = f"{BASELINE}, then {settings.strategy}" if settings.compare else settings.strategy
    delays = ", ".join(f"{delay:g}" for delay in settings.delays_s)
    return (
        f"fluffle demo: {settings.task} with {strategies}, until {settings.goal} holds\n"
        f"{settings.workers} workers idle {delays} s in each round, to play devices of different speed\n"
        f"The run lies in {folder}; Ctrl-C stops everything."
    )


def print_results(console: Console, run: Run) -> None:
    """Print the results, what each worker gave, and which federations missed their target."""
    metric, central = run.metric, run.about.central.get(run.metric)
    results = [each.results(metric, run.goal) for each in run.federations]
    heads = [run.about.task, *(each.strategy for each in run.federations), "trained in one place"]
    rows = [[what, *(each[what] for each in results), ""] for what in results[0]]
    rows[0][-1] = "unknown" if central is None else number(central)
    console.print()
    console.print(plain_table(heads, rows, right=heads[1:]))
    for each in run.federations:
        console.print()
        console.print(Text(each.strategy, "bold"))
        console.print(workers_table(each.view))
    if run.ratio is not None:
        console.print()
        _print(console, f"{run.verdict}.", "bold green")
    for each in run.federations:
        if each.seconds_to(run.goal) is None:
            said = f"{each.strategy} ended without reaching {run.about.target}: {each.last.finished}"
            _print(console, said, "yellow")


def conclusion(settings: DemoSettings, folder: Path) -> str:
    """Say where the run lies and what to look at next."""
    each = "for each strategy, in its folder: " if settings.compare else ""
    said = [
        "",
        f"The run lies in {folder}",
        f"  {REPORT}        all of it on one page: open it in a browser",
        f"  {each}metrics.jsonl (a line per version), model.keras,",
        "  model.safetensors, tensorboard/ and logs/",
        "Next: fluffle demo --compare (why not to wait for the slowest), --strategy fedasync, --workers 8,",
        "  --split iid; or the same parts by hand: fluffle broker up, fluffle aggregator, fluffle worker",
    ]
    return "\n".join(said)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)


command = settings_command(
    DemoSettings,
    run,
    about="Watch workers of very different speed train one model through a RabbitMQ of their own.\n\n"
    "Everything runs on this machine: a private broker, an aggregator and a standby, an evaluator, and the "
    "workers. At the end there are a report, the final model and all logs in one folder. The exit code is 1 "
    "if the target was not reached.",
    # The demo has a broker and federations of its own, and its logs are files.
    without=(
        *("federation", "broker_url", "broker_password_file", "heartbeat_s", "connect_timeout_s"),
        *("broker_ca_file", "broker_cert_file", "broker_key_file", "log_format"),
    ),
)
