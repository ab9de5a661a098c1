"""Consoles that print text as it is: rich by itself would turn the :100: of a setting into an emoji."""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from rich.console import Console

PlainConsole: Final = partial(Console, emoji=False)


def table_console(width: int, *, highlight: bool = True) -> Console:
    """Return a console for tables, with this width where there is no terminal."""
    return PlainConsole(highlight=highlight, width=None if sys.stdout.isatty() else width)
