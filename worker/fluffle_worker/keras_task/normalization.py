"""A layer that scales inputs by the statistics of all sites, as a federation's survey has found them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle_worker.keras_task.backend import import_keras

if TYPE_CHECKING:
    import keras
else:
    keras = import_keras()


@keras.saving.register_keras_serializable(package="fluffle")
class SurveyNormalization(keras.Layer):
    """Subtract the mean of each column of all sites' data, and divide by its standard deviation.

    The columns are those of the last axis. Both are statistics of the model, which the aggregator sets when
    the federation's survey ends; until then, and without a survey (`fluffle aggregator --survey`), the layer
    changes nothing. A column that is constant is only shifted. `of` names the input that the layer stands
    behind, where train_data returns several in a dictionary or a tuple (there its number): "age", "0".
    """

    def __init__(self, *, of: str = "", **options: Any) -> None:
        # In half precision, large inputs would be infinite before they are scaled.
        super().__init__(**{**options, "autocast": False})
        self.of = of

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the statistics, which change nothing yet."""
        suffix = f".{self.of}" if self.of else ""
        for name, initializer in (("mean", "zeros"), ("deviation", "ones")):
            weight = self.add_weight(
                shape=(input_shape[-1],),
                initializer=initializer,
                trainable=False,
                dtype="float32",
                autocast=False,
                name=f"survey_{name}{suffix}",
            )
            setattr(self, name, weight)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Return the scaled inputs, in the dtype of the layer's computations."""
        ops = keras.ops
        return ops.cast((ops.cast(inputs, "float32") - self.mean) / self.deviation, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return how to make the layer again."""
        return {**super().get_config(), "of": self.of}

    @property
    def changes_nothing(self) -> bool:
        """Whether no survey has set the statistics."""
        to_numpy = keras.ops.convert_to_numpy
        return bool(np.all(to_numpy(self.mean) == 0) and np.all(to_numpy(self.deviation) == 1))
