"""How the workers' learning rate changes from version to version. Pure.

A fixed rate near the end of training makes the model jump around its optimum, the more so the more workers
send at once. Take `cosine` when the number of versions is known, `step` to lower the rate now and then,
`plateau` to lower it whenever the evaluations stop improving. The scale travels in each version's plan, so
that workers need not know the schedule.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fluffle.record import PlateauState
from fluffle_aggregator.choices import Choice, Parameters, parse_choice


def constant(_version: int, _state: PlateauState) -> float:
    """Leave the learning rate as it is: always 1."""
    return 1.0


def step(version: int, _state: PlateauState, *, every: int = 100, factor: float = 0.5) -> float:
    """Multiply the rate by `factor` each time that `every` versions were made."""
    return float(factor ** (version // every))


def cosine(version: int, _state: PlateauState, *, versions: int = 1000, end: float = 0.01) -> float:
    """Go from 1 to `end` within so many versions, along half a cosine, and stay there.

    Source: Loshchilov and Hutter, "SGDR" (2017, arXiv 1608.03983), equation 5, without restarts.
    """
    progress = min(1.0, version / versions)
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def plateau(_version: int, state: PlateauState, *, patience: int = 5, factor: float = 0.5) -> float:
    """Multiply the rate by `factor` each time that `patience` evaluations in a row were no better."""
    return float(factor ** (state.drops + state.misses // patience))


SCHEDULES: Mapping[str, Callable[..., float]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "plateau": plateau,
}
# Below this the workers would learn nothing.
SMALLEST_SCALE = 1e-4


@dataclass(frozen=True, slots=True)
class Schedule(Choice):
    """One of the schedules with its parameters."""

    name: str = "constant"
    parameters: Parameters = ()

    def scale(self, version: int, state: PlateauState) -> float:
        """Return what the learning rate of a round that starts from this version is multiplied by."""
        return max(SMALLEST_SCALE, SCHEDULES[self.name](version, state, **dict(self.parameters)))

    def after_evaluation(self, state: PlateauState, *, is_better: bool) -> PlateauState:
        """Return the state after one more evaluation."""
        patience = dict(self.parameters).get("patience")
        if patience is None:
            return state
        if not is_better:
            return PlateauState(state.misses + 1, state.drops)
        return PlateauState(0, state.drops + int(state.misses // patience))


def parse_schedule(text: str) -> Schedule:
    """Read "constant", "step:100:0.5", "cosine:500" or "plateau:5".

    Parameters that are left out have their defaults. Raises ValueError, which says what is known.
    """
    schedule = Schedule(*parse_choice(text, SCHEDULES))
    for parameter, value in schedule.parameters:
        if value <= 0 or (isinstance(value, float) and value > 1):
            least = "at least 1" if isinstance(value, int) else "above 0 and at most 1"
            raise ValueError(f"must be given with {parameter} {least}, not {value:g}")
    return schedule
