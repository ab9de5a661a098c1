"""Weights that do not travel: frozen ones, those under adapters, and local ones."""

from collections.abc import Mapping
from types import ModuleType

from features.feature import Feature, compiled, stack
from features.layers import tokens

from fluffle_worker.keras_task import KerasModel


def frozen_base(keras: ModuleType) -> KerasModel:
    layers = keras.layers
    base = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.BatchNormalization()], name="base"
    )
    base.trainable = False
    return stack(keras, base)


def lora(keras: ModuleType) -> KerasModel:
    """Adapters on the attention, the dense layers and the embedding of a small transformer."""
    layers = keras.layers
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, name="embedding")(inputs)
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.LayerNormalization(name="norm")(x + attention(x, x))
    x = layers.Dense(4, name="forward")(x)
    outputs = layers.Dense(1, activation="sigmoid", name="head")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, outputs)
    for layer in (model.get_layer("norm"), attention.key_dense, attention.output_dense):
        layer.trainable = False
    adapted = model.get_layer("embedding"), model.get_layer("forward")
    for layer in (*adapted, attention.query_dense, attention.value_dense):
        layer.enable_lora(2)
    return compiled(keras, model, optimizer=keras.optimizers.Adam(0.05))


def quantized(keras: ModuleType) -> KerasModel:
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="base"), keras.layers.Dense(1, "sigmoid", name="head")]
    )
    base = model.get_layer("base")
    base.quantize("int8")
    base.enable_lora(2)
    return compiled(keras, model, optimizer=keras.optimizers.Adam(0.05))


def personal_head(keras: ModuleType) -> KerasModel:
    return stack(keras, keras.layers.Dense(8, activation="relu"))


PARTS: Mapping[str, Feature] = {
    "frozen base": Feature(build=frozen_base, groups={"base/*": "frozen"}),
    "local weights (a personal head)": Feature(
        build=personal_head, local=("last/*",), groups={"last/*": "local"}
    ),
    "LoRA": Feature(
        build=lora,
        data=tokens,
        groups={
            "head/*": "trained",
            "norm/*": "frozen",
            "attention/key/*": "frozen",
            "attention/attention_output/*": "frozen",
            "embedding/embeddings": "frozen",
            "*/kernel": "frozen",
        },
    ),
    "int8 layers with LoRA": Feature(
        build=quantized,
        groups={"base/kernel": "frozen", "base/kernel_scale": "frozen"},
    ),
}
