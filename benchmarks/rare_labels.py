"""Digits whose rare labels only the slowest site has: the hard case for asynchronous training.

    fluffle simulate --task benchmarks.rare_labels:task --split dirichlet:0.5 --clients 4

All eights and nines are at the last site, which `--device-seconds spread:...` makes the slowest. The held-out
examples are eights and nines alone, so that the accuracy is the recall of the rare labels.
"""

import numpy as np

from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks.digits import Images, Labels, build_model
from fluffle_worker.tasks.digits import eval_data as all_held_out
from fluffle_worker.tasks.digits import train_data as dealt_out

RARE = (8, 9)


def train_data(site: Site) -> tuple[Images, Labels]:
    """Return this site's share without the rare labels; the last one has those of all."""
    sites = range(site.count) if site.index == site.count - 1 else [site.index]
    parts = [_part(site, index) for index in sites]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def eval_data() -> tuple[Images, Labels]:
    """Return the rare ones of what digits holds out."""
    images, labels = all_held_out()
    is_rare = np.isin(labels, RARE)
    return images[is_rare], labels[is_rare]


def _part(site: Site, index: int) -> tuple[Images, Labels]:
    """Return what a site has of another one's share: its rare labels, or the others of its own."""
    images, labels = dealt_out(Site(index=index, count=site.count, split=site.split, seed=site.seed))
    is_rare = np.isin(labels, RARE)
    is_kept = is_rare | (index == site.count - 1) if site.index == site.count - 1 else ~is_rare
    return images[is_kept], labels[is_kept]


task = KerasTask(build_model, train_data, eval_data)
