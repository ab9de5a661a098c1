"""Two tasks whose sites differ: each site has nearly all of one class, and the others hardly any of it.

A table of wines for a network with BatchNormalization, and words of data sets' descriptions for an embedding
and a GRU.
"""

import re
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

Labels = NDArray[np.int64]
WORDS = 12
# More than there are words: the rows above the last word's are never trained.
VOCABULARY = 1000
# Of ten examples of a class, nine are at the site of its number.
SHARED = 10


def build_wine_model() -> KerasModel:
    """Return a classifier of 13 columns with BatchNormalization."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((13,)),
            keras.layers.Dense(16),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"])
    return model


def _wines(*, held_out: bool) -> tuple[NDArray[np.float32], Labels]:
    values, labels = load_wine(return_X_y=True)
    values = ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
    chosen = (np.arange(labels.size) % 4 == 0) == held_out
    return values[chosen], labels[chosen].astype(np.int64)


def build_text_model() -> KerasModel:
    """Return a classifier of short texts: an embedding, many of whose rows no site trains, and a GRU."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((WORDS,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY, 16),
            keras.layers.GRU(16),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    return model


def words() -> int:
    """Return how many different words the texts have."""
    return len({*chain.from_iterable(_words())})


def _words() -> list[list[str]]:
    """Return the words of three descriptions."""
    described = [load().DESCR for load in (load_breast_cancer, load_wine, load_diabetes)]
    return [re.findall("[a-z]+", text.lower()) for text in described]


def _texts(*, held_out: bool) -> tuple[NDArray[np.int32], Labels]:
    """Return runs of words, as numbers, and which of three descriptions they are from."""
    texts = _words()
    known = {word: number for number, word in enumerate(sorted({*chain.from_iterable(texts)}))}
    runs, labels = [], []
    for label, text in enumerate(texts):
        numbers = [known[word] for word in text]
        for start in range(0, len(numbers) - WORDS, 3):
            runs.append(numbers[start : start + WORDS])
            labels.append(label)
    chosen = (np.arange(len(labels)) % 4 == 0) == held_out
    return np.array(runs, np.int32)[chosen], np.array(labels, np.int64)[chosen]


def _is_of_site(site: Site, labels: Labels) -> NDArray[np.bool_]:
    """Tell which examples a site has: nine tenths of the class of its number, and a share of the rest."""
    places = np.arange(labels.size)
    owners = np.where(places % SHARED == 0, places // SHARED, labels)
    return np.asarray(owners % site.count == site.index)


def wine_data(site: Site) -> tuple[NDArray[np.float32], Labels]:
    """Return a site's wines."""
    values, labels = _wines(held_out=False)
    mine = _is_of_site(site, labels)
    return values[mine], labels[mine]


def text_data(site: Site) -> tuple[NDArray[np.int32], Labels]:
    """Return a site's texts."""
    runs, labels = _texts(held_out=False)
    mine = _is_of_site(site, labels)
    return runs[mine], labels[mine]


wine = KerasTask(build_wine_model, wine_data, lambda: _wines(held_out=True))
text = KerasTask(build_text_model, text_data, lambda: _texts(held_out=True))
