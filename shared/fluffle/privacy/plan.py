"""What a federation with differential privacy promises, and how much of it each worker has spent. Pure.

The promise is part of the plan, and what is spent part of the record, so that the next leader goes on with
both. A participation is counted in sums that were released, never in versions: some versions are made
without a sum.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Final, Self

from fluffle.fields import Count, Name, Positive, ShortText, at_most, integer, must
from fluffle.privacy.adaptive_clip import count_noise, updates_multiplier
from fluffle.privacy.correlated import MOST_BANDS
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.promise import MOST_EPSILON, MOST_SUMS, Mechanism, PrivacyTarget, promise
from fluffle.privacy.skellam import SkellamNoise

DRAWN_BYTES: Final = 16
_HEXADECIMAL: Final = re.compile(r"([0-9a-f]{2})*")
_Number = Annotated[float, must(lambda number: number > 0, "{} is not more than 0")]
Epsilon = Annotated[
    float, must(lambda number: 0 < number <= MOST_EPSILON, "{} is not above 0, or above 1000")
]
Delta = Annotated[float, must(lambda number: 0 < number < 1, "{} is not above 0 and below 1")]
Drawn = Annotated[
    ShortText,
    must(lambda text: _HEXADECIMAL.fullmatch(text) is not None, "{} is no hexadecimal number of whole bytes"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What is promised to each worker, and the noise that keeps it.

    A worker has at most so many `updates` in the model, each at least `separation` sums after the one before
    and clipped to an L2 norm of `clip`. The noise has so many `bands` and the standard deviation `std`: see
    `GaussianNoise`. With the mechanism distributed there are `shares` of it, and `std` is that of the noise
    in each sum that is counted on. All of it is computed once, by the first leader.

    With a `count_std` the clip is adaptive, see `fluffle.privacy.adaptive_clip`: `clip` is the first one, and
    `count_std` the standard deviation of the noise in the number of updates that fit. This noise and that in
    a sum are together as private as noise of `std` alone would be.
    """

    mechanism: Mechanism = "central"
    epsilon: Epsilon
    delta: Delta
    clip: _Number
    updates: Positive
    separation: Positive
    bands: Annotated[int, integer(1, MOST_BANDS)]
    std: _Number
    shares: SkellamNoise | None = None
    count_std: _Number | None = None

    @classmethod
    def keeping(cls, target: PrivacyTarget, *, buffer_size: int = 1) -> Self:
        """Return the plan with the least noise for a target of the mechanism central or local.

        With an adaptive clip, a larger buffer has more noise in the number of updates that fit.
        """
        noise = target.gaussian_noise()
        return cls(
            mechanism=target.mechanism,
            epsilon=target.epsilon,
            delta=target.delta,
            clip=target.clip,
            updates=target.updates,
            separation=target.separation,
            bands=noise.bands,
            std=noise.std,
            count_std=count_noise(noise.multiplier, buffer_size) if target.adaptive else None,
        )

    @property
    def target(self) -> PrivacyTarget:
        """What was asked for."""
        return PrivacyTarget(
            epsilon=self.epsilon,
            delta=self.delta,
            clip=self.clip,
            updates=self.updates,
            separation=self.separation,
            mechanism=self.mechanism,
            correlated=self.bands > 1,
            adaptive=self.count_std is not None,
        )

    def std_at(self, clip: float) -> float:
        """Return the standard deviation of the noise in a sum of updates with this clip."""
        if self.count_std is None:
            return self.std * (clip / self.clip)
        return clip * updates_multiplier(self.std / self.clip, self.count_std)

    @property
    def noise(self) -> GaussianNoise:
        """The noise in each sum, or with the mechanism local in each update."""
        return GaussianNoise(
            clip=self.clip,
            updates=self.updates,
            separation=self.separation,
            bands=self.bands,
            std=self.std,
        )

    @property
    def noise_in_words(self) -> str:
        """What kind of noise it is."""
        if self.shares:
            return f"Skellam noise in shares, of which {self.shares.honest} are counted on"
        return (
            f"correlated Gaussian noise of {self.bands} bands" if self.bands > 1 else "plain Gaussian noise"
        )

    @property
    def promise(self) -> str:
        """What is promised to each worker, for people."""
        return promise(self.target, self.shares or self.noise)

    def epsilon_after(self, updates: int, delta: float | None = None) -> float:
        """Return the epsilon that a worker has spent after so many updates.

        It is that of the promised delta, or of another one.
        """
        return _epsilon_after(self.shares or self.noise, updates, self.delta if delta is None else delta)


