"""What a promise would cost a federation: how much noise, and whether anything is learnt through it. Pure.

What the aggregator computes when it begins is computed here by the same functions, so both have the same
noise.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fluffle.errors import ConfigError
from fluffle.privacy.correlated import noise_after
from fluffle.privacy.gaussian import guess_rate
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Grid
from fluffle.privacy.promise import MOST_EPSILON, Mechanism, NoiseKind, PrivacyTarget, promise
from fluffle.privacy.shares import SharedSums, shares_of
from fluffle.privacy.skellam import MOST_VARIANCE, SkellamNoise
from fluffle.privacy.usefulness import NoisyRun

Noise = GaussianNoise | SkellamNoise
EPSILONS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Of the buffer size that was asked for.
BUFFERS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MOST_POINTS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRun:
    """A federation with differential privacy, in which all workers send all the updates that they may.

    `honest` is for the mechanism distributed: so many workers of each sum are honest at least.
    """

    workers: int
    buffer_size: int
    parameters: int
    updates: int
    separation: int
    clip: float
    delta: float
    mechanism: Mechanism
    correlated: bool
    honest: int

    @property
    def kinds(self) -> tuple[NoiseKind, ...]:
        """The noise that is asked for, and with correlated noise also plain one, to compare it with."""
        return ("correlated", "plain") if self.correlated else ("plain",)

    @property
    def versions(self) -> int:
        """How many versions the federation makes."""
        return max(1, self.workers * self.updates // self.buffer_size)

    def with_buffer(self, buffer_size: int) -> "PrivateRun":
        """Return this federation with another buffer, of which the same share is honest."""
        honest = max(1, self.honest * buffer_size // self.buffer_size)
        return replace(self, buffer_size=buffer_size, honest=honest)

    def target(self, epsilon: float, kind: NoiseKind) -> PrivacyTarget:
        """Return what is promised. Raises ConfigError when nothing could keep to that."""
        return PrivacyTarget(
            epsilon=epsilon,
            delta=self.delta,
            clip=self.clip,
            updates=self.updates,
            separation=self.separation,
            mechanism=self.mechanism,
            correlated=kind == "correlated",
        )

    def noise_for(self, epsilon: float, kind: NoiseKind) -> Noise:
        """Return the least noise with this epsilon. Raises ConfigError when there is none."""
        target = self.target(epsilon, kind)
        if self.mechanism == "distributed":
            return shares_of(self._sums.new_plan(target))
        return target.gaussian_noise()

    @property
    def _sums(self) -> SharedSums:
        return SharedSums(size=self.parameters, honest=self.honest, buffer_size=self.buffer_size)

    def noise_of(self, multiplier: float, kind: NoiseKind) -> Noise:
        """Return noise with this multiplier. Raises ConfigError when it could not be drawn."""
        least = self.noise_for(MOST_EPSILON, kind)
        if isinstance(least, GaussianNoise):
            return replace(least, std=multiplier * self.clip)
        share = (multiplier * least.clip) ** 2 / self.honest
        if share > MOST_VARIANCE:
            raise ConfigError(f"so much noise as {multiplier:g} cannot be drawn exactly")
        return replace(least, share=share)

    def multiplier(self, noise: Noise) -> float:
        """Return the standard deviation of the noise that is counted on, divided by the clip."""
        return (
            noise.multiplier if isinstance(noise, GaussianNoise) else math.sqrt(noise.variance) / noise.clip
        )

    def epsilon(self, noise: Noise) -> float:
        """Return the epsilon of a worker that has sent all its updates.

        Raises ConfigError for one that no federation can have.
        """
        found = noise.epsilon_after(self.updates, self.delta)
        if 0 < found <= MOST_EPSILON:
            return found
        wanted = "more" if found else "less"
        raise ConfigError(
            f"with a noise multiplier of {self.multiplier(noise):g} epsilon is {found:.3g}, and it must be "
            f"above 0 and at most {MOST_EPSILON:g}: take {wanted} noise"
        )

    def numbers(self, epsilon: float, noise: Noise) -> "Numbers":
        """Return what noise means for this federation."""
        bands, memory_bytes, right_in_100, bits = 1, 0, None, None
        if isinstance(noise, GaussianNoise):
            std, bands, memory_bytes = noise.std, noise.bands, noise.memory_bytes(self.parameters)
            right_in_100 = math.ceil(100 * guess_rate(noise.mu))
        else:
            # In a sum are the shares of all workers, also of those that are not counted on.
            std = math.sqrt(noise.share * self.buffer_size) * self.clip / noise.clip
            bits = noise.bits
        run = NoisyRun(
            workers=self.workers,
            updates=self.updates,
            separation=self.separation,
            buffer_size=self.buffer_size,
            size=self.parameters,
            clip=self.clip,
            std=std,
            bands=bands,
            to_each_update=self.mechanism == "local",
        )
        return Numbers(
            epsilon=epsilon,
            multiplier=self.multiplier(noise),
            right_in_100=right_in_100,
            memory_bytes=memory_bytes,
            bits=bits,
            run=run,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What one kind of noise means for a federation.

    `right_in_100` says how often whoever guesses about one worker is right, of 100 times; it is not known of
    noise in shares. `memory_bytes` is what correlated noise takes at the aggregator. With noise in shares
    updates are whole numbers of so many `bits`.
    """

    epsilon: float
    multiplier: float
    right_in_100: int | None
    memory_bytes: int
    bits: int | None
    run: NoisyRun

    @property
    def useful_buffer(self) -> int | None:
        """The smallest buffer in which the noise is shorter than the updates; None if there is none."""
        return replace(self.run, buffer_size=1).useful_buffer()

    def after_versions(self) -> list[tuple[float, float]]:
        """Return some versions, each with its noise divided by all updates of the run."""
        steps, bands = self.run.steps, self.run.bands
        part = self.run.noise_to_updates / noise_after(steps, bands)
        chosen = np.unique(np.geomspace(1, steps, min(steps, MOST_POINTS)).round().astype(int))
        return [(float(version), part * noise_after(version, bands)) for version in chosen.tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyNumbers:
    """All that `fluffle privacy plan` shows; the first of `by_kind` is the noise that was asked for."""

    asked: PrivateRun
    epsilon: float
    promise: str
    warnings: tuple[str, ...]
    by_kind: Mapping[NoiseKind, Numbers]

    @property
    def chosen(self) -> Numbers:
        """The numbers of the noise that was asked for."""
        return self.by_kind[self.asked.kinds[0]]

    def by_epsilon(self) -> Iterator[dict[NoiseKind, Numbers]]:
        """Yield the numbers for other epsilons too, smallest first; none where noise cannot be drawn."""
        others = [each for each in EPSILONS if not math.isclose(each, self.epsilon, rel_tol=1e-6)]
        for epsilon in sorted([*others, self.epsilon]):
            try:
                yield _by_kind(self.asked, epsilon)
            except ConfigError:
                continue

    def by_buffer_size(self) -> Iterator[dict[NoiseKind, Numbers]]:
        """Yield the numbers for other buffers too, smallest first: also the smallest useful one."""
        useful = self.chosen.useful_buffer or self.asked.buffer_size
        sizes = {max(1, round(factor * self.asked.buffer_size)) for factor in BUFFERS} | {useful}
        for size in sorted(size for size in sizes if size <= max(self.asked.workers, self.asked.buffer_size)):
            try:
                yield _by_kind(self.asked.with_buffer(size), self.epsilon)
            except ConfigError:
                continue


def numbers_for_epsilon(asked: PrivateRun, epsilon: float) -> PrivacyNumbers:
    """Return all numbers of the noise that an epsilon needs. Raises ConfigError when nothing keeps to it."""
    kind = asked.kinds[0]
    noise, target = asked.noise_for(epsilon, kind), asked.target(epsilon, kind)
    by_kind = _by_kind(asked, epsilon)
    return PrivacyNumbers(
        asked=asked,
        epsilon=epsilon,
        promise=promise(target, noise),
        warnings=tuple(_warnings(asked, target, by_kind[kind].run)),
        by_kind=by_kind,
    )


def numbers_for_noise(asked: PrivateRun, multiplier: float) -> PrivacyNumbers:
    """Return all numbers of the epsilon that noise gives. Raises ConfigError when it gives none."""
    return numbers_for_epsilon(asked, asked.epsilon(asked.noise_of(multiplier, asked.kinds[0])))


def _by_kind(asked: PrivateRun, epsilon: float) -> dict[NoiseKind, Numbers]:
    return {kind: asked.numbers(epsilon, asked.noise_for(epsilon, kind)) for kind in asked.kinds}


def _warnings(asked: PrivateRun, target: PrivacyTarget, run: NoisyRun) -> Iterator[str]:
    yield from target.warnings(asked.workers)
    try:
        target.require_workers(asked.workers, asked.buffer_size)
        if asked.mechanism != "distributed":
            Grid.for_noise(run.std, asked.clip, asked.parameters)
    except (ConfigError, ValueError) as error:
        yield str(error)
    yield from run.warnings()
