"""Choices that are written as a name, or as a name and a number: "median", "knn:5". Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fluffle.errors import ConfigError


class Number(NamedTuple):
    """The number behind a name: its default, and the bounds that it must lie between (both excluded)."""

    default: float
    above: float
    below: float = float("inf")
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One chosen name, and its number if the name takes one."""

    name: str
    number: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}:{self.number:g}" if self.number else self.name


Known = Mapping[str, Number | None]


def choice_of(setting: str, text: str, known: Known) -> Choice:
    """Read a choice; `known` has the names, and the number that each takes, or None.

    Raises ConfigError for an unknown name, and for a number that is missing in a name's range.
    """
    name, colon, written = text.partition(":")
    if name not in known:
        forms = ", ".join(f"{each}:NUMBER" if number else each for each, number in known.items())
        raise ConfigError(f"{setting} must be one of {forms}, not {text!r}")
    number = known[name]
    if number is None:
        if colon:
            raise ConfigError(f"{setting} {name!r} takes no number, but found {text!r}")
        return Choice(name)
    if not colon:
        return Choice(name, number.default)
    try:
        value = float(written)
    except ValueError:
        value = float("nan")
    if not number.above < value < number.below or (number.is_whole and value != int(value)):
        whole = "a whole number" if number.is_whole else "a number"
        below = f" and below {number.below:g}" if number.below < float("inf") else ""
        raise ConfigError(
            f"{setting} {name!r} takes {whole} above {number.above:g}{below}, such as "
            f"{name}:{number.default:g}, not {text!r}"
        )
    return Choice(name, value)
