"""What a sealed federation asks of each worker, and what a version says of its sealed sum. Pure.

A version has the values of version 0, which is public, and the sum of weight times delta over all updates
since then, as ciphertexts. Whoever has the key computes the model: see `SealedPlan.step`.
"""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Final

from fluffle.fields import Count, Magnitude, Positive, ShortText, at_most, integer, must, text
from fluffle.sealed.parameters import LARGEST_VALUE

SEALED: Final = "sealed"
MOST_WEIGHT: Final = 64
MOST_PATTERNS: Final = 64
# No value is further from what was encrypted; a test of the encryption checks it.
MOST_ERROR: Final = 2.0**-16
# Versions after which a refresh that has not come is asked of another worker.
ASKED_FOR_VERSIONS: Final = 8
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{16,64}")
KeyId = Annotated[ShortText, must(lambda key: _HEXADECIMAL.fullmatch(key) is not None, "{} is no key id")]
Pattern = Annotated[str, text(256)]
Largest = Annotated[
    float, must(lambda number: 0 <= number <= LARGEST_VALUE, "{} is not from 0 to what a sum may come to")
]
_Number = Annotated[float, must(lambda number: number > 0, "{} is not more than 0")]


def parse_patterns(text: str) -> tuple[str, ...]:
    """Return the patterns in a text, with commas between them. Raises ValueError for none and too many."""
    patterns = tuple(each for part in text.split(",") if (each := part.strip()))
    if not patterns or len(patterns) > MOST_PATTERNS:
        raise ValueError(f"must have 1 to {MOST_PATTERNS} patterns such as head/*, not {len(patterns)}")
    return patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPlan:
    """How updates are encrypted, and how the model follows from their sum.

    `key` is the id of the key that workers and evaluators share. Each element of a delta is clipped to
    `clip` in its absolute value. A fresh update has the integer weight `greatest`, and a version is usually
    made of `buffer_size` updates. The tensors whose names match a pattern of `only` are sealed, all of them
    without patterns.
    """

    key: KeyId
    clip: _Number
    greatest: Annotated[int, integer(1, MOST_WEIGHT)]
    buffer_size: Positive
    server_learning_rate: _Number = 1.0
    only: Annotated[tuple[Pattern, ...], at_most(MOST_PATTERNS)] = ()

    @property
    def divisor(self) -> int:
        """What the sum is divided by: the weights of a buffer of fresh updates."""
        return self.buffer_size * self.greatest

    @property
    def step(self) -> float:
        """How far the sum moves the model: x_t = x_0 + step * N_t."""
        return self.server_learning_rate / self.divisor

    @property
    def most_per_weight(self) -> float:
        """How much an update adds to the largest value of the sum for each unit of its weight, at most."""
        return self.clip + MOST_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedState:
    """What is known of the sum without a key.

    `weights` is the sum of the weights of all updates in it. When that was `counted_from`, no value of the
    sum was above `largest`: it is 0 at first, and a refresh says it anew. `refreshes` counts these. While one
    is wanted, `asked` is the worker that is to send it, since the version `asked_at`.
    """

    weights: Count = 0
    largest: Magnitude = 0.0
    counted_from: Count = 0
    refreshes: Count = 0
    asked: Annotated[str, text(100)] = ""
    asked_at: Count = 0

    def bound(self, plan: SealedPlan) -> float:
        """Return an absolute value that no value of the sum exceeds if all workers are honest."""
        return self.largest + (self.weights - self.counted_from) * plan.most_per_weight

    def has_room(self, plan: SealedPlan, weight: int) -> bool:
        """Return whether updates of this weight fit into the range of the ciphertexts."""
        return self.bound(plan) + weight * plan.most_per_weight <= LARGEST_VALUE

    def wants_refresh(self, plan: SealedPlan) -> bool:
        """Return whether half of the room that was left at the last refresh is used."""
        return self.bound(plan) > (self.largest + LARGEST_VALUE) / 2

    def is_full(self, plan: SealedPlan) -> bool:
        """Return whether even right after a refresh there was no room for the updates of a version."""
        return self.largest + plan.divisor * plan.most_per_weight > LARGEST_VALUE

    def with_updates(self, weight: int) -> "SealedState":
        """Return the state after updates of this weight were added."""
        return replace(self, weights=self.weights + weight)

    def refreshed(self, largest: float, weights: int) -> "SealedState":
        """Return the state after a refresh of a version that had these `weights` and largest value."""
        return SealedState(
            weights=self.weights,
            largest=largest + MOST_ERROR,
            counted_from=weights,
            refreshes=self.refreshes + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRefresh:
    """What a worker says of the sum that it has decrypted and encrypted anew.

    The sum was that of a version with so many `refreshes` and `weights`, and its largest absolute value is
    `largest`. What travels beside this is the difference of the new ciphertexts and the old ones: it encrypts
    zero, so the sum that it is added to stays right whatever has come meanwhile.
    """

    refreshes: Count
    weights: Count
    largest: Largest
