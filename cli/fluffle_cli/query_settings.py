"""What the commands share that ask about a federation, or change it, and end."""

import sys
from typing import Annotated

import typer
from pydantic import Field

from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings

JsonLines = Annotated[
    bool, Field(description="Print JSON, one object a line.", json_schema_extra={"flag": "--json"})
]
Yes = Annotated[bool, Field(description="Do not ask for confirmation.")]


class QuerySettings(SharedSettings):
    """Settings of a command that queries: it does not wait for a broker as long as a worker does."""

    connect_timeout_s: float = Field(
        5.0, gt=0, description="Seconds to wait for a broker that cannot be reached."
    )


def is_confirmed(action: str, *, yes: bool, answer: str = "yes") -> bool:
    """Ask the user to type the answer before an action, unless `yes`; ConfigError if there is no terminal."""
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"there is no terminal to ask at: give --yes to {action}")
    if yes or typer.prompt(f"Type {answer} to {action}", default="", show_default=False) == answer:
        return True
    typer.echo("That is not the answer: nothing was changed.")
    return False
