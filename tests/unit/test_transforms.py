"""Server optimizers: steps computed by hand, a float64 reference, what they promise of bits and memory."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from fluffle import vector_math
from fluffle.model import Vector
from fluffle_aggregator.transforms import (
    Adaptive,
    Moments,
    ServerOptimizer,
    ServerOptimizerSettings,
    starting_moments,
)

Float64 = NDArray[np.float64]
NAMES = ("sgd", "momentum", "adam", "yogi", "adagrad")
SIZE = 7

elements = st.floats(-8.0, 8.0, width=32)
vectors = arrays(np.float32, SIZE, elements=elements)
rounds = st.lists(vectors, min_size=1, max_size=6)


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def an_optimizer(
    name: str,
    *,
    learning_rate: float = 1.0,
    beta1: float | None = None,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> ServerOptimizer:
    optimizer = ServerOptimizerSettings.model_validate(
        {"server_optimizer": name, "server_learning_rate": learning_rate, "server_momentum": beta1}
    ).make_optimizer()
    return replace(optimizer, beta2=beta2, tau=tau) if isinstance(optimizer, Adaptive) else optimizer


def run(
    optimizer: ServerOptimizer, model: Vector, deltas: Sequence[Vector], moments: Moments | None = None
) -> tuple[Vector, Moments]:
    """Apply copies of the deltas one after the other."""
    model = model.copy()
    moments = starting_moments(optimizer.starts, model.size) if moments is None else moments
    for delta in deltas:
        change = delta.copy()
        optimizer.apply(change, moments)
        model += change
    return model, moments


def bits(model: Vector, moments: Moments) -> dict[str, bytes]:
    return {"model": model.tobytes()} | {name: moment.tobytes() for name, moment in moments.items()}


def reference(
    name: str, model: Vector, deltas: Sequence[Vector], *, eta: float, beta1: float, beta2: float, tau: float
) -> Float64:
    """Algorithm 2 of Reddi et al. and FedAvgM, line by line in float64."""
    x = model.astype(np.float64)
    m, v = np.zeros_like(x), np.full_like(x, tau**2)
    for delta in deltas:
        d = delta.astype(np.float64)
        if name == "sgd":
            x = x + eta * d
            continue
        if name == "momentum":
            m = beta1 * m + d
            x = x + eta * m
            continue
        m = beta1 * m + (1 - beta1) * d
        if name == "adagrad":
            v = v + d**2
        elif name == "yogi":
            v = v - (1 - beta2) * d**2 * np.sign(v - d**2)
        elif name == "adam":
            v = beta2 * v + (1 - beta2) * d**2
        x = x + eta * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize(
    ("name", "after_one", "after_two"),
    [
        # Model 1, deltas 2 and then -4, learning rate 0.5, beta1 0.75, beta2 0.5, tau 0.5 (v starts at 0.25).
        ("sgd", 1 + 0.5 * 2, 2 + 0.5 * -4),
        # m = 2, then 0.75 * 2 - 4 = -2.5.
        ("momentum", 1 + 0.5 * 2, 2 + 0.5 * -2.5),
        # m = 0.5, then 0.375 - 1 = -0.625; v = 0.125 + 2 = 2.125, then 1.0625 + 8 = 9.0625.
        ("adam", 1 + 0.25 / (2.125**0.5 + 0.5), 1 + 0.25 / (2.125**0.5 + 0.5) - 0.3125 / (9.0625**0.5 + 0.5)),
        # v = 0.25 + 0.5 * 4 = 2.25, then 2.25 + 0.5 * 16 = 10.25.
        ("yogi", 1 + 0.25 / 2.0, 1 + 0.25 / 2.0 - 0.3125 / (10.25**0.5 + 0.5)),
        # v = 0.25 + 4 = 4.25, then 4.25 + 16 = 20.25.
        ("adagrad", 1 + 0.25 / (4.25**0.5 + 0.5), 1 + 0.25 / (4.25**0.5 + 0.5) - 0.3125 / 5.0),
    ],
)
def test_two_steps_of_an_optimizer_are_those_computed_by_hand(
    name: str, after_one: float, after_two: float
) -> None:
    optimizer = an_optimizer(name, learning_rate=0.5, beta1=0.75, beta2=0.5, tau=0.5)

    first, _ = run(optimizer, vector(1), [vector(2)])
    second, _ = run(optimizer, vector(1), [vector(2), vector(-4)])

    assert first[0] == pytest.approx(after_one, rel=1e-6)
    assert second[0] == pytest.approx(after_two, rel=1e-6)


def test_yogi_forgets_a_large_second_moment_by_the_square_of_the_delta_only() -> None:
    optimizer = an_optimizer("yogi", learning_rate=1.0, beta1=0.0, beta2=0.75, tau=2.0)

    _, moments = run(optimizer, vector(0), [vector(1)])  # v starts at 4, above the square

    assert moments["v"][0] == 4 - 0.25 * 1


@given(st.sampled_from(NAMES), vectors, rounds, st.sampled_from([0.0, 0.5, 0.9]))
def test_an_optimizer_agrees_with_its_formula_in_float64(
    name: str, model: Vector, deltas: list[Vector], beta1: float
) -> None:
    # Powers of 2, so that yogi's sign of v - square is the same in float32.
    optimizer = an_optimizer(name, learning_rate=0.3, beta1=beta1, beta2=0.75, tau=2**-7)

    result, _ = run(optimizer, model, deltas)

    expected = reference(name, model, deltas, eta=0.3, beta1=beta1, beta2=0.75, tau=2**-7)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("name", "beta1"), [("adam", 0.9), ("yogi", 0.9), ("adagrad", 0.0)])
def test_the_parameters_that_are_not_given_are_those_of_the_paper(name: str, beta1: float) -> None:
    given_none = an_optimizer(name, learning_rate=0.1)

    given_all = an_optimizer(name, learning_rate=0.1, beta1=beta1, beta2=0.99, tau=1e-3)

    assert given_none == given_all


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("sgd", {}),
        ("momentum", {"m": 0.0}),
        ("adam", {"m": 0.0, "v": 0.25}),
        ("yogi", {"m": 0.0, "v": 0.25}),
        ("adagrad", {"v": 0.25}),
    ],
)
def test_moments_are_float32_vectors_of_the_models_size_and_v_starts_at_tau_squared(
    name: str, starts: dict[str, float]
) -> None:
    optimizer = an_optimizer(name, learning_rate=1.0, tau=0.5)

    moments = starting_moments(optimizer.starts, 3)

    assert {key: moment.tolist() for key, moment in moments.items()} == {
        key: [start] * 3 for key, start in starts.items()
    }
    assert all(moment.dtype == np.float32 for moment in moments.values())
    assert optimizer.starts == starts


@given(st.sampled_from(NAMES), vectors, rounds, rounds)
def test_a_run_that_continues_from_a_record_gives_the_same_bits(
    name: str, model: Vector, before: list[Vector], after: list[Vector]
) -> None:
    optimizer = an_optimizer(name, learning_rate=0.3)
    recorded_model, recorded_moments = run(optimizer, model, before)
    recorded = {key: moment.tobytes() for key, moment in recorded_moments.items()}
    successor = an_optimizer(name, learning_rate=0.3)

    moments: Moments = {key: np.frombuffer(moment, np.float32).copy() for key, moment in recorded.items()}
    continued, moments = run(successor, recorded_model, after, moments)

    assert bits(continued, moments) == bits(*run(optimizer, model, [*before, *after]))


@given(st.sampled_from(NAMES), vectors, rounds, st.integers(1, SIZE + 1))
def test_the_block_size_does_not_show_in_the_bits(
    name: str, model: Vector, deltas: list[Vector], block_size: int
) -> None:
    optimizer = an_optimizer(name, learning_rate=0.3, beta1=0.9)
    whole = run(optimizer, model, deltas)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_math, "BLOCK_SIZE", block_size)
        in_blocks = run(optimizer, model, deltas)

    assert bits(*in_blocks) == bits(*whole)


@given(st.sampled_from(NAMES), vectors, rounds, st.integers(1, SIZE - 1))
def test_one_vector_is_optimized_as_tensor_by_tensor(
    name: str, model: Vector, deltas: list[Vector], cut: int
) -> None:
    optimizer = an_optimizer(name, learning_rate=0.3, beta1=0.9)

    whole, _ = run(optimizer, model, deltas)

    first, _ = run(optimizer, model[:cut], [delta[:cut] for delta in deltas])
    second, _ = run(optimizer, model[cut:], [delta[cut:] for delta in deltas])
    assert whole.tobytes() == first.tobytes() + second.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_needs_no_further_vector_of_the_models_size(name: str) -> None:
    size = 16 * vector_math.BLOCK_SIZE
    optimizer = an_optimizer(name, learning_rate=0.3, beta1=0.9)
    delta, moments = np.ones(size, np.float32), starting_moments(optimizer.starts, size)

    tracemalloc.start()
    optimizer.apply(delta, moments)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < delta.nbytes / 4


@pytest.mark.parametrize("name", NAMES)
def test_an_element_that_never_learns_stays_where_it_is(name: str) -> None:
    optimizer = an_optimizer(name, learning_rate=1.0, tau=1e-15)

    model, _ = run(optimizer, vector(3), [vector(0), vector(0)])

    assert model[0] == 3


def test_an_optimizer_shows_its_parameters() -> None:
    shown = [str(an_optimizer(name, learning_rate=0.5)) for name in NAMES]

    assert shown == [
        "sgd(learning_rate=0.5)",
        "momentum(learning_rate=0.5, beta1=0.9)",
        "adam(learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.001)",
        "yogi(learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.001)",
        "adagrad(learning_rate=0.5, beta1=0, tau=0.001)",
    ]


def test_an_unknown_optimizer_is_refused_with_the_list_of_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="'sgd', 'momentum', 'adam', 'yogi' or 'adagrad'"):
        an_optimizer("lion")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("server_learning_rate", 0.0),
        ("server_learning_rate", -1.0),
        ("server_momentum", 1.0),
        ("server_momentum", -0.1),
    ],
)
def test_a_parameter_out_of_its_range_is_refused_by_the_name_of_its_setting(
    name: str, setting: str, wrong: float
) -> None:
    with pytest.raises(ValidationError, match=setting):
        ServerOptimizerSettings.model_validate({"server_optimizer": name, setting: wrong})
