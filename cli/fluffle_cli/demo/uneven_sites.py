"""The task of `fluffle demo --sites uneven`: digits at five sites that differ in data and machines."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from fluffle.task import Site
from fluffle_cli.demo.setups import GAPS, LONG_TAILED, SLOW, SMALL, UNEVEN_SITES
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks import digits
from fluffle_worker.tasks.digits import Images, Labels

# Of digit 0 a long-tailed site has so many examples, of digit 9 a hundredth of that, and at least one.
MOST_OF_A_CLASS: Final = 60
IMBALANCE: Final = 100
# How the other examples of each digit are shared: most rare digits are at the site with missing values.
SHARES: Final[Mapping[str, float]] = {GAPS: 0.93, SLOW: 0.05, SMALL: 0.02}
MISSING: Final = 0.2


def train_data(site: Site) -> tuple[Images, Labels]:
    """Return this site's pixels [examples, 64] in 0..1, some of which are NaN at one site, and its labels.

    Of one site only, these are all digits, without a fault.
    """
    images, labels = digits.train_data(Site(split="iid"))
    if site.count == 1:
        return images, labels
    rng = np.random.default_rng(site.seed)
    classes = np.unique(labels)
    mine = []
    for place, label in enumerate(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        tail = max(1, round(MOST_OF_A_CLASS * IMBALANCE ** (-place / (classes.size - 1))))
        left = rows.size - tail * len(LONG_TAILED)
        ends = np.cumsum([tail, tail, *(round(left * SHARES[name]) for name in (GAPS, SLOW))])
        mine.append(np.split(rows, ends)[site.index])
    chosen = np.concatenate(mine)
    found = images[chosen].copy()
    if UNEVEN_SITES[site.index] == GAPS:
        found[rng.random(found.shape) < MISSING] = np.nan
    return found, labels[chosen]


task = KerasTask(digits.build_model, train_data, digits.eval_data)
