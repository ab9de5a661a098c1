"""Augmentation of minibatches of tables and sequences. Pure; that of images is Keras's.

Each function gets inputs as floats, tables [rows, columns] or sequences [rows, steps, channels], and the
`Spread` of the training rows, and returns others of the same shape. Evaluation data is never augmented.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError

Array = NDArray[Any]
# How many axes the inputs have, with that of the rows.
TABLE, SEQUENCE, IMAGE = 2, 3, 4


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Mean and deviation of each column or channel [last axis] of the training rows, and the extremes.

    `is_whole` says that the values are of an integer type, as the numbers of tokens are.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    lowest: float
    highest: float
    is_whole: bool


Augment = Callable[[Array, float, Spread, np.random.Generator], Array]


def spread_of(x: Array) -> Spread:
    """Return the spread of training rows."""
    axes = tuple(range(x.ndim - 1))
    mean, deviation = x.mean(axis=axes, dtype=np.float64), x.std(axis=axes, dtype=np.float64)
    return Spread(mean, deviation, float(x.min()), float(x.max()), x.dtype.kind in "iu")


def noise(x: Array, share: float, spread: Spread, rng: np.random.Generator) -> Array:
    """Add normal noise of `share` standard deviations of each column or channel."""
    return np.asarray(x + share * spread.deviation * rng.standard_normal(x.shape))


def mask(x: Array, share: float, spread: Spread, rng: np.random.Generator) -> Array:
    """Set each value to the mean of its column with the probability `share`."""
    return np.where(rng.random(x.shape) < share, spread.mean, x)


def scale(x: Array, share: float, _spread: Spread, rng: np.random.Generator) -> Array:
    """Multiply each channel of each sequence by a number around 1 with the standard deviation `share`."""
    return np.asarray(x * (1 + share * rng.standard_normal((len(x), 1, x.shape[2]))))


def crop(x: Array, share: float, _spread: Spread, rng: np.random.Generator) -> Array:
    """Cut a window of `share` of the steps out of each sequence, and stretch it to the former length."""
    steps = x.shape[1]
    first = rng.random(len(x)) * (1 - share) * (steps - 1)
    places = first[:, None] + np.arange(steps) * share
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, steps - 1)
    part = (places - low)[:, :, None]
    row = np.arange(len(x))[:, None]
    return np.asarray(x[row, low] * (1 - part) + x[row, high] * part)


def time_mask(x: Array, share: float, spread: Spread, rng: np.random.Generator) -> Array:
    """Set one window of `share` of the steps of each sequence, at least 1, to the mean of each channel."""
    steps = x.shape[1]
    width = max(1, round(share * steps))
    first = rng.integers(0, steps - width + 1, len(x))
    place = np.arange(steps)
    is_masked = (place >= first[:, None]) & (place < first[:, None] + width)
    return np.where(is_masked[:, :, None], spread.mean, x)


def mixup(x: Array, alpha: float, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64], Array]:
    """Return lam * x + (1 - lam) * x of a partner, and each row's partner and lam; lam is Beta(alpha, alpha).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018).
    """
    partner = rng.permutation(len(x))
    lam = rng.beta(alpha, alpha, len(x))
    of_row = lam.reshape(-1, *[1] * (x.ndim - 1))
    return np.asarray(of_row * x + (1 - of_row) * x[partner]), partner, lam


def paired(parts: tuple[Any, ...], x: Array, partner: NDArray[np.int64], lam: Array) -> tuple[Any, ...]:
    """Return mixed inputs twice: with their own label and the weight lam, and their partner's and 1 - lam.

    `parts` are (x, y) or (x, y, sample_weight), of which `x` takes the place. The mean loss over these rows
    is that of mixed labels, for any form of labels and any loss. A row's own weight multiplies its share.
    """
    if len(parts) < 2:
        raise TaskError(
            "augment with mixup or cutmix mixes labels, and train_data returned x without y: leave it out"
        )
    own = np.ones(len(x)) if len(parts) < 3 else np.asarray(parts[2], np.float64).reshape(-1)
    weights = np.concatenate([2 * lam * own, 2 * (1 - lam) * own[partner]])
    return (
        np.concatenate([x, x]),
        _twice(parts[1], partner),
        weights.astype(np.float32),
    )


def _twice(y: Any, partner: NDArray[np.int64]) -> Any:
    """Return labels, or those of each output, and behind them those of the partners."""
    if isinstance(y, dict):
        return {key: _twice(each, partner) for key, each in y.items()}
    if isinstance(y, tuple):
        return tuple(_twice(each, partner) for each in y)
    labels = np.asarray(y)
    return np.concatenate([labels, labels[partner]])


# The function for each name, and the number of axes that inputs must have.
OF_VALUES: Final[Mapping[str, tuple[Augment, int]]] = {
    "noise": (noise, TABLE),
    "mask": (mask, TABLE),
    "jitter": (noise, SEQUENCE),
    "scale": (scale, SEQUENCE),
    "crop": (crop, SEQUENCE),
    "time_mask": (time_mask, SEQUENCE),
}
