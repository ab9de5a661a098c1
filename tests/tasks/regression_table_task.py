"""A regression on a data frame with gaps: the progression of diabetes, as a clinic would have it."""

import pandas as pd
from sklearn.datasets import load_diabetes

from fluffle.task import Site
from fluffle_worker.data import DataSteps
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras


def build_model() -> KerasModel:
    """Return a small network for ten columns."""
    keras = import_keras()
    layers = keras.layers
    model = keras.Sequential([keras.Input((10,)), layers.Dense(32, "relu"), layers.Dense(1)])
    rmse = keras.metrics.RootMeanSquaredError(name="rmse")
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae", rmse, "r2_score"])
    return model


def train_data(site: Site) -> tuple[pd.DataFrame, pd.Series]:
    """Return every count-th patient; the second site has gaps in the body mass index."""
    frame = load_diabetes(as_frame=True).frame.iloc[site.index :: site.count]
    x, y = 20 * frame.drop(columns="target"), frame["target"] / 100
    if site.index == 1:
        x.loc[x.index[::5], "bmi"] = float("nan")
    return x, y


task = KerasTask(build_model, train_data, data=DataSteps())
