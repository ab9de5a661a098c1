"""Training the last layers alone, on a device that is too small or too slow for the whole model.

Layers are frozen before the training step is compiled and the optimizer is built. So no gradient is computed
for them, they have no moments, and a frozen BatchNormalization uses the federation's statistics and does not
change them.

Source: the partial training of Zhang, Gao, Lee, Zhang and Avestimehr, "TimelyFL: Heterogeneity-aware
Asynchronous Federated Learning with Adaptive Partial Training" (2023, arXiv 2304.06947), which trains the
layers at the output and freezes those at the input.
"""

import math
from collections.abc import Mapping, Sequence

from fluffle.errors import TaskError
from fluffle.model import SHARED_GROUPS, Group, some_of
from fluffle_worker.keras_task.backend import KerasModel, KerasVariable

# A share such as 0.1 of 1,000 lies a little beside the number that is meant.
ROUNDING = 1e-9


def freeze_first_layers(
    model: KerasModel, named: Mapping[str, KerasVariable], groups: Mapping[str, Group], share: float
) -> str:
    """Freeze all layers but the last ones that have at most a share of the trained parameters, below 1.

    The layers are in the order of the model's weights, and a layer is frozen or trained as a whole. Returns
    the name of the first weight that is not frozen and is sent: those after it are not frozen either. Raises
    TaskError, which names the smallest share that would do, when not even the last layer is within it, and
    when weights that stay at their site would be frozen.
    """
    names = list(named)
    sizes = [math.prod(named[name].shape) if groups[name] == "trained" else 0 for name in names]
    begins = _first_weights_of_layers(model, list(named.values()))
    trained = {at: sum(sizes[at:]) for at in begins}
    most = share * sum(sizes) * (1 + ROUNDING)
    fitting = [at for at in begins if 0 < trained[at] <= most]
    last = max(at for at in begins if trained[at])
    first = min(fitting, default=last)
    if local := [name for name in names[:first] if groups[name] == "local"]:
        least = trained[max(at for at in begins if at <= names.index(local[0]))] / sum(sizes)
        remedy = f"choose a share of at least {_rounded_up(least):g}" if least < 1 else "leave it out"
        raise TaskError(
            f"--train-share {share:g} would freeze {some_of(local)}, which the task keeps at its site "
            f"(local) and only this site can train: {remedy}"
        )
    if not fitting:
        raise TaskError(
            f"--train-share {share:g} leaves nothing to train: the last layer that is trained, from "
            f"{names[last]} on, has {trained[last]:,} of {sum(sizes):,} parameters, so the share must be at "
            f"least {_rounded_up(trained[last] / sum(sizes)):g}"
        )
    _freeze(model, [named[name] for name in names[:first]])
    return next(name for name in names[first:] if groups[name] in SHARED_GROUPS)


def _first_weights_of_layers(model: KerasModel, variables: Sequence[KerasVariable]) -> list[int]:
    """Return the number of the first weight of each layer, in the order of the weights."""
    owners = {
        id(variable): id(layer)
        for layer in model._flatten_layers()
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables)
    }
    owner = [owners.get(id(variable), 0) for variable in variables]
    return [at for at in range(len(owner)) if at == 0 or owner[at] != owner[at - 1]]


def _freeze(model: KerasModel, variables: Sequence[KerasVariable]) -> None:
    frozen = {id(variable) for variable in variables}
    for layer in model._flatten_layers():
        weights = layer.weights
        if weights and all(id(variable) in frozen for variable in weights):
            layer.trainable = False
    for variable in variables:
        # A weight of a layer that contains layers, some of which are trained.
        variable.trainable = False
    if left := [variable.path for variable in model.trainable_variables if id(variable) in frozen]:
        raise TaskError(f"--train-share: {some_of(left)} cannot be frozen: leave the share out")


def _rounded_up(share: float) -> float:
    """Return a share of three digits that is not below this one."""
    step = 10.0 ** (math.floor(math.log10(share)) - 2)
    return min(1.0, math.ceil(share / step - ROUNDING) * step)
