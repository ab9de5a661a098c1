"""Which models can be trained many rounds at once: those whose rounds do nothing but the usual step."""

from collections.abc import Iterator
from math import prod

import numpy as np

from fluffle_worker.keras_task.backend import import_keras, uses_tensorflow
from fluffle_worker.keras_task.data import ArrayData
from fluffle_worker.keras_task.model import BuiltModel

# They treat each element of a weight by itself, so that a stack of weights is trained as each of them.
ELEMENTWISE = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("Ftrl", "Lion", "RMSprop", "SGD"),
)
NOT_ELEMENTWISE = (
    *("clipnorm", "global_clipnorm", "use_ema"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)
# Above this a step takes so long that what is saved around it no longer counts.
MOST_WEIGHTS = 200_000
# What a model may replace, and a stacked step does not call.
STEPS = ("train_step", "compute_loss", "get_metrics_result", "make_train_function")


def reasons_against(built: BuiltModel, data: ArrayData) -> Iterator[str]:
    """Yield why a model's rounds must be trained one after the other; nothing when they need not be."""
    keras, model = import_keras(), built.model
    if not uses_tensorflow():
        yield f"Keras computes with {keras.backend.backend()}, not with TensorFlow"
        return
    for name in STEPS:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            yield f"the model has its own {name}"
    if built.own_optimizers:
        yield f"the model has optimizers of its own ({', '.join(built.own_optimizers)})"
    yield from _of_optimizer(model.optimizer)
    yield from _of_weights(built)
    yield from _of_layers(built)
    yield from _of_loss(built)
    if data.is_sparse or any(array.dtype.kind in "US" for array in keras.tree.flatten(data.parts)):
        yield "the training data is text or a sparse matrix"
    if len(data.parts) > 1 and not all(isinstance(part, np.ndarray) for part in data.parts[1:]):
        yield "the model has several outputs"
    if len(data.parts) == 1:
        yield "the training data has no targets"


def _of_optimizer(optimizer: object) -> Iterator[str]:
    optimizers = import_keras().optimizers
    if type(optimizer) not in [getattr(optimizers, name) for name in ELEMENTWISE]:
        yield f"the optimizer {type(optimizer).__name__} is none of {', '.join(ELEMENTWISE)}"
        return
    for name in (
        "clipnorm",
        "global_clipnorm",
        "use_ema",
        "loss_scale_factor",
        "gradient_accumulation_steps",
    ):
        if getattr(optimizer, name, None):
            yield f"the optimizer has {name}"


def _of_layers(built: BuiltModel) -> Iterator[str]:
    for layer in built.model._flatten_layers():
        if "Conv" in type(layer).__name__ and layer.weights:
            yield f"TensorFlow cannot stack the convolution of the layer {layer.name}"
        if getattr(layer, "activity_regularizer", None):
            yield f"the layer {layer.name} has an activity_regularizer"
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            yield f"the layer {layer.name} is stateful"
        if layer.compute_dtype != "float32" and layer.weights:
            yield f"the layer {layer.name} computes in {layer.compute_dtype}"


def _of_weights(built: BuiltModel) -> Iterator[str]:
    model = built.model
    trained = {id(variable) for variable in model.trainable_variables}
    changing = [name for name, group in built.groups.items() if group == "statistic"]
    if changing:
        yield f"a minibatch changes {changing[0]}, as in BatchNormalization"
    if any(built.groups[name] == "local" and id(one) not in trained for name, one in built.named.items()):
        yield "some of the local weights are not trained"
    if any(variable.name == "seed_generator_state" for variable in model.variables):
        yield "some of its layers can draw random numbers, as Dropout and LSTM do"
    if built.batch_size:
        yield "the model takes minibatches of one size only (batch_shape)"
    weights = sum(prod(variable.shape) for variable in model.trainable_variables)
    if weights > MOST_WEIGHTS:
        yield f"a model of {weights:,} trained weights, more than {MOST_WEIGHTS:,}, would gain nothing"


def _of_loss(built: BuiltModel) -> Iterator[str]:
    model = built.model
    if len(getattr(model, "outputs", None) or [None]) != 1 or isinstance(model.loss, list | tuple | dict):
        yield "the model has several outputs"
    if model.loss is None:
        yield "the model is compiled without a loss"
    reduction = getattr(model.loss, "reduction", "sum_over_batch_size")
    if reduction != "sum_over_batch_size":
        yield f"the loss has the reduction {reduction!r}"
