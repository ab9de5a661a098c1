"""The settings of a sealed federation, and the plan that follows from them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, Field, model_validator

from fluffle.errors import ConfigError
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.plan import MOST_ERROR, MOST_WEIGHT, SealedPlan, parse_patterns
from fluffle.sealed.public_file import read_public
from fluffle.secure.weights import MOST_APART
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.secure.weighing import IntegerWeights
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.transforms import Sgd

# Between two refreshes there is room for so many versions.
FEWEST_VERSIONS: Final = 16


class SealedSettings(BaseModel):
    """The settings of a sealed federation."""

    sealed: Path | None = Field(
        None,
        description="Seal the federation: updates and model are encrypted with a key that workers and "
        "evaluators share (sealed_secret), and the aggregator adds up what it cannot read. The file is "
        "sealed.public of `fluffle keys sealed`. The strategy is then fedbuff unless given.",
    )
    sealed_clip: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="Largest absolute value of an element of a sealed update. Workers clip what is larger, "
        "and say so.",
    )
    sealed_only: Annotated[str, readable_by(parse_patterns)] | None = Field(
        None,
        description="Seal only the tensors whose names match one of these patterns, such as head/*; the "
        "others travel as usual. Several stand with commas between them. All are sealed if unset.",
    )

    @model_validator(mode="after")
    def _has_an_effect_on_what_is_sealed(self) -> Self:
        given = [name for name in ("sealed_clip", "sealed_only") if name in self.model_fields_set]
        if self.sealed is None and (idle := [name for name in given if getattr(self, name) is not None]):
            raise ValueError(f"{idle[0]} has no effect without sealed: give both, or none")
        return self

    def make_sealed_plan(self, strategy: Strategy) -> SealedPlan | None:
        """Return what workers are told; None without sealed.

        Raises ConfigError for another file, and where ciphertexts have no room for a few buffers.
        """
        if self.sealed is None:
            return None
        # In synchronous rounds all updates weigh the same.
        fewest = 1 if strategy.one_update_per_version else MOST_APART
        most = 1 if strategy.one_update_per_version else MOST_WEIGHT
        of_one = strategy.buffer_size * (self.sealed_clip + MOST_ERROR) * FEWEST_VERSIONS
        greatest = min(most, int(LARGEST_VALUE / of_one))
        if greatest < fewest:
            most_updates = int(LARGEST_VALUE / (fewest * (self.sealed_clip + MOST_ERROR) * FEWEST_VERSIONS))
            raise ConfigError(
                f"sums of {strategy.buffer_size} updates (buffer_size) of at most {self.sealed_clip:g} "
                f"(sealed_clip) leave the range of ciphertexts after a few versions: at most {most_updates} "
                "updates fit; lower one of the two"
            )
        return SealedPlan(
            key=read_public(self.sealed).key,
            clip=self.sealed_clip,
            greatest=greatest,
            buffer_size=strategy.buffer_size,
            server_learning_rate=rate_of(strategy),
            only=parse_patterns(self.sealed_only) if self.sealed_only else (),
        )


def rate_of(strategy: Strategy) -> float:
    """Return the learning rate of the server's SGD, which is the only transform of a sealed strategy."""
    rates = [each.learning_rate for each in strategy.transforms if isinstance(each, Sgd)]
    return rates[0] if rates else 1.0


def sealed(strategy: Strategy, plan: SealedPlan) -> Strategy:
    """Return a strategy that adds up ciphertexts, with integer weights."""
    return replace(strategy, weigh=IntegerWeights(plan.greatest), is_sealed=True)


def same_sealed_plan(asked: SealedPlan | None, begun: SealedPlan | None) -> None:
    """Raise ConfigError unless the settings ask for what the federation has `begun` with.

    The model follows from the sealed sum by these values, so they stay as they were.
    """
    anew = "begin a new federation (--federation), whose version 0 everybody sees"
    if asked is None and begun is None:
        return
    if begun is None:
        raise ConfigError(
            f"sealed cannot begin in a federation that runs without it, whose model everybody knows: {anew}"
        )
    if asked is None:
        raise ConfigError(
            f"the federation is sealed under the key {begun.key}, and its model cannot be read here: give "
            f"--sealed with its sealed.public; or {anew}"
        )
    for name, flag in _STAYS.items():
        before, now = getattr(begun, name), getattr(asked, name)
        if before != now:
            raise ConfigError(
                f"{flag} is {_in_words(now)}, and the federation has begun with {_in_words(before)}: its "
                f"model follows from the sealed sum with that, so give {_in_words(before)}; or {anew}"
            )


def _in_words(value: object) -> str:
    return " ".join(value) or "no pattern" if isinstance(value, tuple) else str(value)


_STAYS: Final = {
    "key": "the key of sealed",
    "clip": "sealed_clip",
    "buffer_size": "buffer_size",
    "greatest": "the weight of a fresh update, which follows from strategy, buffer_size and sealed_clip,",
    "server_learning_rate": "server_learning_rate",
    "only": "sealed_only",
}
