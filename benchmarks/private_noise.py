"""How much noise a model has with correlated noise, beside plain noise of the same epsilon.

    python -m benchmarks.private_noise

Of each run the noise of all versions is made, as an aggregator makes it, and added up as a model adds it up.
`ratio` is the root mean square over all versions and elements, divided by that of plain noise with which each
worker has the same epsilon: to reach, at most 0.4 after 500 versions with a separation of 10. `computed` is
what `fluffle.privacy.correlated` says, by which an aggregator chooses its bands. The ratio does not depend on
epsilon.
"""

import argparse
import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from benchmarks.measuring import Cell, Report, Spread, wide_console
from fluffle.privacy.correlated import noise_against_plain
from fluffle.privacy.gaussian_noise import GaussianNoise
from fluffle.privacy.grid import Grid
from fluffle.privacy.noise import KEY_BYTES, NoiseSequence
from fluffle.privacy.promise import PrivacyTarget

# Versions, the separation, and the updates of a worker.
RUNS: Final = (
    (100, 10, 8),
    (160, 20, 8),
    *((500, 10, updates) for updates in (1, 2, 4, 8, 16, 32, 50)),
    (500, 1, 8),
    (500, 60, 8),
    (2000, 64, 32),
)
BANDS: Final = (16, 64)
EPSILON: Final = 8.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="private_noise", description="Measure correlated and plain noise.")
    parser.add_argument("--size", type=int, default=2000, help="elements of the model")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    report = Report("private-noise", "private noise: correlated beside plain, at the same epsilon")
    for steps, separation, updates in RUNS:
        for bands in BANDS:
            with report.row() as row:
                row.update(
                    beside_plain(
                        steps, separation, updates, bands, size=arguments.size, repeats=arguments.repeats
                    )
                )
    report.show(wide_console())


def beside_plain(
    steps: int, separation: int, updates: int, most_bands: int, *, size: int, repeats: int
) -> Mapping[str, Cell | Spread]:
    """Make both kinds of noise with different keys, and return the row."""
    correlated, plain = (
        PrivacyTarget(
            epsilon=EPSILON, clip=1.0, updates=updates, separation=separation, correlated=is_correlated
        ).gaussian_noise(steps, most_bands)
        for is_correlated in (True, False)
    )
    ratios = (
        noise_in_models(correlated, steps, size, seed) / noise_in_models(plain, steps, size, seed)
        for seed in range(repeats)
    )
    return {
        "versions": steps,
        "separation": separation,
        "updates": updates,
        "most_bands": most_bands,
        "bands": correlated.bands,
        "computed": noise_against_plain(steps, updates, separation, correlated.bands),
        "ratio": Spread(tuple(ratios)),
    }


def noise_in_models(noise: GaussianNoise, steps: int, size: int, seed: int) -> float:
    """Return the root mean square of the noise in all versions of a run."""
    grid = Grid.for_noise(noise.std, noise.clip, size)
    sequence = NoiseSequence(noise.coefficients, noise.std / grid.step, size, kept=noise.bands)
    model, squares = np.zeros(size, np.int64), 0.0
    for step in range(steps):
        key = b"".join(number.to_bytes(KEY_BYTES // 2) for number in (seed, step))
        sequence.add_next(key, model)
        squares += float(np.mean(np.square(model * grid.step)))
    return math.sqrt(squares / steps)


if __name__ == "__main__":
    main()
