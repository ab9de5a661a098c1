"""Which environment variables Fluffle reads, and which one a misspelt variable may mean.

The names stand in `known_settings.toml`, which `make reference` writes from the settings classes: one
process never imports the settings of all parts, and its environment may hold those of another part.
"""

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

ENV_PREFIX = "FLUFFLE_"
FILE = Path(__file__).with_name("known_settings.toml")


@dataclass(frozen=True, slots=True)
class KnownSettings:
    """The tables of the settings file, and every environment variable that something reads."""

    tables: tuple[str, ...]
    variables: tuple[str, ...]


@cache
def known_settings() -> KnownSettings:
    """Read the names of all settings, once in a process."""
    names = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return KnownSettings(tables=tuple(names["tables"]), variables=tuple(names["variables"]))


def unknown_variables(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find variables that look like a setting but are none, each with the one it may mean, or ""."""
    known = [name.removeprefix(ENV_PREFIX) for name in known_settings().variables]
    for name in sorted(names):
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and upper.removeprefix(ENV_PREFIX) not in known:
            close = get_close_matches(upper.removeprefix(ENV_PREFIX), known, n=1)
            yield name, ENV_PREFIX + close[0] if close else ""
