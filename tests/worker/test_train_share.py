"""`--train-share` with Keras: which layers are frozen, what is sent, and what it saves.

What public reports tell of frozen layers: moving means that change although the layer is frozen (keras #7085,
#6570), a frozen BatchNormalization that computes with the minibatch's statistics (keras #9522, #9965), and
`trainable` that has no effect once the model is compiled (keras #4674).
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from features.feature import Feature
from features.table import FEATURES
from numpy.typing import NDArray
from working import CountingTask, version_of

from fluffle.checked_task import CheckedTask
from fluffle.compression import decompressed
from fluffle.errors import TaskError
from fluffle.plan import Plan, Sends
from fluffle.record import ModelVersion
from fluffle.task import Site
from fluffle.update import UpdateId, WeightUpdate
from fluffle_worker.keras_task import KerasModel, KerasTask, import_keras
from fluffle_worker.keras_task.backend import uses_tensorflow
from fluffle_worker.pace.batch import Memory
from fluffle_worker.pace.share import ROUNDS_PER_PART, TrainedPart
from fluffle_worker.round import train_round, weights_after

Build = Callable[[ModuleType], KerasModel]

IMAGES: NDArray[np.float32] = np.random.default_rng(0).random((32, 12, 12, 1), np.float32)
LABELS: NDArray[np.int64] = np.random.default_rng(0).integers(0, 3, 32)


def silent(done: int, total: int) -> None:
    """Report nothing."""


def compiled(keras: ModuleType, model: KerasModel, **options: Any) -> KerasModel:
    settings = {"optimizer": keras.optimizers.Adam(0.01), "loss": "sparse_categorical_crossentropy"}
    model.compile(**(settings | options))
    return model


def cnn(keras: ModuleType) -> KerasModel:
    """Two blocks of convolution and BatchNormalization, and two dense layers."""
    layers = keras.layers
    model = [keras.Input((12, 12, 1))]
    for number, filters in enumerate((4, 8)):
        model += [
            layers.Conv2D(filters, 3, name=f"conv_{number}"),
            layers.BatchNormalization(name=f"norm_{number}", momentum=0.5),
            layers.ReLU(name=f"relu_{number}"),
        ]
    head = layers.Dense(6, "tanh", name="hidden"), layers.Dense(3, "softmax", name="last")
    return compiled(keras, keras.Sequential([*model, layers.Flatten(name="flat"), *head]))


def a_task(build: Build, local: tuple[str, ...] = ()) -> KerasTask:
    return KerasTask(lambda: build(import_keras()), lambda _: (IMAGES, LABELS), local=local)


def a_round(task: CheckedTask, share: float, plan: Plan | None = None) -> tuple[ModelVersion, WeightUpdate]:
    """Train one round from version 0, and return both."""
    model = task.model()
    if share < 1:
        task.train_last(share)
    task.prepare(Site())
    version = version_of(model, plan or Plan(batch_size=8))
    update_id = UpdateId("small", "r", 1)
    trained = train_round(task, version, model.local, update_id=update_id, seed=1, progress=silent)
    assert not trained.unusable
    return version, trained.update


@pytest.mark.parametrize("share", [1.0, 0.91])
@pytest.mark.parametrize("sends", ["delta", "weights"])
def test_the_weights_after_a_round_are_those_that_were_trained_and_before_them_as_they_were(
    share: float, sends: Sends
) -> None:
    task = CheckedTask(a_task(cnn, local=("last/*",)))
    model = task.model()
    start = version_of(model, Plan(batch_size=8, sends=sends))
    part = task.train_last(share) if share < 1 else model.layout
    task.prepare(Site())
    update_id = UpdateId("small", "r", 1)
    ended = train_round(task, start, model.local, update_id=update_id, seed=1, progress=silent)
    expected = task.train({**start.weights, **model.local}, start.plan, seed=1, progress=silent)

    after = weights_after(start.layout, start.flat, ended)

    assert list(after) == [*model.weights, *model.local]
    assert set(changed(model.weights, after)) == {spec.name for spec in part.tensors}
    assert set(changed(model.local, after)) == set(model.local)
    for name, array in {**expected.weights, **expected.local}.items():
        np.testing.assert_allclose(after[name].astype(float), array.astype(float), rtol=1e-6, atol=1e-7)


def sent_by(build: Build, share: float) -> tuple[list[str], WeightUpdate]:
    """Return the names of the tensors that an update has, and the update."""
    version, update = a_round(CheckedTask(a_task(build)), share)
    return [spec.name for spec in version.layout.tensors[update.first_tensor :]], update


CNN_PARAMETERS = 40 + 8 + 296 + 16 + (512 * 6 + 6) + 21


@pytest.mark.parametrize(
    ("share", "first"),
    [
        (21 / CNN_PARAMETERS, "last/kernel"),
        (3098 / CNN_PARAMETERS, "last/kernel"),
        (3099 / CNN_PARAMETERS, "hidden/kernel"),
        (0.91, "norm_1/gamma"),
        (0.99, "norm_0/gamma"),
    ],
)
def test_the_last_layers_that_have_at_most_the_share_are_trained_and_sent(share: float, first: str) -> None:
    names, update = sent_by(cnn, share)

    assert names[0] == first
    assert np.any(decompressed(update.vector) != 0)
    assert update.vector.size <= share * CNN_PARAMETERS * (1 + 1e-9)
    assert update.statistics.size == {"norm_0/gamma": 24, "norm_1/gamma": 16}.get(first, 0)


def test_a_share_of_one_is_the_whole_model() -> None:
    names, update = sent_by(cnn, 1.0)

    assert names[0] == "conv_0/kernel"
    assert (update.first_tensor, update.vector.size) == (0, CNN_PARAMETERS)


def test_a_share_that_leaves_nothing_to_train_is_refused_with_the_smallest_that_would_do() -> None:
    task = CheckedTask(a_task(cnn))
    task.model()

    with pytest.raises(TaskError) as error:
        task.train_last(0.001)

    assert str(error.value) == (
        "--train-share 0.001 leaves nothing to train: the last layer that is trained, from last/kernel on, "
        "has 21 of 3,459 parameters, so the share must be at least 0.00608"
    )
    assert task.train_last(0.00608).tensors[0].name == "last/kernel"


def test_auto_trains_more_and_more_layers_up_to_the_whole_model() -> None:
    task = CheckedTask(a_task(cnn))
    model = task.model()
    task.prepare(Site())
    part = TrainedPart(task, model.layout, "auto")
    version, first = version_of(model, Plan(batch_size=8)), []

    while not part.is_settled:
        for _ in range(ROUNDS_PER_PART):
            update = update_of_a_round(task, version)
            assert update.vector.size == part.layout.size
            part.note_round()
        first.append(version.layout.tensors[update.first_tensor].name)
        part.choose(too_slow="", memory=Memory())

    assert first == ["last/kernel", "hidden/kernel", "conv_1/kernel", "conv_0/kernel"]
    assert part.layout.size == CNN_PARAMETERS


def update_of_a_round(task: CheckedTask, version: ModelVersion) -> WeightUpdate:
    update_id = UpdateId("small", "r", 1)
    return train_round(task, version, {}, update_id=update_id, seed=1, progress=silent).update


def test_a_frozen_batch_normalization_uses_the_federations_statistics_and_keeps_them() -> None:
    task = a_task(cnn)
    model = CheckedTask(task).model()
    assert task.train_last(0.5) == "last/kernel"
    task.prepare(Site())
    weights = {**model.weights, "norm_1/moving_mean": np.full(8, -0.5, np.float32)}
    weights["norm_1/moving_variance"] = np.full(8, 9.0, np.float32)

    trained = task.train(weights, Plan(batch_size=8), seed=1, progress=silent)

    built = task._model().model
    before_last = import_keras().Model(built.inputs[0], built.layers[-1].input)
    assert set(changed(weights, trained.weights)) == {"last/kernel", "last/bias"}
    in_training = import_keras().ops.convert_to_numpy(before_last(IMAGES, training=True))
    np.testing.assert_allclose(in_training, before_last.predict(IMAGES, verbose=0), rtol=1e-4, atol=1e-6)


def changed(before: Any, after: Any) -> list[str]:
    return [name for name in before if not np.array_equal(before[name], after[name])]


def test_frozen_layers_have_no_moments() -> None:
    task = a_task(cnn)
    task.initial_weights(0)
    whole = sum(array.size for array in task.optimizer_state().values())

    task.train_last(0.5)

    # The learning rate and the number of steps, and Adam's two moments of the last layer.
    assert sum(array.size for array in task.optimizer_state().values()) == 2 + 2 * 21
    assert whole == 2 + 2 * CNN_PARAMETERS


def test_the_same_seed_gives_the_same_bits_and_the_optimizer_may_be_kept(tmp_path: Path) -> None:
    plan = Plan(batch_size=8, keep_optimizer=True, proximal_mu=0.1 if uses_tensorflow() else 0.0)

    updates = [a_round(CheckedTask(a_task(cnn)), 0.9, plan)[1] for _ in range(2)]

    assert decompressed(updates[0].vector).tobytes() == decompressed(updates[1].vector).tobytes()


def test_local_weights_behind_the_share_are_trained_and_those_before_it_are_an_error() -> None:
    task = CheckedTask(a_task(cnn, local=("last/*",)))
    version, update = a_round(task, 0.8995)
    assert version.layout.tensors[update.first_tensor].name == "hidden/kernel"

    task = CheckedTask(a_task(cnn, local=("norm_1/*",)))
    task.model()
    with pytest.raises(TaskError) as error:
        task.train_last(0.05)
    # Even if it is smaller than the last layer: the share that suffices for that one would be refused next.
    with pytest.raises(TaskError) as smaller:
        task.train_last(0.001)

    assert str(smaller.value) == str(error.value).replace("0.05", "0.001")
    assert str(error.value) == (
        "--train-share 0.05 would freeze norm_1/beta, norm_1/gamma, norm_1/moving_mean and 1 more, which the "
        "task keeps at its site (local) and only this site can train: choose a share of at least 0.901"
    )
    assert task.train_last(0.901).tensors[0].name == "hidden/kernel"


def test_a_task_that_cannot_train_a_part_is_an_error_that_says_so() -> None:
    task = CheckedTask(CountingTask())
    task.model()

    with pytest.raises(
        TaskError, match=r"the task CountingTask cannot train a part .* leave out --train-share"
    ):
        task.train_last(0.5)


def a_share_for(task: CheckedTask) -> float | None:
    """Return the share to try: 0.9, or the smallest that the task says; None if there is none below 1."""
    try:
        task.train_last(0.9)
    except TaskError as error:
        least = re.search(r"--train-share 0\.9 .* at least (\S+)$", str(error))
        whole = re.search(r"--train-share 0\.9 .*: leave it out$", str(error))
        if least is None and whole is None:
            raise
        return float(least[1]) if least and float(least[1]) < 1 else None
    return 0.9


# Each is about layers, or about what is done to their weights; `make test-long` tries the others.
QUICK = (
    *("subclassed", "several inputs and outputs", "shared layers", "SpectralNormalization"),
    *(
        "LSTM with masking",
        "MultiHeadAttention",
        "LoRA",
        "mixed_float16 with loss scaling",
        "a custom train_step",
    ),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in FEATURES]
)
def test_a_model_with_any_feature_trains_a_part_and_nothing_outside_of_it(name: str) -> None:
    feature: Feature = FEATURES[name]
    if feature.refused and not uses_tensorflow():
        return
    own = KerasTask(
        lambda: feature.build(import_keras()), lambda _: feature.data(), feature.data, local=feature.local
    )
    task = CheckedTask(own)
    model = task.model(seed=3)
    share = a_share_for(task)
    if share is None:
        # There is one layer alone, or what stays at its site begins with the first layer.
        return
    part = task.train_last(share)
    task.prepare(Site())
    start = {**model.weights, **model.local}

    trained = task.train(start, feature.plan, seed=1, progress=silent)

    assert part.size <= share * model.layout.size * (1 + 1e-9)
    assert trained.first_tensor == len(model.layout.tensors) - len(part.tensors)
    after = {**trained.weights, **trained.local}
    trained_names = {spec.name for spec in part.tensors if spec.group == "trained"}
    statistics = {spec.name for spec in model.layout.tensors if spec.group == "statistic"}
    moved = set(changed(start, after)) - set(model.local)
    assert moved & trained_names
    # Keras divides the kernel by its spectral norm, whether the layer is frozen or not.
    assert moved <= trained_names | statistics | {"spectral_normalization/dense/kernel"}
    assert all(np.isfinite(array.astype(np.float64)).all() for array in after.values())
