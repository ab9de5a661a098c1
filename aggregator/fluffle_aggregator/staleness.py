"""How much an update still counts when it is late: discounts by staleness. Pure.

Staleness is the version now minus the version that the worker started from, so a fresh update has 0 and every
discount gives it exactly 1. Take `constant` when the workers are about equally fast, `polynomial` to count an
update less with each version, `hinge` when some versions of delay are normal and more are not.

Source of all three: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019, arXiv 1903.03934),
section 5.2.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fluffle.errors import ConfigError


def constant(staleness: int) -> float:
    """Count every update in full, however late it is: always 1."""
    _require_staleness(staleness)
    return 1.0


def polynomial(staleness: int, *, exponent: float = 0.5) -> float:
    """Discount an update by how late it is: (1 + staleness) ** -exponent, in (0, 1].

    With exponent 0.5 it is also the 1 / sqrt(1 + staleness) of FedBuff (Nguyen et al. 2022, arXiv
    2106.06639).
    """
    _require_staleness(staleness)
    return float((1.0 + staleness) ** -exponent)


def hinge(staleness: int, *, a: float = 10.0, b: int = 4) -> float:
    """Count an update in full up to staleness b, then as 1 / (a * (staleness - b) + 1), in (0, 1].

    The defaults are those of the paper's experiments.
    """
    _require_staleness(staleness)
    return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)


DISCOUNTS: Mapping[str, Callable[..., float]] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
}


@dataclass(frozen=True, slots=True)
class Discount:
    """One of the discounts with its parameters: called with a staleness, it returns a number in (0, 1].

    As text it is the setting that makes it, with every parameter: "polynomial:0.5".
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __call__(self, staleness: int) -> float:
        """Return how much an update counts; raises ValueError when the staleness is negative."""
        return DISCOUNTS[self.name](staleness, **dict(self.parameters))

    def __str__(self) -> str:
        return ":".join([self.name, *(repr(value).removesuffix(".0") for _, value in self.parameters)])


def parse_discount(text: str) -> Discount:
    """Read a setting such as "constant", "polynomial", "polynomial:0.5" or "hinge:10:4".

    Parameters that are left out have their defaults. Raises ConfigError, which lists what is known, when the
    name or the number of parameters is wrong, or when a parameter is no finite number of at least 0.
    """
    name, *given = text.split(":")
    if name not in DISCOUNTS:
        raise ConfigError(f"FLUFFLE_STALENESS must be one of {_known()}, not {text!r}")
    defaults = _parameters(name)
    if len(given) > len(defaults):
        raise ConfigError(f"FLUFFLE_STALENESS has too many parameters: {text!r}; known are {_known()}")
    parameters = dict(defaults)
    for (parameter, default), value in zip(defaults.items(), given, strict=False):
        kind = type(default)
        try:
            parameters[parameter] = kind(value)
        except ValueError as error:
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(
                f"FLUFFLE_STALENESS: {parameter} must be {wanted}, not {value!r}; known are {_known()}"
            ) from error
        if not 0 <= parameters[parameter] < math.inf:
            raise ConfigError(
                f"FLUFFLE_STALENESS: {parameter} must be finite and at least 0, not {value}; "
                f"known are {_known()}"
            )
    return Discount(name, tuple(parameters.items()))


def _parameters(name: str) -> dict[str, float]:
    """Return the parameters of a discount in their order, with their defaults."""
    signature = inspect.signature(DISCOUNTS[name])
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    return {key: found.default for key, found in signature.parameters.items() if found.kind is keyword_only}


def _known() -> str:
    """Return the forms of all settings, such as "polynomial[:exponent]"."""
    return ", ".join(name + "".join(f"[:{key}]" for key in _parameters(name)) for name in DISCOUNTS)


def _require_staleness(staleness: int) -> None:
    if staleness < 0:
        raise ValueError(f"staleness must be at least 0, not {staleness}: no update is newer than the model")
