"""Regression: how far diabetes has progressed after one year, from ten measurements of a patient.

The data is the copy that scikit-learn brings with it (442 patients; Efron et al., "Least Angle Regression",
2004), so nothing is downloaded. A fifth is held out, the same everywhere; the rest is split among the sites.

Inputs and targets are standardised: with targets of 25 to 346 a network this small would spend its first
thousand steps on learning their mean. So the loss is in units of the targets' variance: 1.0 is what
predicting the mean gives, and 0.5 means that half of the variance is explained.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.splits import split_indices

Floats = NDArray[np.float32]


def build_model() -> KerasModel:
    """Return a network with one hidden layer of 10 units: 121 parameters."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(10, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    # Each round starts with a fresh Adam, so its steps are larger than Keras's default of 0.001.
    model.compile(keras.optimizers.Adam(0.005), loss="mean_squared_error", metrics=["mae"])
    return model


def train_data(site: Site) -> tuple[Floats, Floats]:
    """Return this site's share: measurements [examples, 10] and targets [examples, 1], both standardised."""
    measurements, targets = _examples(held_out=False)
    mine = split_indices(targets, split=site.split, sites=site.count, seed=site.seed)[site.index]
    return measurements[mine], targets[mine]


def eval_data() -> tuple[Floats, Floats]:
    """Return the held-out fifth."""
    return _examples(held_out=True)


def _examples(*, held_out: bool) -> tuple[Floats, Floats]:
    measurements, targets = load_diabetes(return_X_y=True)
    # Each fifth patient in the order of the targets: the held-out ones are distributed like all.
    is_held_out = np.zeros(targets.size, bool)
    is_held_out[np.argsort(targets, kind="stable")[::5]] = True
    chosen = is_held_out if held_out else ~is_held_out
    kept = ~is_held_out
    measurements = (measurements - measurements[kept].mean(axis=0)) / measurements[kept].std(axis=0)
    targets = (targets - targets[kept].mean()) / targets[kept].std()
    return measurements[chosen].astype(np.float32), targets[chosen, None].astype(np.float32)


task = KerasTask(build_model, train_data, eval_data)
