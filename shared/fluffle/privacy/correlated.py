"""Correlated noise: each buffer's noise takes back a part of the noise before it, so that less adds up. Pure.

A model is the sum of all buffers so far. Noise that is independent from buffer to buffer adds up in it. Here
the noise of buffer t is

    x_t = z_t + d_1 z_(t-1) + ... + d_(b-1) z_(t-b+1)

with independent Gaussian z_t and negative d_1, ..., d_(b-1). All sums together, with their noise, are the
matrix D applied to C G + z: the rows of G are the sums without noise, D is the lower triangular Toeplitz
matrix with the bands 1, d_1, ..., d_(b-1), and C is its inverse. So the whole run is one Gaussian mechanism,
whose sensitivity is that of C G. That also holds where updates depend on the versions before them.

With one band both matrices are 1, and this is the plain Gaussian mechanism: x_t = z_t.

Sources: Kalinin, McKenna, Upadhyay and Lampert, "Back to Square Roots" (2025, arXiv 2505.12128), for these
coefficients; Kalinin and Lampert, "Banded Square Root Matrix Factorization for Differentially Private Model
Training" (2024, arXiv 2405.13763), Theorem 2, for the sensitivity; Denisov et al., "Improved Differential
Privacy for SGD via Optimal Private Linear Operators on Adaptive Streams" (2022, arXiv 2202.08312), for
updates that depend on earlier versions.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# More bands take more memory and time, and give less and less.
CHOICES: Final[tuple[int, ...]] = (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
MOST_BANDS: Final = CHOICES[-1]
# What is smaller in C changes no bit of a sensitivity.
NEGLIGIBLE: Final = 2.0**-60


def coefficients(bands: int) -> tuple[float, ...]:
    """Return 1, d_1, ..., d_(bands-1): those of (1 - x)^(1/2).

    Raises ValueError for fewer than 1 band or more than MOST_BANDS.
    """
    if not 1 <= bands <= MOST_BANDS:
        raise ValueError(f"noise must have 1 to {MOST_BANDS} bands, not {bands}")
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (2 * j - 3) / (2 * j))
    return tuple(found)


@lru_cache
def sensitivity(updates: int, separation: int, bands: int) -> float:
    """Return how far one worker moves C G at most, when none of its updates is longer than 1.

    The worker has so many updates, each at least `separation` buffers after the one before it. No entry of C
    is negative, and down each column they never grow. So the worst case is that all updates are the same and
    as close together as they may be, from the first buffer on. Columns of C are taken in full, as if the run
    went on for ever: no run has a larger sensitivity. It is sqrt(updates) with one band.
    Raises ValueError when updates or separation are below 1.
    """
    if updates < 1 or separation < 1:
        raise ValueError(f"updates and separation must be at least 1, not {updates} and {separation}")
    column = _first_column(bands)
    total = np.zeros((updates - 1) * separation + column.size)
    for first in range(0, updates * separation, separation):
        total[first : first + column.size] += column
    return math.sqrt(float(total @ total))


def summed_noise(steps: int, bands: int) -> NDArray[np.float64]:
    """Return the standard deviations of x_1, x_1 + x_2, ... up to `steps` terms, where that of z_t is 1."""
    # How often z_t is in the sum, from its own buffer on.
    counts = np.cumsum(coefficients(bands))[:steps]
    later = np.full(steps - counts.size, counts[-1])
    variances: NDArray[np.float64] = np.cumsum(np.square(np.concatenate([counts, later])))
    return np.sqrt(variances)


def noise_after(steps: int, bands: int) -> float:
    """Return the last of those standard deviations, for any number of steps."""
    counts = np.cumsum(coefficients(bands))[:steps]
    return math.sqrt(float(counts @ counts) + (steps - counts.size) * float(counts[-1]) ** 2)


def noise_against_plain(steps: int, updates: int, separation: int, bands: int) -> float:
    """Return how much noise a model has, compared with plain noise of the same epsilon: below 1 is less.

    It is the root mean square over all versions of a run of so many steps.
    """
    noise = sensitivity(updates, separation, bands) * summed_noise(steps, bands)
    plain = math.sqrt(updates) * summed_noise(steps, 1)
    return math.sqrt(float(np.sum(np.square(noise)) / np.sum(np.square(plain))))


@lru_cache
def best_bands(steps: int, updates: int, separation: int, most: int) -> int:
    """Return the number of bands, of at most so many, with the least noise in a run of so many steps."""
    choices = (bands for bands in CHOICES if bands <= most)
    return min(choices, key=lambda bands: noise_against_plain(steps, updates, separation, bands))


def _first_column(bands: int) -> NDArray[np.float64]:
    """Return the first column of C, down to where it is negligible."""
    backwards = -np.array(coefficients(bands))[:0:-1]
    found = [*[0.0] * (bands - 1), 1.0]
    while bands > 1 and found[-1] > NEGLIGIBLE:
        found.append(float(backwards @ found[-bands + 1 :]))
    return np.array(found[bands - 1 :])
