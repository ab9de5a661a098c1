"""Consoles that print text as it is: rich alone would turn the :100: of a setting into a picture."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from rich.console import Console

PlainConsole: Final = partial(Console, emoji=False)


def table_console(width: int, *, highlight: bool = True) -> Console:
    """Return a console for tables, which is so wide where no terminal says how wide it is."""
    return PlainConsole(highlight=highlight, width=None if sys.stdout.isatty() else width)
