"""The task of `python -m benchmarks.private_accuracy`: Fashion-MNIST, and 13,258 parameters in numpy."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks import paper_tasks
from fluffle.task import Site
from fluffle_cli.demo.small_network import Examples, OneHiddenLayer
from fluffle_worker.splits import split_indices
from fluffle_worker.tasks import fashion_mnist

# About the mean and the standard deviation of a pixel of clothes, in 0..1.
MEAN, DEVIATION = np.float32(0.29), np.float32(0.31)


@lru_cache(1)
def whole() -> Examples:
    """Return the 60,000 training pictures."""
    return scaled(*fashion_mnist.train_data(Site(split="iid")))


@lru_cache(1)
def parts(split: str, sites: int, seed: int) -> list[NDArray[np.int64]]:
    """Return which pictures each site has."""
    return split_indices(whole()[1], split=split, sites=sites, seed=seed)


def train_data(site: Site) -> Examples:
    """Return this site's share."""
    mine = parts(site.split, site.count, site.seed)[site.index]
    pictures, labels = whole()
    return pictures[mine], labels[mine]


def eval_data() -> Examples:
    """Return the 10,000 test pictures."""
    return scaled(*fashion_mnist.eval_data())


def scaled(pictures: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Examples:
    """Return pictures of 14x14 pixels with a mean of about 0 and a deviation of about 1, and their labels."""
    smaller, _ = paper_tasks.smaller(pictures, labels)
    return (smaller - MEAN) / DEVIATION, labels.astype(np.int64)


clothes = OneHiddenLayer(196, train_data, eval_data)
