"""What train_data may return; tests/worker/test_keras_data.py has more, and what is refused."""

import importlib
from collections.abc import Mapping

import numpy as np
from features.feature import EXAMPLES, INPUTS, TARGETS, Feature
from features.training import hidden
from scipy import sparse

from fluffle_worker.keras_task import import_keras


def sample_weights() -> object:
    return INPUTS, TARGETS, np.linspace(0.5, 1.5, EXAMPLES)


def class_weights() -> object:
    weight_of = {0: 1.0, 1: 3.0}
    return INPUTS, TARGETS, np.array([weight_of[int(label)] for label in TARGETS[:, 0]])


def tensorflow_data_set() -> object:
    data_sets = importlib.import_module("tensorflow").data.Dataset
    return data_sets.from_tensor_slices((INPUTS, TARGETS)).batch(20).prefetch(1)


def py_dataset() -> object:
    keras = import_keras()
    cut = {
        "__len__": lambda _: 3,
        "__getitem__": lambda _, at: (INPUTS[20 * at :][:20], TARGETS[20 * at :][:20]),
    }
    return type("Pairs", (keras.utils.PyDataset,), cut)()


def sparse_matrix() -> object:
    return sparse.csr_matrix(INPUTS), TARGETS


DATA: Mapping[str, Feature] = {
    "sample weights": Feature(build=hidden, data=sample_weights),
    "class weights": Feature(build=hidden, data=class_weights),
    "tf.data.Dataset": Feature(build=hidden, data=tensorflow_data_set),
    "PyDataset": Feature(build=hidden, data=py_dataset),
    "sparse matrices": Feature(build=hidden, data=sparse_matrix),
}
