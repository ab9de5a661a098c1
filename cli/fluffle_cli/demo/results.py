"""What came out of a demo, for people: its results and what each worker gave."""

from rich.console import Console
from rich.text import Text

from fluffle_cli.report.run import Run
from fluffle_cli.watching.terminal import plain_table, workers_table
from fluffle_cli.words import number


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
        console.print(Text(f"{run.verdict}.", "bold green"), soft_wrap=True)
    for each in run.federations:
        if each.seconds_to(run.goal) is None:
            said = f"{each.strategy} ended without reaching {run.about.target}: {each.last.finished}"
            console.print(Text(said, "yellow"), soft_wrap=True)
