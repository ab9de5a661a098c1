"""The demo from start to end: a broker, one federation or more, and what is made of their results."""

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
from rich.table import Table
from rich.text import Text

from fluffle import logs
from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.safetensors_file import write_model
from fluffle.settings import SharedSettings
from fluffle_cli.demo import parts
from fluffle_cli.demo.federation_run import DemoFederation
from fluffle_cli.demo.privacy import has_spent_all
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.demo.setups import Setup
from fluffle_cli.held import HOLD_S
from fluffle_cli.node import BrokerNode
from fluffle_cli.report.command import FILE as REPORT
from fluffle_cli.report.comparison import central, missed, name_of, results, seeds_table, verdict
from fluffle_cli.report.run import About, FederationRun, Run, versions_in_use, write_summary
from fluffle_cli.watching.privacy import spent_privacy
from fluffle_cli.watching.terminal import Screen, plain_table, workers_table
from fluffle_cli.words import count, duration

EXIT_MISSED = 1
TICK_S = 0.1
# What it takes until everybody has loaded TensorFlow, on two cores.
START_S = 20.0
KEEPS = " and keeps the seeds that are done"


def run(settings: DemoSettings) -> None:
    """Run the demo; a target that was not reached gives exit code 1.

    Of federations that are compared, the last one with each seed counts: it has the chosen strategy, or the
    remedies.

    After Ctrl-C or SIGTERM everything is stopped, and KeyboardInterrupt raised.
    """
    settings = settings.checked()
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
    last = results.federations[-1].name
    if any(each.name == last and is_failure(each, settings) for each in missed(results)):
        sys.exit(EXIT_MISSED)


def is_failure(one: FederationRun, settings: DemoSettings) -> bool:
    """Tell whether a federation failed that missed its target.

    With differential privacy it did not when it ended since the privacy was spent, unless the person who runs
    the demo has set the target.
    """
    return "target" in settings.model_fields_set or not has_spent_all(one.last)


class Demo:
    """One run of `fluffle demo`."""

    def __init__(self, settings: DemoSettings, folder: Path, console: Console, stop: threading.Event) -> None:
        self._settings = settings
        self._folder = folder
        self._console = console
        self._stop = stop
        # The federations that have come to their end, by their seed.
        self._played: dict[int, list[DemoFederation]] = {}
        self._table: Path | None = None

    def play(self) -> Run:
        """Do everything in turn; whatever happens, no process stays but the broker that is to be kept.

        Of several seeds, those that are done are kept when it is stopped, or fails.
        """
        _print(self._console, introduction(self._settings, self._folder))
        if table := self._settings.data_table:
            self._table = self._folder / "data.toml"
            self._table.write_text(parts.text_of(table), encoding="utf-8")
        try:
            self._play_federations()
            run = self._write_run(self._played, self._look_afterwards())
        except (KeyboardInterrupt, FluffleError):
            if len(self._settings.each_seed) > 1:
                self._keep_what_is_done()
            raise
        print_results(self._console, run)
        _print(self._console, conclusion(self._settings, self._folder))
        return run

    def _keep_what_is_done(self) -> None:
        setups, seeds = self._settings.setups, self._settings.each_seed
        # A seed with one federation only would make the comparison unfair.
        done = {seed: runs for seed, runs in self._played.items() if len(runs) == len(setups)}
        is_or_are = "is" if len(done) == 1 else "are"
        _print(self._console, f"{len(done)} of {count(len(seeds), 'seed')} {is_or_are} done")
        if done:
            # It takes a second, and is not stopped again.
            self._stop = threading.Event()
            print_results(self._console, self._write_run(done, {}))

    def _write_run(self, played: Mapping[int, Sequence[DemoFederation]], central: Mapping[str, float]) -> Run:
        settings, folder = self._settings, self._folder
        runs = [each for of_seed in played.values() for each in of_seed]
        federations = [each.results(str(each.folder.relative_to(folder))) for each in runs]
        about = About(
            task=settings.task,
            seed=settings.seed,
            target=str(settings.goal),
            delays_s=[each.delay_s for each in settings.setups[-1].sites],
            central=central,
            runs=[each.about for each in federations],
            settings=shown_settings(settings),
            versions=versions_in_use(runs[0].server),
        )
        run = Run(folder=folder, about=about, federations=federations)
        write_summary(run)
        self._work(parts.report(folder), "writing the report")
        return run

    def _play_federations(self) -> None:
        logs_folder = self._folder / "logs"
        node = BrokerNode.begin_start(self._folder / "broker")
        login = f"user {node.user}  password {node.password}"
        _print(self._console, f"RabbitMQ's UI: {node.management_url}  {login}")
        try:
            for seed in self._settings.each_seed:
                self._play_seed(self._settings.model_copy(update={"seed": seed}), node)
        finally:
            if self._settings.keep_broker and node.is_running:
                node.outlive()
                stop = f"fluffle broker down --folder {shlex.quote(str(node.folder))}"
                _print(self._console, f"RabbitMQ still runs. To stop it: {stop}")
            else:
                node.kill()
                with suppress(FileNotFoundError):
                    (node.folder / "log" / "broker.log").replace(logs_folder / "rabbitmq.log")
                shutil.rmtree(node.folder, ignore_errors=True)

    def _play_seed(self, settings: DemoSettings, node: BrokerNode) -> None:
        """Play the federations of one seed, from the same version 0."""
        seed, seeds = settings.seed, self._settings.each_seed
        builder = Processes(self._folder / "logs")
        initial_model = builder.logs / "version-0.safetensors"
        played = self._played.setdefault(seed, [])
        try:
            builder.start([parts.initial_model(settings, initial_model)])
            for setup in settings.setups:
                if len(seeds) > 1:
                    what = f"seed {seed} ({seeds.index(seed) + 1} of {len(seeds)}): {setup.name}"
                    _print(self._console, what, "bold")
                played.append(self._play_federation(settings, setup, node, builder, initial_model))
                if len(seeds) > 1:
                    run = played[-1].results(".")
                    held = results([run], settings.goal.metric, settings.goal)[f"{settings.goal} held from"]
                    _print(self._console, f"seed {seed}, {setup.name}: {settings.goal} held from: {held}")
        finally:
            builder.stop(patience_s=0.0)
            initial_model.unlink(missing_ok=True)

    def _play_federation(
        self, settings: DemoSettings, setup: Setup, node: BrokerNode, builder: Processes, initial_model: Path
    ) -> DemoFederation:
        place = self._settings.place(setup, settings.seed)
        with Screen.on(self._console) as screen:
            run = DemoFederation(
                settings,
                setup,
                federation="-".join([settings.task_name, *place]),
                folder=self._folder.joinpath(*place),
                screen=screen,
                stop=self._stop,
                table=self._table,
            )
            final = run.play(node, builder, initial_model)
        about = {"federation": final.federation, "version": str(final.version), "term": str(final.term)}
        write_model(run.folder / "model.safetensors", final.weights_to_evaluate, about, layout=final.layout)
        return run

    def _look_afterwards(self) -> Mapping[str, float]:
        """Return the metrics of the same model trained in one place; none if that fails."""
        out = self._folder / "logs" / "central_metrics.json"
        models = {
            seed: [each.folder / "model.safetensors" for each in runs] for seed, runs in self._played.items()
        }
        part = parts.afterwards(self._settings, models=models, out=out, table=self._table)
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
    steps = {f"data.{name}": str(value) for name, value in settings.data_table.items()}
    return {name.replace("_", "-"): str(value) for name, value in shown.items()} | steps


