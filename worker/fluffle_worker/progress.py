"""Shows the progress of a round of training: a bar on a terminal, nothing in a log file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fluffle import logs
from fluffle.task import Progress


@contextmanager
def show_bar(title: str) -> Iterator[Progress]:
    """Show a bar on the console of the log lines during the block, and remove it afterwards."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = logs.console()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
