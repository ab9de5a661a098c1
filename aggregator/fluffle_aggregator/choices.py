"""Settings that choose a function by name and give it parameters, such as "hinge:10:4". Pure."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator

Functions = Mapping[str, Callable[..., Any]]
Parameters = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A function's name and the value of each of its parameters; as text it is the setting that makes it."""

    name: str
    parameters: Parameters = ()

    def __str__(self) -> str:
        return ":".join([self.name, *(repr(value).removesuffix(".0") for _, value in self.parameters)])


def parse_choice(text: str, functions: Functions) -> tuple[str, Parameters]:
    """Return the name of a function and all of its keyword-only parameters.

    Parameters that are left out have their defaults. Raises ValueError, which lists what is known, when the
    name or the number of parameters is wrong, or when a parameter is no finite number of at least 0.
    """
    known = f"one of {known_forms(functions)}"
    name, *given = text.split(":")
    if name not in functions:
        raise ValueError(f"must be {known}, not {text!r}")
    parameters = parameters_of(functions[name])
    if len(given) > len(parameters):
        raise ValueError(f"must be {known}; {text!r} has too many parameters")
    for (parameter, default), value in zip(list(parameters.items()), given, strict=False):
        kind = type(default)
        try:
            parameters[parameter] = kind(value)
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"must be {known}; {parameter} must be {wanted}, not {value!r}") from error
        if not 0 <= parameters[parameter] < math.inf:
            raise ValueError(f"must be {known}; {parameter} must be finite and at least 0, not {value}")
    return name, tuple(parameters.items())


def readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Return a validator for a setting that is text: it refuses what `parse` refuses with ValueError."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def parameters_of(function: Callable[..., Any]) -> dict[str, float]:
    """Return the keyword-only parameters of a function in their order, with their defaults."""
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    found = inspect.signature(function).parameters
    return {name: each.default for name, each in found.items() if each.kind is keyword_only}


def known_forms(functions: Functions) -> str:
    """Return the forms of all settings, such as "polynomial[:exponent]"."""
    return ", ".join(
        name + "".join(f"[:{parameter}]" for parameter in parameters_of(function))
        for name, function in functions.items()
    )