def introduction(settings: DemoSettings, folder: Path) -> str:
    """Say what the demo will show, and how long it may take."""
    setups, seeds = settings.setups, settings.each_seed
    names = ", then ".join(each.name for each in setups)
    said = [
        f"fluffle demo: {settings.task_name}, {names}, until {settings.goal} holds for {HOLD_S:g} s",
        settings.about_sites,
    ]
    if plan := settings.privacy_plan(settings.workers):
        said.append(f"Differential privacy: {plan.promise}")
    if settings.sealed:
        said.append("Updates and model are encrypted: the aggregator and RabbitMQ see neither.")
    if (runs := len(seeds) * len(setups)) > 1:
        longest_s = runs * (settings.max_seconds + START_S)
        said.append(
            f"{count(runs, 'federation')} ({count(len(seeds), 'seed')}) one after the other: each trains for "
            f"at most {settings.max_seconds:g} s after some {START_S:g} s to start, at most "
            f"{duration(longest_s)} together"
        )
    said.append(f"The run lies in {folder}; Ctrl-C stops everything{KEEPS if len(seeds) > 1 else ''}.")
    return "\n".join(said)


def print_results(console: Console, run: Run) -> None:
    """Print the results, what each worker or each seed gave, and which federations missed their target."""
    groups = {name: list(group.values()) for name, group in run.groups.items()}
    found = [results(group, run.metric, run.goal) for group in groups.values()]
    heads = [run.about.task.rpartition(".")[2].partition(":")[0], *groups, "trained in one place"]
    rows = [[what, *(each[what] for each in found), ""] for what in found[0]]
    rows[0][-1] = central(run) or "unknown"
    console.print()
    console.print(_table(heads, rows))
    seeds_heads, seeds_rows = seeds_table(run)
    if seeds_rows:
        console.print()
        console.print(_table(seeds_heads, seeds_rows))
    else:
        for each in run.federations:
            console.print()
            console.print(Text(each.name, "bold"))
            console.print(workers_table(each.view))
            if spent := spent_privacy(each.last):
                _print(console, f"\n{spent.promise}")
                _print(console, spent.in_words, "bold")
    if run.speedups:
        console.print()
        _print(console, f"{verdict(run)}.", "bold green")
    for each in missed(run):
        said = f"{name_of(each, run)} ended without reaching {run.about.target}: {each.last.finished}"
        _print(console, said, "yellow")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = plain_table(heads, rows, right=heads[1:])
    for column in table.columns:
        # On a narrow terminal a cell takes two lines: none of it is left out.
        column.no_wrap = False
    return table


def conclusion(settings: DemoSettings, folder: Path) -> str:
    """Say where the run lies and what to look at next."""
    has_folders = settings.place(settings.setups[-1], settings.seed)
    each = "for each federation, in its folder: " if has_folders else ""
    said = [
        "",
        f"The run lies in {folder}",
        f"  {REPORT}        all of it on one page: open it in a browser",
        f"  {each}metrics.jsonl (a line per version), model.keras,",
        "  model.safetensors, tensorboard/ and logs/",
        "Next: fluffle demo --compare (why not to wait for the slowest), --sites uneven (imbalanced, dirty,",
        "  slow and small sites), --strategy fedasync, --workers 8, --split iid; or the same parts by hand:",
        "  fluffle broker up, fluffle aggregator, fluffle worker",
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
