"""Consoles that print text as it is: rich by itself would turn the :100: of a setting into an emoji."""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

PlainConsole: Final = partial(Console, emoji=False)


def table_console(width: int, *, highlight: bool = True) -> Console:
    """Return a console for tables, with this width where there is no terminal."""
    return PlainConsole(highlight=highlight, width=None if sys.stdout.isatty() else width)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int = 160) -> None:
    """Print rows of text on stdout; `width` is used where that is not a terminal."""
    table = Table(*columns, show_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    table_console(width).print(table)
