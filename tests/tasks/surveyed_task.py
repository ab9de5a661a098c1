"""A task without Keras that answers to a survey: wines, whose columns its sites measure in different units.

`TEST_ODD_SITE=2` lets that site have one column less, and `TEST_LIAR=1` lets that one claim
a billion rows.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_wine

from fluffle.errors import TaskError
from fluffle.model import Weights
from fluffle.plan import Plan
from fluffle.survey import DataStatistics, SurveyResult, statistics_of
from fluffle.task import Progress, Site, Trained

CLASSES = 3
NAMES = tuple(load_wine().feature_names)
Floats = NDArray[np.float64]


def wines_of(site: Site) -> tuple[Floats, NDArray[np.int64]]:
    """Return what a site has of three quarters of the wines."""
    values, labels = load_wine(return_X_y=True)
    mine = (np.arange(labels.size) % 4 != 0) & (np.arange(labels.size) % site.count == site.index)
    return values[mine], labels[mine].astype(np.int64)


class Wines:
    """Softmax regression on columns that are scaled as the survey says, and not at all without one."""

    def __init__(self) -> None:
        self._site = Site()
        self._statistics: SurveyResult | None = None

    def initial_weights(self, seed: int) -> Weights:
        """See Task."""
        return {"kernel": np.zeros((len(NAMES), CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}

    def prepare(self, site: Site) -> int:
        """See Task."""
        self._site, self._statistics = site, site.statistics
        return wines_of(site)[1].size

    def statistics(self) -> DataStatistics:
        """See SurveyedTask."""
        x, y = wines_of(self._site)
        is_odd = os.environ.get("TEST_ODD_SITE") == str(self._site.index)
        names = NAMES[:-1] if is_odd else NAMES
        found = statistics_of(x[:, : len(names)], y, names=names, classes=CLASSES)
        if os.environ.get("TEST_LIAR") != str(self._site.index):
            return found
        billion = 1_000_000_001
        missing = [replace(each, missing=billion - each.count) for each in found.columns]
        return replace(found, rows=billion, columns=tuple(missing))

    def use_statistics(self, statistics: SurveyResult) -> None:
        """See SurveyedTask."""
        self._statistics = statistics

    def train(self, weights: Weights, plan: Plan, *, seed: int, progress: Progress) -> Trained:
        """See Task."""
        x, y = wines_of(self._site)
        kernel, bias = (weights[name].astype(np.float64) for name in ("kernel", "bias"))
        scaled = self._scaled(x)
        for step in range(1, 11):
            error = _probabilities(scaled, kernel, bias) - np.eye(CLASSES)[y]
            kernel -= 0.5 * scaled.T @ error / y.size
            bias -= 0.5 * error.mean(axis=0)
            progress(step, 10)
        loss = -np.log(_probabilities(scaled, kernel, bias)[np.arange(y.size), y] + 1e-9).mean()
        trained = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
        return Trained(trained, y.size, {"loss": float(loss)})

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """See Task."""
        values, labels = load_wine(return_X_y=True)
        x, y = values[::4], labels[::4]
        kernel, bias = (weights[name].astype(np.float64) for name in ("kernel", "bias"))
        found = _probabilities(self._scaled(x), kernel, bias).argmax(axis=1)
        return {"accuracy": float((found == y).mean())}

    def save(self, weights: Weights, path: Path) -> None:
        """See Task."""
        raise TaskError("there is no file for it")

    def load(self, path: Path) -> Weights:
        """See Task."""
        raise TaskError("there is no file for it")

    def _scaled(self, x: Floats) -> Floats:
        if self._statistics is None:
            return x
        return (x - self._statistics.mean) / self._statistics.deviation


def _probabilities(x: Floats, kernel: Floats, bias: Floats) -> Floats:
    logits = x @ kernel + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


task = Wines()
