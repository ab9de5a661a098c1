"""Tasks in plain numpy for benchmarks of many workers: one hidden layer, on the data of the ready tasks.

    fluffle worker --task benchmarks.small_networks:digits ...

What is measured with them is Fluffle. The data, the held-out fifth and the split are those of the ready
tasks.
"""

from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from fluffle.task import Site
from fluffle_cli.demo.small_network import Examples, OneHiddenLayer
from fluffle_worker.tasks import digits as digits_data
from fluffle_worker.tasks import fashion_mnist as fashion_data


def _flat_pixels(examples: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> Examples:
    images, labels = examples
    flat = images.reshape(len(images), prod(images.shape[1:]))
    return flat.astype(np.float32) / np.float32(255), labels.astype(np.int64)


@cache
def _all_digits() -> Examples:
    # Read once for all threads of a process: it takes a tenth of a second.
    return digits_data.train_data(Site(split="iid"))


def a_few_digits(site: Site) -> Examples:
    """Return 32 digits drawn for this site, however many sites there are; some sites share some of them."""
    images, labels = _all_digits()
    mine = np.random.default_rng([site.seed, site.index]).integers(0, labels.size, 32)
    return images[mine], labels[mine]


digits = OneHiddenLayer(64, digits_data.train_data, digits_data.eval_data)
fashion_mnist = OneHiddenLayer(
    784,
    lambda site: _flat_pixels(fashion_data.train_data(site)),
    lambda: _flat_pixels(fashion_data.eval_data()),
)
