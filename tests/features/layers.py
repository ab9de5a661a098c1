"""Layers that people use."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from features.feature import EXAMPLES, INPUTS, TARGETS, Feature, compiled, stack

from fluffle_worker.keras_task import KerasModel

WORDS = np.array(["good", "bad", "fine", "poor", "nice", "awful"])
LABELS = TARGETS[:, 0].astype(int)


def batch_normalization(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(4), keras.layers.BatchNormalization(momentum=0.9))


def layer_normalization(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(4), keras.layers.LayerNormalization())


def group_normalization(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(4), keras.layers.GroupNormalization(groups=2))


def rms_normalization(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(4), keras.layers.RMSNormalization())


def spectral_normalization(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.SpectralNormalization(keras.layers.Dense(4)))


def adapted(keras: ModuleType) -> KerasModel:
    layer = keras.layers.Normalization()
    layer.adapt(INPUTS)
    return stack(keras, layer)


def convolutions(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    blocks = [
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.SeparableConv2D(4, 3, padding="same"),
        layers.Conv2DTranspose(2, 2, strides=2),
        layers.GlobalAveragePooling2D(),
    ]
    return stack(keras, *blocks, shape=(8, 8, 1))


def augmentation(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    return stack(
        keras,
        layers.RandomFlip(),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.2),
        layers.Flatten(),
        shape=(8, 8, 1),
    )


def noise(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    return stack(keras, layers.Dense(16), layers.Dropout(0.3), layers.GaussianNoise(0.1), layers.Dropout(0.1))


def masked_lstm(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Masking(), keras.layers.LSTM(6, recurrent_dropout=0.1), shape=(5, 2))


def masked_gru(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Embedding(7, 4, mask_zero=True), keras.layers.GRU(6), shape=(5,))


def embedding(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Embedding(7, 4), keras.layers.Flatten(), shape=(5,))


def wrapped(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    both_ways = layers.Bidirectional(layers.LSTM(3, return_sequences=True))
    return stack(keras, both_ways, layers.TimeDistributed(layers.Dense(2)), layers.Flatten(), shape=(5, 2))


def stateful(keras: ModuleType) -> KerasModel:
    inputs = keras.Input(batch_shape=(20, 5, 2))
    last = keras.layers.GRU(5, stateful=True)(inputs)
    return compiled(keras, keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(last)))


def transformer(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    inputs = keras.Input((5, 4))
    attended = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(inputs, inputs)
    x = layers.LayerNormalization()(layers.Add()([inputs, attended]))
    forward = layers.Dense(4)(layers.Dense(8, activation="gelu")(x))
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(layers.Add()([x, forward])))
    return compiled(keras, keras.Model(inputs, layers.Dense(1, activation="sigmoid")(pooled)))


def text(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    vectorize = layers.TextVectorization(output_sequence_length=2)
    vectorize.adapt(WORDS)
    inputs = keras.Input((), dtype="string")
    embedded = layers.Flatten()(layers.Embedding(10, 3)(vectorize(inputs)))
    return compiled(keras, keras.Model(inputs, layers.Dense(1, activation="sigmoid")(embedded)))


def lookup(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    inputs = {"word": keras.Input((), dtype="string", name="word"), "size": keras.Input((1,), name="size")}
    sized = layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0], output_mode="one_hot")(inputs["size"])
    found = layers.StringLookup(vocabulary=list(WORDS), output_mode="one_hot")(inputs["word"])
    both = layers.Concatenate()([found, sized])
    return compiled(keras, keras.Model(inputs, layers.Dense(1, activation="sigmoid")(both)))


def pictures() -> object:
    images = np.random.default_rng(1).standard_normal((EXAMPLES, 8, 8, 1)).astype(np.float32)
    return images + 3 * TARGETS[:, :, None, None], TARGETS


def series() -> object:
    steps = np.random.default_rng(1).standard_normal((EXAMPLES, 5, 2)).astype(np.float32)
    steps += TARGETS[:, :, None]
    steps[:, 4] = 0.0
    return steps, TARGETS


def tokens() -> object:
    words = np.random.default_rng(1).integers(0, 4, (EXAMPLES, 5))
    words[:, 0] = 1 + 2 * LABELS + words[:, 0] % 2
    return words, TARGETS


def sequences() -> object:
    steps = np.random.default_rng(1).standard_normal((EXAMPLES, 5, 4)).astype(np.float32)
    return steps + TARGETS[:, :, None], TARGETS


def words() -> object:
    return WORDS[np.arange(EXAMPLES) % 6], (np.arange(EXAMPLES) % 2).astype(np.float32)[:, None]


def columns() -> object:
    return {"word": WORDS[np.arange(EXAMPLES) % 6], "size": INPUTS[:, :1]}, TARGETS


LAYERS: Mapping[str, Feature] = {
    "BatchNormalization": Feature(build=batch_normalization, groups={"*/moving_*": "statistic"}),
    "LayerNormalization": Feature(build=layer_normalization),
    "GroupNormalization": Feature(build=group_normalization),
    "RMSNormalization": Feature(build=rms_normalization),
    "SpectralNormalization": Feature(build=spectral_normalization, groups={"*/vector_u": "statistic"}),
    "Normalization with adapt": Feature(
        build=adapted, groups={"normalization/*": "statistic"}, constant=("normalization/*",)
    ),
    "convolutions and pooling": Feature(build=convolutions, data=pictures),
    "data augmentation layers": Feature(build=augmentation, data=pictures),
    "Dropout and other seed generators": Feature(build=noise),
    "LSTM with masking": Feature(build=masked_lstm, data=series),
    "GRU with masking": Feature(build=masked_gru, data=tokens),
    "stateful recurrent layers": Feature(build=stateful, data=series),
    "Bidirectional and TimeDistributed": Feature(build=wrapped, data=series),
    "Embedding": Feature(build=embedding, data=tokens),
    "MultiHeadAttention": Feature(build=transformer, data=sequences),
    "TextVectorization": Feature(
        build=text, data=words, refused="data: x is text, which works with Keras on TensorFlow only"
    ),
    "StringLookup and Discretization": Feature(
        build=lookup, data=columns, refused="x.'word'. is text, which works with Keras on TensorFlow only"
    ),
}
