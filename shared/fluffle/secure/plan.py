"""What secure aggregation asks of each worker, and what a version says of its sum. Pure."""

from dataclasses import astuple, dataclass, replace
from typing import Annotated, Final

import xxhash

from fluffle.fields import Count, MetricName, Name, Positive, ShortText, at_most, integer, must, text
from fluffle.secure.fixed_point import FEWEST_BITS, MOST_BITS, FixedPoint
from fluffle.secure.limbs import limbs_per_value
from fluffle.secure.modulus import BITS, Modulus
from fluffle.secure.weights import MOST_FACTOR

MASKED: Final = "masked"
MOST_WHY: Final = 500
MOST_METRICS: Final = 16
# So many values an update has of its site's evaluation, and of each of its metrics: see `measured`.
MEASURED_VALUES: Final = 2
ModulusBits = Annotated[Positive, must(BITS.__contains__, f"{{}} is none of {', '.join(map(str, BITS))}")]
Factor = Annotated[int, integer(1, MOST_FACTOR)]
Clip = Annotated[float, must(lambda clip: clip > 0, "{} is not more than 0")]


def masked_codec(bits: int) -> str:
    """Return the name of the codec in which masked numbers of so many bits travel."""
    return f"{MASKED}{bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurePlan:
    """How a worker masks its updates.

    `epoch` is that of the helpers' keys, and `group_keys` their digest, empty where it is not known. A delta
    is clipped to `clip`, each element by itself or with `by_norm` in its L2 norm, and rounded to whole
    numbers of so many `bits`. Sums are modulo 2**modulus_bits, and `greatest` is the integer weight of a
    fresh update. `metrics` are those of a site's evaluations that travel in its updates. Where workers add
    shares of noise, a sum has at least as many workers as are to be `honest`, and one update of each;
    otherwise that is 0. Numbers that were made by another plan cannot be added to those of this one, so each
    update names the `revision` of its plan: see `numbered`.
    """

    epoch: Positive
    clip: Clip
    by_norm: bool = False
    bits: Annotated[int, integer(FEWEST_BITS, MOST_BITS)] = 16
    modulus_bits: ModulusBits = 24
    greatest: Factor = MOST_FACTOR
    metrics: Annotated[tuple[MetricName, ...], at_most(MOST_METRICS)] = ()
    revision: Count = 0
    honest: Count = 0
    group_keys: ShortText = ""

    @property
    def codec(self) -> str:
        """The name of the codec in which masked numbers travel."""
        return masked_codec(self.modulus_bits)

    @property
    def modulus(self) -> Modulus:
        """The modulus of the sums."""
        return Modulus(self.modulus_bits)

    @property
    def fixed_point(self) -> FixedPoint:
        """How a delta becomes whole numbers."""
        return FixedPoint(self.clip, self.bits, self.by_norm)

    @property
    def measured_size(self) -> int:
        """How many values an update has of what its site has measured."""
        return MEASURED_VALUES * (1 + len(self.metrics)) if self.metrics else 0

    def length(self, size: int, statistics_size: int) -> int:
        """Return how many numbers an update has, of a model of so many trained values and statistics."""
        return size + limbs_per_value(self.bits) * (statistics_size + self.measured_size)

    def of_keys(self, group_keys: str) -> "SecurePlan":
        """Return this plan for helpers whose public keys have this digest."""
        return replace(self, group_keys=group_keys).numbered()

    def numbered(self) -> "SecurePlan":
        """Return this plan with the revision that follows from its settings: any other plan has another."""
        settings = astuple(replace(self, revision=0))
        return replace(self, revision=xxhash.xxh32_intdigest(repr(settings).encode()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSum:
    """The newest close record that was opened or given up, from which the next one goes on.

    `number` and `digest` are those of the close record. `helpers` are those that have opened it, and
    `opened_s` is the time from the full buffer to the last opening that was needed. `given_up` says why
    nobody opened it, and is empty if it was opened.
    """

    epoch: Positive
    number: Count
    digest: ShortText
    helpers: tuple[Name, ...] = ()
    opened_s: float = 0.0
    given_up: Annotated[str, text(MOST_WHY)] = ""
