"""The loss of the training step, changed for a site whose classes are imbalanced.

Evaluation keeps the model's own. The model's `compute_loss` gets logits with offsets, or weights that depend
on the predictions. So the compiled loss itself, its label smoothing and the regularisation stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.weights import LossRemedy
from fluffle_worker.keras_task.backend import KerasModel, import_keras, require_tensorflow

CLASS_LOSSES = {
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
}


class TrainingLoss:
    """Changes the loss of a model's training steps as a `LossRemedy` says."""

    def __init__(self, model: KerasModel) -> None:
        self._keras = import_keras()
        self._model = model
        self._plain: Any = None
        self._offsets: Any = None
        self._gamma = 0.0

    def start_round(self, remedy: LossRemedy | None) -> None:
        """Let the following training steps use this loss; None is the model's own.

        The step is compiled again when the kind of the loss changes, not when only the class counts do.
        Raises TaskError for a model whose loss is no cross-entropy of one output, and for classes that it
        has not.
        """
        gamma = remedy.gamma if remedy else 0.0
        has_offsets = bool(remedy and remedy.offsets is not None)
        if remedy is not None:
            self.require_fits(remedy)
        if (gamma, has_offsets) != (self._gamma, self._offsets is not None):
            self._gamma = gamma
            self._offsets = (
                self._keras.Variable(np.zeros(self._classes), trainable=False, dtype="float32")
                if has_offsets
                else None
            )
            self._stand_in()
            self._model.make_train_function(force=True)
        if remedy is not None and remedy.offsets is not None:
            self._offsets.assign(self.all_offsets(remedy))

    def all_offsets(self, remedy: LossRemedy) -> NDArray[np.float32]:
        """Return the offset of each class [classes], also of those above the largest label of the site.

        Raises TaskError as `start_round` does.
        """
        self.require_fits(remedy)
        offsets = np.zeros(0) if remedy.offsets is None else remedy.offsets
        missing = (0, self._classes - offsets.size)
        return np.pad(offsets, missing, constant_values=remedy.of_absent).astype(np.float32)

    def require_fits(self, remedy: LossRemedy) -> None:
        """Raise TaskError for a change of the loss that the model cannot train with; see `start_round`."""
        keras, model = self._keras, self._model
        if remedy.lacks_prior:
            raise TaskError(
                f"balance {remedy.name} needs the classes of all sites, and the federation has no survey "
                "of them: start the aggregator of a new federation with --survey WORKERS (`fluffle data "
                "check` reads its result from --survey-file), or choose balanced_softmax, which takes those "
                "of this site"
            )
        require_tensorflow(f"balance {remedy.name}")
        shape = getattr(model, "output_shape", None)
        for step in ("train_step", "compute_loss"):
            if getattr(type(model), step) is not getattr(keras.Model, step):
                raise TaskError(
                    f"balance {remedy.name} changes the loss of compile(), and the model has its own {step}: "
                    "balance by weights or by rows"
                )
        if name_of_loss(model.loss) not in CLASS_LOSSES or not isinstance(shape, tuple) or len(shape) != 2:
            raise TaskError(
                f"balance {remedy.name} needs a model with one output [rows, classes] and one of the losses "
                f"{', '.join(sorted(CLASS_LOSSES))}, not {name_of_loss(model.loss)} and the output {shape}: "
                "balance by weights or by rows"
            )
        if remedy.offsets is not None and remedy.offsets.size > self._classes:
            raise TaskError(
                f"train_data returned the label {remedy.offsets.size - 1}, and the model's outputs stand for "
                f"the labels 0 to {self._classes - 1}: correct the labels, or give the model more outputs"
            )

    @contextmanager
    def changed(self, offsets: Any, gamma: float) -> Iterator[None]:
        """Within this block, compute the loss with offsets [classes], a tensor or None, and this gamma."""
        self._stand_in()
        before = self._offsets, self._gamma
        self._offsets, self._gamma = offsets, gamma
        yield
        self._offsets, self._gamma = before

    @property
    def _classes(self) -> int:
        """How many classes the model's outputs stand for; one sigmoid stands for two."""
        return int(max(2, self._model.output_shape[-1]))

    def _stand_in(self) -> None:
        if self._plain is None:
            self._plain, self._model.compute_loss = self._model.compute_loss, self._compute

    def _compute(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Stand in for `keras.Model.compute_loss`."""
        if training and self._offsets is not None:
            y_pred = self._with_offsets(y_pred)
        if training and self._gamma:
            weights = self._focal_weights(y, y_pred)
            sample_weight = weights if sample_weight is None else weights * _flat(sample_weight, weights)
        return self._plain(x, y, y_pred, sample_weight, training=training)

    def _with_offsets(self, y_pred: Any) -> Any:
        """Return predictions of which each logit has its offset added, as the model's loss expects them."""
        ops, logits = self._keras.ops, self._logits(y_pred)
        if logits.shape[-1] == 1:
            # The logit of one sigmoid is that of class 1 minus that of class 0.
            logits = logits + (self._offsets[1] - self._offsets[0])
            return logits if self._from_logits else self._keeping(ops.sigmoid(logits), logits)
        logits = logits + self._offsets
        return logits if self._from_logits else self._keeping(ops.softmax(logits), logits)

    def _focal_weights(self, y: Any, y_pred: Any) -> Any:
        """Return (1 - p)^gamma for the probability p of each row's class; [rows]."""
        ops, logits = self._keras.ops, self._logits(y_pred)
        if logits.shape[-1] == 1:
            probability, of_class_1 = ops.sigmoid(logits), ops.cast(ops.reshape(y, (-1, 1)), "float32")
            missed = ops.reshape(ops.abs(of_class_1 - probability), (-1,))
        else:
            is_sparse = name_of_loss(self._model.loss).startswith("sparse")
            labels = ops.cast(ops.reshape(y, (-1,)), "int32") if is_sparse else None
            target = y if labels is None else ops.one_hot(labels, logits.shape[-1])
            missed = 1 - ops.sum(ops.softmax(logits) * ops.cast(target, "float32"), axis=-1)
        # A power has no finite gradient at 0.
        return ops.maximum(missed, 1e-7) ** self._gamma

    def _logits(self, y_pred: Any) -> Any:
        """Return the logits behind predictions; activations of Keras keep them."""
        ops = self._keras.ops
        kept = y_pred if self._from_logits else getattr(y_pred, "_keras_logits", None)
        if kept is not None:
            return ops.cast(kept, "float32")
        probability = ops.clip(ops.cast(y_pred, "float32"), 1e-7, 1 - 1e-7)
        if probability.shape[-1] == 1:
            return ops.log(probability) - ops.log(1 - probability)
        return ops.log(probability)

    @property
    def _from_logits(self) -> bool:
        return bool(getattr(self._model.loss, "from_logits", False))

    def _keeping(self, activated: Any, logits: Any) -> Any:
        # Keras's losses look for this, and so do not take the logarithm of a probability of 0.
        activated._keras_logits = logits
        return activated


def name_of_loss(loss: object) -> str:
    """Return the name of a compiled loss: of a text, a function, or an object of one of Keras's classes."""
    return str(loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", loss)))


def _flat(sample_weight: Any, like: Any) -> Any:
    ops = import_keras().ops
    return ops.cast(ops.reshape(sample_weight, (-1,)), like.dtype)
