"""What tests say to the command line."""

from __future__ import annotations

from collections.abc import Callable

from typer.testing import Result

Fluffle = Callable[..., Result]
