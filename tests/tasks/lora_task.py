"""A small transformer with a random, frozen base, LoRA on some of its layers, and a trained head."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras

WORDS, LENGTH, RANK = 40, 8, 2
SITE = Site(index=0, count=1)

_random = np.random.default_rng(0)
TOKENS: NDArray[np.int64] = _random.integers(0, WORDS, (400, LENGTH))
# Whether the words of the upper half are the more frequent ones.
LABELS: NDArray[np.float32] = (TOKENS.mean(axis=1, keepdims=True) > (WORDS - 1) / 2).astype(np.float32)


def build_model(width: int) -> KerasModel:
    """Return the compiled model; its base has the same weights at every site and for every seed."""
    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, width, name="embedding")(inputs)
    attention = layers.MultiHeadAttention(2, width // 2, name="attention")
    x = layers.LayerNormalization(name="norm")(x + attention(x, x))
    x = layers.Dense(width, activation="gelu", name="forward")(x)
    base = keras.Model(inputs, layers.GlobalAveragePooling1D()(x), name="base")
    pretrained = np.random.default_rng(1)
    base.set_weights([pretrained.normal(0, 0.5, each.shape) for each in base.get_weights()])
    base.trainable = False
    adapted = (attention.query_dense, attention.value_dense, base.get_layer("forward"))
    for layer in (base, attention, *adapted):
        # Not by the setter, which would also switch on what lies inside.
        layer._trainable = True
    for layer in adapted:
        layer.enable_lora(RANK)
    outputs = layers.Dense(1, activation="sigmoid", name="head")(base(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def train_data(site: Site) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return this site's sentences [examples, 8] and labels [examples, 1]."""
    return TOKENS[100:][site.index :: site.count], LABELS[100:][site.index :: site.count]


def eval_data() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first hundred."""
    return TOKENS[:100], LABELS[:100]


def make_task(width: int = 16) -> KerasTask:
    """Return a task of its own model."""
    return KerasTask(partial(build_model, width), train_data, eval_data)


task = make_task(64)
