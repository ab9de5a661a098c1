"""Pictures of clothing, 28x28 pixels, ten classes: a small convolutional network that two cores train.

Nothing is downloaded: the four files (Xiao, Rasul and Vollgraf, arXiv 1708.07747) are those of Debian's
package `dataset-fashion-mnist` or those that Keras itself has cached. The 60,000 training images are split
among the sites, the 10,000 test images are held out.
"""

import gzip
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.task import Site
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.splits import split_indices

Bytes = NDArray[np.uint8]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def build_model() -> KerasModel:
    """Return two convolutions and one dense layer: 16,330 parameters."""
    keras = import_keras()
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            # Here and not in the data, which as bytes takes a quarter of the memory.
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.001), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train_data(site: Site) -> tuple[Bytes, Bytes]:
    """Return this site's share: pixels [examples, 28, 28, 1] in 0..255, and labels [examples]."""
    images, labels = _examples("train")
    mine = split_indices(labels, split=site.split, sites=site.count, seed=site.seed)[site.index]
    return images[mine], labels[mine]


def eval_data() -> tuple[Bytes, Bytes]:
    """Return the test images."""
    return _examples("t10k")


def _examples(part: str) -> tuple[Bytes, Bytes]:
    images, labels = _read_idx(f"{part}-images-idx3-ubyte.gz"), _read_idx(f"{part}-labels-idx1-ubyte.gz")
    return images[..., None], labels


def _read_idx(name: str) -> Bytes:
    """Read an IDX file: two zeros, a type, the number of dimensions, their sizes as uint32, the bytes."""
    keras_folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets" / "fashion-mnist"
    paths = [folder / name for folder in (DEBIAN_FOLDER, keras_folder)]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise TaskError(
            f"there is neither {paths[0]} nor {paths[1]}: apt-get install dataset-fashion-mnist "
            "(Debian, Ubuntu), or copy the files to the second place"
        )
    content = gzip.decompress(found.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


task = KerasTask(build_model, train_data, eval_data)
