"""The augmentation of a round's minibatches: tables and sequences in numpy, images by Keras's layers."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.augment import IMAGE, OF_VALUES, Spread, mixup, paired
from fluffle_worker.data.choices import Choice
from fluffle_worker.keras_task.backend import import_keras, uses_tensorflow
from fluffle_worker.keras_task.data import Minibatch

Augment = Callable[[Minibatch, np.random.Generator], Minibatch]
FORMS = {
    2: "tables [rows, columns]",
    3: "sequences [rows, steps, channels]",
    4: "images [rows, ., ., channels]",
}
# Keras's layers that change images alone, and those that mix two images.
LAYERS = {"rand_augment": "RandAugment", "erase": "RandomErasing"}
MIXING = {"mixup": "MixUp", "cutmix": "CutMix"}


class Augmentation:
    """Augments minibatches as the names say, in their order; the same generator gives the same ones."""

    def __init__(self, choices: Sequence[Choice], axes: int, spread: Spread) -> None:
        """`axes` is how many axes the inputs have. Raises TaskError for a name that is for other inputs."""
        self._augments: list[Augment] = []
        self._channels = len(spread.mean)
        self._range = _value_range(spread)
        self.is_of_integers = spread.is_whole
        self.doubles = any(choice.name in MIXING for choice in choices)
        for choice in choices:
            wanted = OF_VALUES[choice.name][1] if choice.name in OF_VALUES else IMAGE
            if choice.name != "mixup" and axes != wanted:
                raise TaskError(
                    f"augment {choice} is for {FORMS[wanted]}, and the inputs have {axes} axes: leave it "
                    "out, or choose another"
                )
            self._augments.append(self._one(choice, axes, spread))

    def apply(
        self, minibatches: Iterator[Minibatch], rng: np.random.Generator, *, weight_axes: int = 1
    ) -> Iterator[Minibatch]:
        """Yield the minibatches augmented; the weights of mixed rows get so many axes, [rows, 1, ...]."""
        for minibatch in minibatches:
            augmented = minibatch
            for augment in self._augments:
                augmented = augment(augmented, rng)
            if self.doubles and weight_axes > 1:
                x, y, weights = augmented
                augmented = x, y, np.reshape(np.asarray(weights), (-1, *[1] * (weight_axes - 1)))
            yield augmented

    def _one(self, choice: Choice, axes: int, spread: Spread) -> Augment:
        if choice.name in OF_VALUES:
            function, _ = OF_VALUES[choice.name]

            def change(parts: Minibatch, rng: np.random.Generator) -> Minibatch:
                x = np.asarray(parts[0])
                changed = function(x.astype(_floats(x)), choice.number, spread, rng)
                return changed.astype(_floats(x)), *parts[1:]

            return change
        if choice.name == "mixup" and axes != IMAGE:

            def mix(parts: Minibatch, rng: np.random.Generator) -> Minibatch:
                x = np.asarray(parts[0])
                mixed, partner, lam = mixup(x.astype(_floats(x)), choice.number, rng)
                return paired(parts, mixed.astype(_floats(x)), partner, lam)

            return mix
        return self._of_images(choice)

    def _of_images(self, choice: Choice) -> Augment:
        layers = import_keras().layers
        if choice.name in MIXING:
            option = {"mixup": "alpha", "cutmix": "factor"}[choice.name]
            mixing = _call(getattr(layers, MIXING[choice.name])(**{option: choice.number}))

            def mix(parts: Minibatch, rng: np.random.Generator) -> Minibatch:
                images = np.asarray(parts[0], np.float32)
                # With one label for each image, the mixed labels tell which images were mixed, and how.
                found = mixing({"images": images, "labels": np.eye(len(images), dtype=np.float32)}, rng)
                shares = np.asarray(found["labels"], np.float64)
                lam = shares.diagonal().copy()
                others = shares.copy()
                np.fill_diagonal(others, 0)
                return paired(parts, np.asarray(found["images"]), others.argmax(axis=1), lam)

            return mix
        layer = getattr(layers, LAYERS[choice.name])
        changing = _call(layer(factor=choice.number, value_range=self._range))
        # RandAugment also changes colours, for which it needs three of them.
        is_grey = choice.name == "rand_augment" and self._channels == 1

        def change(parts: Minibatch, rng: np.random.Generator) -> Minibatch:
            images = np.asarray(parts[0], np.float32)
            changed = np.asarray(changing(np.repeat(images, 3, axis=-1) if is_grey else images, rng))
            return changed.mean(axis=-1, keepdims=True) if is_grey else changed, *parts[1:]

        return change


def _call(layer: Any) -> Callable[[Any, np.random.Generator], Any]:
    """Return a function that calls a layer of Keras with random numbers from a generator."""

    def plain(images: Any) -> Any:
        return layer(images, training=True)

    compiled = plain
    if uses_tensorflow():
        compiled = importlib.import_module("tensorflow").function(plain, reduce_retracing=True)

    def call(images: Any, rng: np.random.Generator) -> Any:
        layer.generator.state.assign([int(rng.integers(2**31)), 0])
        return compiled(images)

    return call


def _floats(x: NDArray[Any]) -> Any:
    return x.dtype if x.dtype.kind == "f" else np.float32


def _value_range(spread: Spread) -> tuple[float, float]:
    """Return the range of an image's values: 0 to 1, 0 to 255, or that of the training rows."""
    for highest in (1.0, 255.0):
        if spread.lowest >= 0 and spread.highest <= highest:
            return 0.0, highest
    return spread.lowest, spread.highest
