"""How simulated devices behave: how long they train, when they are on, and what goes wrong. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from fluffle.errors import ConfigError
from fluffle_aggregator.choices import parse_choice
from fluffle_cli.simulate.availability import Availability, uniform

CRASHES, DUPLICATES = 1, 2
# A device that is on for less would switch without end within one round.
LEAST_ON_S = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The devices, each known by its number.

    A round takes `fixed_s` and `example_s` for each example that it trains, in seconds; with `redrawn`, each
    round takes the next number there in place of `fixed_s`. `joins_s` says when devices join, for those that
    do not join at the start. `crashes` and `duplicates` are probabilities: that a round is lost, and that an
    update is delivered twice.
    """

    fixed_s: Sequence[float]
    example_s: Sequence[float]
    availability: Availability
    redrawn: Iterator[float] | None = None
    joins_s: Mapping[int, float] = field(default_factory=dict)
    crashes: float = 0.0
    duplicates: float = 0.0
    seed: int = 0

    def round_s(self, device: int, examples: int) -> float:
        """Return how many seconds the next round of a device takes if nothing interrupts it."""
        fixed_s = self.fixed_s[device] if self.redrawn is None else next(self.redrawn)
        seconds = fixed_s + self.example_s[device] * examples
        if not isfinite(seconds):
            raise ConfigError(
                f"a round of device {device} would never end: give smaller numbers in --device-seconds"
            )
        return seconds

    def lost_after(self, device: int, number: int) -> float | None:
        """Return after which part of it a device's round with this number is lost; None if it is not."""
        if not self.crashes:
            return None
        chance = uniform(self.seed, CRASHES, device, number)
        # Given that it is below the probability, it is as likely to be anywhere below it.
        return chance / self.crashes if chance < self.crashes else None

    def comes_twice(self, device: int, sequence: int) -> bool:
        """Return whether a device's update with this number is delivered twice."""
        return self.duplicates > 0 and uniform(self.seed, DUPLICATES, device, sequence) < self.duplicates


def on_off(*, on: float = 600.0, off: float = 600.0) -> tuple[float, float]:
    """Return the mean seconds that a device is on and off, one after the other."""
    if on < LEAST_ON_S:
        raise ValueError(
            f"must be on-off[:on][:off] with on at least {LEAST_ON_S:g} s: these devices would never train"
        )
    return on, off


def always() -> None:
    """Return nothing: every device is always on."""


AVAILABILITY: Mapping[str, Callable[..., tuple[float, float] | None]] = {"always": always, "on-off": on_off}


def parse_availability(text: str) -> tuple[float, float] | None:
    """Return the mean seconds on and off for a setting such as "on-off:600:60"; None when always on.

    Raises ValueError, which lists what is known.
    """
    name, parameters = parse_choice(text, AVAILABILITY)
    return AVAILABILITY[name](**dict(parameters))


def parse_late(text: str) -> tuple[float, float]:
    """Return which share of the devices joins late, and after how many seconds, of text such as "0.25:60".

    Raises ValueError, which says what is expected.
    """
    expected = f"must be SHARE:SECONDS, such as 0.25:60, not {text!r}"
    share, separator, seconds = text.partition(":")
    try:
        found = float(share), float(seconds)
    except ValueError as error:
        raise ValueError(expected) from error
    if not (separator and 0 <= found[0] <= 1 and isfinite(found[1]) and found[1] >= 0):
        raise ValueError(f"{expected}: the share is from 0 to 1, and the seconds are finite and at least 0")
    return found
