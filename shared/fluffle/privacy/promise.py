"""What a person asks for, and what is promised in return, in a sentence. Pure."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from fluffle.errors import ConfigError
from fluffle.privacy.correlated import best_bands
from fluffle.privacy.gaussian import guess_rate
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.skellam import SkellamNoise

Mechanism = Literal["central", "distributed", "local"]
NoiseKind = Literal["correlated", "plain"]
# Beyond this there is next to no noise.
MOST_EPSILON: Final = 1000.0
# So many sums are enough, and their noise is computed in a second.
MOST_SUMS: Final = 1_000_000
# Beyond these, noise and updates have no room in a model's float32 numbers.
LEAST_CLIP: Final = 1e-9
MOST_CLIP: Final = 1e30
USUAL_BANDS: Final = 16

# What somebody does who guesses about one worker.
GUESSING: Final = {
    "central": "sees all versions of the model and guesses whether the updates of one worker are in them",
    "local": "sees all that one worker sends, as the aggregator does, and guesses whether it is mere noise",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTarget:
    """The privacy that each worker is to have, and how much it may take part.

    A worker sends at most so many `updates` in the run, each at least `separation` versions after the one
    before, and clipped to an L2 norm of `clip`. With the mechanism `central` the aggregator adds noise to
    each sum, with `distributed` the workers of a sum do so together, and with `local` each worker adds all of
    it to each of its updates. Only the aggregator can add noise that is `correlated` over versions. With an
    `adaptive` clip, `clip` is the first one. Raises ConfigError when nothing could keep to that.
    """

    epsilon: float
    clip: float
    updates: int
    delta: float = 1e-5
    separation: int = 1
    mechanism: Mechanism = "central"
    correlated: bool = False
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MOST_EPSILON:
            raise ConfigError(
                f"epsilon must be above 0 and at most {MOST_EPSILON:g}, not {self.epsilon:g}: 1 is strict, "
                "and 8 is usual"
            )
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta must be above 0 and below 1, not {self.delta:g}: 1e-5 is usual")
        if not LEAST_CLIP <= self.clip <= MOST_CLIP:
            raise ConfigError(f"the clip must be from {LEAST_CLIP:g} to {MOST_CLIP:g}, not {self.clip:g}")
        if self.updates < 1:
            raise ConfigError(f"a worker must be allowed at least 1 update, not {self.updates}")
        if self.separation < 1:
            raise ConfigError(
                f"the separation must be at least 1, not {self.separation}: no worker has two updates in one "
                "version"
            )
        if self.updates * self.separation > MOST_SUMS:
            raise ConfigError(
                f"a worker's updates (dp_max_updates) times their separation must be at most {MOST_SUMS:,}, "
                f"not {self.updates:,} times {self.separation:,}"
            )
        if self.correlated and self.mechanism != "central":
            raise ConfigError(
                f"noise cannot be correlated with the mechanism {self.mechanism}, where nobody knows the "
                "noise of the versions before: take plain noise, or the mechanism central"
            )

        if self.adaptive and self.mechanism != "central":
            raise ConfigError(
                f"no clip can be adaptive with the mechanism {self.mechanism}, where nobody sees how long "
                "an update is: give a number"
            )
        if self.adaptive and self.correlated:
            raise ConfigError(
                "an adaptive clip needs plain noise, since correlated noise takes back a part of noise that "
                "was for another clip: give dp_noise plain, or a number as the clip"
            )

    def require_workers(self, workers: int, buffer_size: int) -> None:
        """Raise ConfigError when a federation of so many workers could not fill its buffers."""
        needed = self.separation * buffer_size
        if workers < needed:
            raise ConfigError(
                f"{workers} workers are too few: {self.separation} versions in a row, of {buffer_size} "
                f"updates each, need {needed} different workers; take a smaller separation or buffer_size"
            )

    def warnings(self, workers: int) -> list[str]:
        """Return what is allowed and yet protects little in a federation of so many workers."""
        if self.delta * workers <= 1:
            return []
        return [
            f"delta {self.delta:g} is more than 1 / {workers} workers: to publish all data of one worker, "
            f"drawn at random, would keep to that too; take {0.1 / workers:.0e} or less"
        ]

    def gaussian_noise(self, steps: int | None = None, most_bands: int = USUAL_BANDS) -> GaussianNoise:
        """Return the noise for the mechanisms central and local; `steps` is the expected number of versions.

        Without it, as many are expected as a worker needs to send all its updates. Each of the bands but one
        takes 8 bytes of memory for each parameter.
        """
        expected = self.updates * self.separation if steps is None else steps
        best = best_bands(expected, self.updates, self.separation, most_bands)
        return GaussianNoise.keeping(
            epsilon=self.epsilon,
            delta=self.delta,
            clip=self.clip,
            updates=self.updates,
            separation=self.separation,
            bands=best if self.correlated else 1,
        )

    def skellam_noise(self, *, levels: float, size: int, honest: int) -> SkellamNoise:
        """Return the noise for the mechanism distributed, where the clip is so many whole `levels`.

        An update has `size` elements, and each sum updates of at least so many `honest` workers. Raises
        ConfigError when nobody is honest, or numpy cannot draw so much noise exactly.
        """
        try:
            return SkellamNoise.keeping(
                epsilon=self.epsilon,
                delta=self.delta,
                updates=self.updates,
                clip=levels,
                size=size,
                honest=honest,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error


def promise(target: PrivacyTarget, noise: GaussianNoise | SkellamNoise) -> str:
    """Return what a target and its noise promise to each worker, for people."""
    if isinstance(noise, SkellamNoise):
        return promise_of_shares(target, noise.honest)
    right = math.ceil(100 * guess_rate(noise.mu))
    return _promise(
        target,
        f"Whoever {GUESSING[target.mechanism]} is right at most {right} times in 100, where tossing a coin "
        "is right 50 times",
    )


def promise_of_shares(target: PrivacyTarget, honest: int) -> str:
    """Return what shares of noise promise to each worker, as long as so many of each sum are honest."""
    return _promise(
        target,
        f"As long as {honest} workers of each sum are honest, nothing that the sums show, also to the "
        f"aggregator, is more than e^{target.epsilon:g} times as likely with the updates of one worker as "
        f"without them, but for a chance of {target.delta:g}",
    )


def _promise(target: PrivacyTarget, said: str) -> str:
    numbers = f"epsilon {target.epsilon:g}, delta {target.delta:g}, at most {target.updates} updates"
    return f"{said} ({numbers}); who sends updates, and when, is not protected."
