"""`fluffle simulate`: play a federation on a virtual clock, or many, and write what came out of it."""

import time
from typing import Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluffle.command_line import settings_command
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle_cli.report.command import FILE
from fluffle_cli.report.comparison import results
from fluffle_cli.simulate.from_run import with_those_of_its_run
from fluffle_cli.simulate.names import NOT_SIMULATED
from fluffle_cli.simulate.one_run import line_of, play
from fluffle_cli.simulate.queue_results import run_queue
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.simulate.sweep import run_sweep
from fluffle_cli.watching.privacy import spent_privacy
from fluffle_cli.watching.view import Version

MEANINGLESS: Final = NOT_SIMULATED - {"verbose", "config", "log_format"}


def run(settings: SimulateSettings) -> None:
    """Play a federation on a virtual clock: minutes of training of slow devices take seconds.

    The leader, its limits, the strategies and the messages are those of `fluffle aggregator`, and each worker
    really trains. Only RabbitMQ is played by a queue in memory, and the clock is virtual. The same command
    gives the same bits again.

    Example: `fluffle simulate --clients 16 --device-seconds lognormal:1:1 --target 0.95 --max-seconds 600`

    With --sweep or --seeds there are many runs, in as many processes as there are cores, and a table and a
    picture that compare them.

    With --no-train updates are only counted, for questions of speed and staleness.

    Example: `fluffle simulate --sweep "strategy=fedbuff,fedasync" --seeds 5 --target 0.95 --max-seconds 120`
    """
    console = PlainConsole(highlight=False)
    settings, notes = with_those_of_its_run(settings)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    if not settings.train:
        settings.check()
        run_queue(settings, console)
    elif settings.is_sweep:
        run_sweep(settings, console)
    else:
        _run_one(settings, console)


def _run_one(settings: SimulateSettings, console: Console) -> None:
    settings.check()
    if plan := settings.new_privacy_plan():
        console.print(f"Differential privacy: {plan.promise}", markup=False, soft_wrap=True)
    folder = settings.make_folder()
    began = time.monotonic()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("building the model, and loading the data of every site")

        def note(version: Version) -> None:
            progress.update(shown, description=line_of(version))

        try:
            played = play(settings, folder, note)
        except KeyboardInterrupt:
            progress.stop()
            console.print(f"Stopped. What there is of the run lies in {folder}", markup=False)
            raise
    if played.hopeless:
        raise FluffleError(played.hopeless)
    run = played.run
    ended = {"finished because": played.result.finished}
    for what, found in (ended | results(run.federations, run.metric, run.goal)).items():
        if found:
            console.print(f"{what:28} {found}", markup=False, soft_wrap=True)
    if spent := spent_privacy(run.federations[-1].last):
        console.print(spent.in_words, markup=False, soft_wrap=True)
    console.print(f"The report is {folder / FILE}", markup=False)
    for line in played.complaints:
        console.print(line, markup=False, soft_wrap=True)
    took_s = time.monotonic() - began
    console.print(f"{played.result.seconds:.1f} virtual seconds took {took_s:.1f} s", markup=False)


command = settings_command(SimulateSettings, run, without=MEANINGLESS)
