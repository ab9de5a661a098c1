"""A federation while it runs: a live view on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fluffle_cli.snapshot import Snapshot
from fluffle_cli.view import Inside, plain_line, render, workers_table

REDRAW_EVERY_S = 0.25
PLAIN_LINE_EVERY_S = 3.0


class Screen:
    """A place on the console, from start to end of one federation: of `fluffle demo` and `status --watch`."""

    def __init__(self, console: Console, *, metric: str | None = None) -> None:
        self.console = console
        self._metric = metric
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown_at = 0.0
        self._phase = ""

    def __enter__(self) -> Self:
        self._context().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context().__exit__(kind, error, trace)

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True)

    def show_phase(self, phase: str, snapshot: Snapshot, inside: Inside) -> None:
        """Show what is waited for while there is no version yet."""
        if self._live is None:
            if phase != self._phase:
                self.say(phase)
        elif self._is_time(REDRAW_EVERY_S):
            self._draw(Group(Text(phase, "bold"), Text(), workers_table(snapshot, inside)))
        self._phase = phase

    def show(self, snapshot: Snapshot, inside: Inside) -> None:
        """Show how far the federation is, if it is time to."""
        if self._is_time(PLAIN_LINE_EVERY_S if self._live is None else REDRAW_EVERY_S):
            self.show_now(snapshot, inside)

    def show_now(self, snapshot: Snapshot, inside: Inside | None = None) -> None:
        """Show how far the federation is, even if something was shown just now."""
        if self._live is None:
            self.say(f"{snapshot.elapsed_s:5.1f} s  {plain_line(snapshot, metric=self._metric)}")
        self._draw(render(snapshot, metric=self._metric, inside=inside))

    def _context(self) -> AbstractContextManager[object]:
        return self._live or nullcontext()

    def _draw(self, picture: RenderableType) -> None:
        if self._live is not None:
            self._live.update(picture, refresh=True)

    def _is_time(self, interval_s: float) -> bool:
        if time.monotonic() < self._shown_at + interval_s:
            return False
        self._shown_at = time.monotonic()
        return True
