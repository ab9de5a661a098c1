"""Digits at sites that number four of the ten labels in their own way; the last layer stays at its site."""

import numpy as np

from benchmarks.uneven_heads import build_model, meaning_at
from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks import digits
from fluffle_worker.tasks.digits import Images, Labels


def train_data(site: Site) -> tuple[Images, Labels]:
    """Return every count-th example under the names that this site has for the digits."""
    images, labels = digits.train_data(Site(split="iid"))
    mine = np.arange(site.index, len(labels), site.count)
    return images[mine], meaning_at(site.index, 0)[labels[mine]]


task = KerasTask(build_model, train_data, local=["head/*"])
