"""The tasks of the scenes of `uneven.py`: rare classes, and dirty data at half of the sites."""

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper_tasks import Data, build_model, smaller, whole
from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.splits import split_indices
from fluffle_worker.tasks import digits, fashion_mnist

CLASSES: Final = 10
MOST: Final = 2000
Digits = tuple[digits.Images, digits.Labels]
# Shares of the pixels and of the labels.
MISSING: Final = 0.2
OUTLIERS: Final = 0.05
WRONG_LABELS: Final = 0.1
# Outliers are 10 to 100, with either sign, drawn log-uniformly; pixels are 0 to 1.
OUTLIER_DIGITS: Final = (1.0, 2.0)


@lru_cache(1)
def long_tail_of(seed: int, imbalance: float) -> Data:
    """Return pictures of clothing of which the rarest class has 1 / `imbalance` of the most frequent one's.

    The numbers of the classes are a geometric sequence; the seed draws which class is how rare.
    """
    pictures, labels = whole()
    rng = np.random.default_rng([seed, 3])
    kept: list[NDArray[np.int64]] = []
    for rank, label in enumerate(rng.permutation(CLASSES)):
        own = np.flatnonzero(labels == label)
        wanted = round(MOST * imbalance ** (-rank / (CLASSES - 1)))
        kept.append(rng.choice(own, min(wanted, own.size), replace=False))
    chosen = np.sort(np.concatenate(kept))
    return pictures[chosen], labels[chosen]


def _clothes(imbalance: float) -> KerasTask:
    def train_data(site: Site) -> Data:
        pictures, labels = long_tail_of(site.seed, imbalance)
        mine = split_indices(labels, split=site.split, sites=site.count, seed=site.seed)[site.index]
        return pictures[mine], labels[mine]

    return KerasTask(build_model, train_data, all_test_pictures)


def all_test_pictures() -> Data:
    """Return the 10,000 test pictures, 1,000 of each class: the accuracy is the macro recall."""
    return smaller(*fashion_mnist.eval_data())


def dirty(images: digits.Images, labels: digits.Labels, rng: np.random.Generator) -> Digits:
    """Return images with missing pixels, gross outliers and wrong labels, in the shares above."""
    shape = images.shape
    size = 10 ** rng.uniform(*OUTLIER_DIGITS, shape)
    outliers = rng.choice([-1.0, 1.0], shape) * size
    pixels = np.where(rng.random(shape) < OUTLIERS, outliers, images)
    pixels = np.where(rng.random(shape) < MISSING, np.nan, pixels)
    is_wrong = rng.random(len(labels)) < WRONG_LABELS
    others = (labels + rng.integers(1, CLASSES, len(labels))) % CLASSES
    return pixels.astype(np.float32), np.where(is_wrong, others, labels)


def _digits(at_half: str) -> KerasTask:
    """Return digits; the sites of odd number are clean, dirty, or dirty with zeros for what is missing."""

    def train_data(site: Site) -> Digits:
        images, labels = digits.train_data(site)
        if at_half == "clean" or site.index % 2 == 0:
            return images, labels
        images, labels = dirty(images, labels, np.random.default_rng([site.seed, site.index, 5]))
        return (np.nan_to_num(images) if at_half == "zeros" else images), labels

    return KerasTask(digits.build_model, train_data, digits.eval_data)


def _clean_half() -> KerasTask:
    """Return the clean half of the sites alone: site i of n is site 2i of 2n."""

    def train_data(site: Site) -> Digits:
        return digits.train_data(replace(site, index=2 * site.index, count=2 * site.count))

    return KerasTask(digits.build_model, train_data, digits.eval_data)


long_tail, balanced = _clothes(100.0), _clothes(1.0)
clean_digits, dirty_digits, zero_filled_digits = map(_digits, ("clean", "dirty", "zeros"))
clean_half_of_digits = _clean_half()
