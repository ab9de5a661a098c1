"""FedAC: its formulas in float64, and how much an update counts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import SIZE, a_model, an_update, float32s
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle.vector_math import cosine
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy

K = 2
# Sixteenths that are not zero, so that no second moment is so small that rounding decides the step.
vectors = arrays(np.float32, SIZE, elements=st.integers(1, 64).map(lambda number: number / 16)).flatmap(
    lambda found: arrays(np.float32, SIZE, elements=st.sampled_from([-1.0, 1.0])).map(
        lambda sign: found * sign
    )
)
buffers = st.lists(st.tuples(vectors, st.integers(1, 9)), min_size=K, max_size=K)


def fedac(**settings: object) -> Strategy:
    given = {"buffer_size": K, "server_learning_rate": 0.25, **settings}
    return STRATEGIES["fedac"].model_validate(given).make()


def cosine_of(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms else 1.0


def reference(come: Sequence[Sequence[tuple[Vector, int]]], *, by_examples: bool) -> NDArray[np.float64]:
    """The weights, the moments and the step, line by line in float64."""
    x, m, v = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for buffer in come:
        deltas = [delta.astype(np.float64) for delta, _ in buffer]
        weights = [
            max(cosine_of(delta, m), 0.1) * (examples if by_examples else 1)
            for delta, (_, examples) in zip(deltas, buffer, strict=True)
        ]
        d = np.average(deltas, axis=0, weights=weights)
        m = 0.6 * m + 0.4 * d
        v = 0.9 * v + 0.1 * d**2
        x = x + 0.25 * (0.6 * m + 0.4 * d) / (np.sqrt(v) + 1e-8)
    return x


@given(st.lists(buffers, min_size=1, max_size=4), st.booleans())
def test_fedac_agrees_with_its_formulas_in_float64(
    come: list[list[tuple[Vector, int]]], by_examples: bool
) -> None:
    model = a_model(fedac(weigh_by="examples" if by_examples else "none"))

    for number, (delta, examples) in enumerate([one for buffer in come for one in buffer], start=1):
        update = an_update("w", number, base_version=model.version, examples=examples)
        model.fold(replace(update, vector=float32s(delta)), now=0.0)

    # A mean that cancels to nearly nothing is divided by the root of its own small square.
    np.testing.assert_allclose(model.vector, reference(come, by_examples=by_examples), rtol=1e-3, atol=2e-3)


def test_an_update_against_the_servers_direction_counts_a_tenth_and_a_fresh_one_in_full() -> None:
    model = a_model(fedac(weigh_by="none", buffer_size=1))
    first = an_update("w", 1, values=[1.0] * SIZE)
    # Public code takes the cosine with x_t - x_base, which is 0 for a fresh update: it counts a tenth there.
    assert model.weigh(first).factor == 1
    model.fold(first, now=0.0)

    along = model.weigh(an_update("w", 2, base_version=1, values=[3.0] * SIZE))
    across = model.weigh(an_update("w", 2, base_version=1, values=[3.0, 0.0, 0.0, 0.0]))
    against = model.weigh(an_update("w", 2, base_version=1, values=[-3.0] * SIZE))

    assert [each.factor for each in (along, across, against)] == pytest.approx([1.0, 0.5, 0.1])
    assert along.divisor == along.factor


@given(vectors, vectors)
def test_the_cosine_is_that_of_float64(one: Vector, other: Vector) -> None:
    expected = cosine_of(one.astype(np.float64), other.astype(np.float64))

    assert cosine(float32s(one).blocks(), other) == pytest.approx(expected)


def test_the_cosine_with_a_vector_of_zeros_is_1() -> None:
    assert cosine([np.ones(SIZE, np.float32)], np.zeros(SIZE, np.float32)) == 1
