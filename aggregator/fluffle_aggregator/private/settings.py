"""The settings of differential privacy, and the plan that follows from them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from fluffle.errors import ConfigError
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.promise import Mechanism, NoiseKind, PrivacyTarget, promise_of_shares
from fluffle.privacy.shares import SharedSums
from fluffle_aggregator.choices import readable_by

if TYPE_CHECKING:
    from fluffle_aggregator.private.starting import PrivateStart

ADAPTIVE: Final = "adaptive"
# Updates are longer than that nearly always, and the clip grows by a tenth with each sum.
FIRST_CLIP: Final = 0.1
NEEDED: Final = {
    "dp_epsilon": "such as 8: the smaller, the more private",
    "dp_clip": "the L2 norm that updates are clipped to, such as 1",
    "dp_max_updates": "the number of updates that each worker sends in all, such as 20",
}
# Where the aggregator adds the noise.
NEEDED_FOR_CENTRAL: Final = {
    "dp_secret": "a file that `fluffle privacy secret FILE` makes, and that all aggregators have",
}
OPTIONAL: Final = ("dp_delta", "dp_separation", "dp_noise")


def parse_clip(text: str) -> tuple[float, bool]:
    """Return the L2 norm of a clip, or the first one of "adaptive:0.1", and True.

    Raises ValueError, which says what is expected.
    """
    word, _, number = text.partition(":")
    is_adaptive = word == ADAPTIVE
    try:
        clip = float(number or FIRST_CLIP) if is_adaptive and text != f"{ADAPTIVE}:" else float(text)
    except ValueError:
        clip = 0.0
    if not 0 < clip < math.inf:
        raise ValueError(f"must be a number above 0 such as 1, or {ADAPTIVE} or {ADAPTIVE}:0.1, not {text!r}")
    return clip, is_adaptive


def as_text(value: object) -> object:
    """Return a number of a TOML file or of Python as the text that it is."""
    return f"{value!r}" if type(value) in (int, float) else value


class PrivacySettings(BaseModel):
    """The settings of differential privacy."""

    # Whether the noise follows from a secret in a file.
    has_noise_secret: ClassVar[bool] = True

    dp: Mechanism | None = Field(
        None,
        description="Differential privacy: central lets the aggregator clip each update, and add noise to "
        "each sum before anybody sees it, and needs dp_secret; with distributed each worker adds its share "
        "under secure_aggregation, so that the aggregator sees no sum with less noise; with local each "
        "worker adds all the noise to each update, which nobody sees without. The unit is one worker, with "
        "all its updates. Needs dp_epsilon, dp_clip and dp_max_updates. The strategy is then fedbuff unless "
        "given.",
    )
    dp_epsilon: float | None = Field(
        None,
        description="The epsilon of each worker for the whole run: 1 is strict, 8 is usual. The noise "
        "follows from it.",
    )
    dp_delta: float = Field(
        1e-5, description="The delta of each worker: take less than 1 / number of workers."
    )
    dp_clip: Annotated[str, BeforeValidator(as_text), readable_by(parse_clip)] | None = Field(
        None,
        description="L2 norm that each update is clipped to; the noise grows with it. With adaptive, or "
        f"adaptive:START ({FIRST_CLIP:g}), it follows the median of the norms, for plain noise of the "
        "mechanism central; what that shows is accounted for.",
    )
    dp_max_updates: int | None = Field(
        None,
        description="Most updates of one worker in the whole run. It sends no more, and leaves when they are "
        "in the model.",
    )
    dp_separation: int = Field(
        1,
        description="Fewest sums from one update of a worker to its next. With more, noise that is "
        "correlated from sum to sum adds up to less.",
    )
    dp_noise: NoiseKind = Field(
        "correlated",
        description="Noise that the aggregator adds: correlated noise takes back a part of the noise of "
        "earlier sums, so that less adds up in the model; plain noise is independent from sum to sum.",
    )
    dp_secret: Path | None = Field(
        None,
        description="File with the secret of the noise, which all aggregators of the federation have, and "
        "nobody else: made by `fluffle privacy secret FILE`.",
    )

    @model_validator(mode="after")
    def _needs_and_has_an_effect(self) -> Self:
        needed = NEEDED | (NEEDED_FOR_CENTRAL if self.has_noise_secret else {})
        given = [name for name in (*needed, *OPTIONAL) if name in self.model_fields_set]
        if self.dp is None:
            if idle := [name for name in given if getattr(self, name) is not None]:
                raise ValueError(f"{idle[0]} has no effect without dp: give dp central too, or neither")
            return self
        if self.dp != "central":
            needed = NEEDED
        for name, what in needed.items():
            if getattr(self, name) is None:
                raise ValueError(f"dp {self.dp} needs {name}, {what}")
        return self

    def given(self) -> dict[str, object]:
        """Return the settings of this process that were given, of which not all go together with dp."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def privacy_target(self) -> PrivacyTarget | None:
        """Return what each worker is promised; None without dp. Raises ConfigError for what cannot be."""
        if self.dp is None or self.dp_epsilon is None or self.dp_clip is None or self.dp_max_updates is None:
            return None
        clip, is_adaptive = parse_clip(self.dp_clip)
        return PrivacyTarget(
            epsilon=self.dp_epsilon,
            delta=self.dp_delta,
            clip=clip,
            adaptive=is_adaptive,
            updates=self.dp_max_updates,
            separation=self.dp_separation,
            mechanism=self.dp,
            correlated=self.dp == "central" and self.dp_noise == "correlated",
        )

    def new_privacy_plan(self, buffer_size: int = 1) -> PrivacyPlan | None:
        """Return the plan of a new federation; None without dp, and where it needs the size of the model."""
        target = self.privacy_target()
        if target is None or target.mechanism == "distributed":
            return None
        return PrivacyPlan.keeping(target, buffer_size=buffer_size)

    def begin_privately(
        self, buffer_size: int, shared_sums: Callable[[int], SharedSums]
    ) -> "PrivateStart | None":
        """Read the secret, and log what is promised; None without dp.

        For a model of a size, `shared_sums` tells of the sums to which workers add their shares.
        """
        target, asked = self.privacy_target(), self.new_privacy_plan(buffer_size)
        if target is None:
            return None
        # Only here: the library of ciphers takes long to load.
        from fluffle_aggregator.private.starting import PrivateStart, SecretFile, say_promise

        if asked is None:
            say_promise(promise_of_shares(target, shared_sums(1).honest))
            return PrivateStart(lambda layout: shared_sums(layout.size).new_plan(target))
        secret = SecretFile.reading(self.dp_secret) if self.dp_secret else None
        say_promise(asked.promise)
        return PrivateStart(lambda _: asked, secret)


