"""Shows the progress of a round of training: a bar on a terminal, nothing in a log file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fluffle.task import Progress


class RoundDisplay:
    """Shows one bar for each round, on the console of the log lines."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def show(self, title: str) -> Iterator[Progress]:
        """Show a bar during the block, and remove it afterwards."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Bars(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as bars:
            bar = bars.add_task(title, total=None)

            def progress(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)

            yield progress
