"""A task in numpy that trains on given rows, as a site on Spark gives them: pixels and a digit."""

from collections.abc import Callable
from copy import copy
from typing import Any, Self

import numpy as np
from numpy_task import HELD_OUT, SoftmaxRegression

from fluffle.task import Site

TrainData = Callable[[Site], Any]


class DigitsOfRows(SoftmaxRegression):
    """Softmax regression, held out as in the example, trained on other rows."""

    _train_data: TrainData | None = None

    def with_train_data(self, train_data: TrainData) -> Self:
        """Return a task that trains on what this function returns."""
        other = copy(self)
        other._train_data = train_data
        return other

    def prepare(self, site: Site) -> int:
        """Take the given rows."""
        if self._train_data is None:
            return super().prepare(site)
        pixels, digits = self._train_data(site)
        self._images = np.concatenate([self._images[:HELD_OUT], pixels.astype(np.float64) / 16])
        self._labels = np.concatenate([self._labels[:HELD_OUT], digits])
        self._mine = np.arange(HELD_OUT, self._labels.size)
        return int(self._mine.size)


task = DigitsOfRows()