def same_privacy_plan(
    target: PrivacyTarget | None, begun: PrivacyPlan | None, *, honest: int = 0
) -> PrivacyPlan | None:
    """Return the plan of a federation that has `begun`, if the settings ask for the same.

    With shares of noise, so many workers of each sum are to be `honest`. The noise is taken as it is: another
    machine may compute other last bits. Raises ConfigError for other settings: what has been promised to
    workers stays.
    """
    if target is None and begun is None:
        return None
    anew = "begin a new federation (--federation), with --initial-model to go on from this model"
    if begun is None:
        raise ConfigError(
            "dp cannot begin in a federation that runs without it, since its versions may tell of any "
            f"worker: {anew}"
        )
    if target is None:
        raise ConfigError(
            f"the federation has promised differential privacy (epsilon {begun.epsilon:g}), which cannot be "
            f"taken back: give the same dp settings as before; or {anew}"
        )
    asked = {flag: (getattr(begun, name), getattr(target, name)) for name, flag in _PROMISED.items()}
    asked["dp_clip"] = _clip_in_words(begun.target), _clip_in_words(target)
    if begun.shares:
        asked["secure_min_workers"] = (begun.shares.honest, honest)
    else:
        asked["dp_noise"] = _noise_kind(begun), _noise_kind(PrivacyPlan.keeping(target))
    for flag, (before, now) in asked.items():
        if before != now:
            raise ConfigError(
                f"{flag} is {now}, and the federation has begun with {before}: what is promised to its "
                f"workers stays, so give {before}; or {anew}"
            )
    return begun


def _clip_in_words(target: PrivacyTarget) -> str:
    return f"{ADAPTIVE}:{target.clip!r}" if target.adaptive else repr(target.clip)


def _noise_kind(plan: PrivacyPlan) -> NoiseKind:
    """Return the kind of noise of a plan; where correlated noise is of no use, it is plain."""
    return "correlated" if plan.bands > 1 else "plain"


_PROMISED: Final = {
    "mechanism": "dp",
    "epsilon": "dp_epsilon",
    "delta": "dp_delta",
    "updates": "dp_max_updates",
    "separation": "dp_separation",
}
