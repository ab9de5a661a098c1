"""Settings that choose a function by name and give it parameters, such as "hinge:10:4". Pure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

from fluffle.errors import ConfigError

Functions = Mapping[str, Callable[..., float]]


def parse_choice(setting: str, text: str, functions: Functions) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Return the name of a function and all of its keyword-only parameters.

    Parameters that are left out have their defaults. Raises ConfigError, which lists what is known, when the
    name or the number of parameters is wrong, or when a parameter is no finite number of at least 0.
    """
    known = known_forms(functions)
    name, *given = text.split(":")
    if name not in functions:
        raise ConfigError(f"{setting} must be one of {known}, not {text!r}")
    parameters = parameters_of(functions[name])
    if len(given) > len(parameters):
        raise ConfigError(f"{setting} has too many parameters: {text!r}; known are {known}")
    for (parameter, default), value in zip(list(parameters.items()), given, strict=False):
        kind = type(default)
        try:
            parameters[parameter] = kind(value)
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(
                f"{setting}: {parameter} must be {wanted}, not {value!r}; known are {known}"
            ) from error
        if not 0 <= parameters[parameter] < math.inf:
            raise ConfigError(
                f"{setting}: {parameter} must be finite and at least 0, not {value}; known are {known}"
            )
    return name, tuple(parameters.items())


def parameters_of(function: Callable[..., float]) -> dict[str, float]:
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