@lru_cache(maxsize=4096)
def _epsilon_after(noise: GaussianNoise | SkellamNoise, updates: int, delta: float) -> float:
    """Return the epsilon that was spent; views of thousands of workers ask again and again."""
    return noise.epsilon_after(updates, delta)


# A plan as a message has it: nobody computes an epsilon of more sums, which would take all memory.
BoundedPlan = Annotated[
    PrivacyPlan,
    must(
        lambda plan: plan.updates * plan.separation <= MOST_SUMS,
        f"updates times separation is more than {MOST_SUMS:,}",
    ),
    must(
        lambda plan: plan.count_std is None or plan.std / plan.clip < 2 * plan.count_std,
        "the noise of count_std alone spends more than epsilon",
    ),
]


@dataclass(frozen=True, slots=True)
class Participation:
    """How many updates of a worker the model contains, and the number of the last sum that has one.

    With shares of noise, updates that are in no version count as well: the aggregator had them under masks.
    """

    updates: Count = 0
    last_step: Count = 0


@dataclass(frozen=True, slots=True)
class NoisySum:
    """What names the noise of a sum: the version that was made of it, and what its leader had drawn."""

    term: Positive
    version: Count
    drawn: Drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyState:
    """What has been released so far.

    `clip` is that of the next sum where it is adaptive, None where the plan has the one for all.

    `commitment` is that of the secret which all aggregators share, empty where they add no noise. `drawn` is
    what the leader of this version has drawn at random when it began, in hexadecimal. `steps` counts the sums
    that were released, of which the `last` ones go on in the noise of the next: one fewer than the noise has
    bands, oldest first.
    """

    commitment: ShortText
    drawn: Drawn = ""
    steps: Count = 0
    last: Annotated[tuple[NoisySum, ...], at_most(MOST_BANDS)] = ()
    participations: Mapping[Name, Participation] = field(default_factory=dict)
    clip: _Number | None = None

    def clip_of(self, plan: PrivacyPlan) -> float:
        """Return the clip of the next sum."""
        return plan.clip if self.clip is None else self.clip

    def of(self, worker: str) -> Participation:
        """Return how a worker has taken part so far."""
        return self.participations.get(worker, Participation())

    def is_spent(self, worker: str, plan: PrivacyPlan) -> bool:
        """Tell whether the model contains all updates of a worker that it may."""
        return self.of(worker).updates >= plan.updates

    def steps_to_wait(self, worker: str, plan: PrivacyPlan) -> int:
        """Return how many more sums must be released before the next one may have an update of a worker."""
        found = self.of(worker)
        return max(0, found.last_step + plan.separation - self.steps - 1) if found.updates else 0

    def with_sum(self, made: NoisySum, workers: tuple[str, ...], plan: PrivacyPlan) -> "PrivacyState":
        """Return the state after a sum was released that has one update of each of these workers."""
        step = self.steps + 1
        after = {worker: Participation(self.of(worker).updates + 1, step) for worker in workers}
        last = (*self.last, made)
        return replace(
            self,
            steps=step,
            last=last[max(0, len(last) - plan.bands + 1) :],
            participations={**self.participations, **after},
        )

    def with_released(self, worker: str, updates: int) -> "PrivacyState":
        """Return the state in which a worker has sent so many updates at least, though none is in a sum."""
        known = self.of(worker)
        if updates <= known.updates:
            return self
        return replace(self, participations={**self.participations, worker: replace(known, updates=updates)})

    @property
    def most_updates(self) -> int:
        """The most updates that any worker has in the model."""
        return max((each.updates for each in self.participations.values()), default=0)

    def are_all_spent(self, plan: PrivacyPlan) -> bool:
        """Tell whether each worker that has taken part has all its updates in the model."""
        known = self.participations
        return bool(known) and all(self.is_spent(worker, plan) for worker in known)
