"""A model as a layout and flat arrays: what goes in comes out again, and what differs is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle.errors import LayoutError
from fluffle.model import (
    FLOATS,
    INTEGERS,
    SHARED_GROUPS,
    FlatWeights,
    FrozenPart,
    Group,
    Layout,
    TensorSpec,
    no_values,
)
from fluffle.vector_math import largest_magnitude

DTYPES = [*FLOATS, *INTEGERS]
Arrays = dict[str, NDArray[np.generic]]


@st.composite
def models(draw: st.DrawFn) -> Arrays:
    """Named arrays of every dtype and of every shape from a scalar on, some without elements."""
    weights: Arrays = {}
    for number in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
        dtype = FLOATS.get(name) or np.dtype(name)
        elements = st.integers(0, 1) if name == "bool" else st.integers(0, 100)
        size = int(np.prod(shape, dtype=int))
        values = draw(st.lists(elements, min_size=size, max_size=size))
        # Small whole numbers are exact in every one of the dtypes.
        weights[f"tensor {number}"] = np.array(values, np.int64).astype(dtype).reshape(shape)
    return weights


def specs(*names_and_shapes: tuple[str, tuple[int, ...], str]) -> Layout:
    """A layout in which each float tensor is trained."""
    return Layout(
        tuple(
            TensorSpec(name, shape, dtype, "statistic" if dtype in INTEGERS else "trained")
            for name, shape, dtype in names_and_shapes
        )
    )


@given(models(), st.data())
def test_flattening_and_restoring_gives_the_same_arrays(weights: Arrays, data: st.DataObject) -> None:
    groups: dict[str, Group] = {name: data.draw(st.sampled_from(SHARED_GROUPS)) for name in weights}
    layout = Layout.of(weights, groups)

    flat = layout.flatten(weights)
    restored = layout.restore(flat)

    assert flat.vector.dtype == flat.statistics.dtype == np.float32
    assert flat.vector.shape == (layout.size,)
    assert flat.statistics.shape == (layout.statistics_size,)
    assert len(flat.integers) == layout.integers_size_bytes
    floats = {name: array for name, array in weights.items() if array.dtype.name in FLOATS}
    for group, size in (("trained", layout.size), ("statistic", layout.statistics_size)):
        assert size == sum(array.size for name, array in floats.items() if groups[name] == group)
    assert list(restored) == list(weights)
    for name, array in weights.items():
        assert restored[name].dtype == array.dtype
        assert restored[name].shape == array.shape
        assert restored[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_float_of_any_width_lies_in_the_vector_as_float32(dtype: str) -> None:
    third = np.array([1 / 3, -2.5], FLOATS[dtype])

    vector = Layout.of({"x": third}).flatten({"x": third}).vector

    assert vector.tolist() == third.astype(np.float32).tolist()


def test_a_bfloat16_tensor_comes_back_as_bfloat16() -> None:
    weights = {"x": np.array([1.0, -0.5], FLOATS["bfloat16"])}
    layout = Layout.of(weights)

    restored = layout.restore(layout.flatten(weights))

    assert layout.tensors == (TensorSpec("x", (2,), "bfloat16"),)
    assert restored["x"].dtype.name == "bfloat16"
    assert restored["x"].astype(np.float64).tolist() == [1.0, -0.5]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool"])
def test_integers_travel_beside_the_vector_and_keep_every_bit(dtype: str) -> None:
    extremes = [False, True] if dtype == "bool" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    weights = {"steps": np.array(extremes, dtype), "x": np.zeros(3, np.float32)}
    layout = Layout.of(weights)

    flat = layout.flatten(weights)

    assert flat.vector.size == 3
    assert layout.restore(flat)["steps"].tolist() == extremes


def test_integers_travel_as_little_endian_bytes_on_every_machine() -> None:
    weights = {"n": np.array([1, 258], ">i4")}
    layout = Layout.of(weights)

    flat = layout.flatten(weights)

    assert flat.integers == b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert layout.restore(flat)["n"].tolist() == [1, 258]


def test_the_vector_follows_the_tensors_in_c_order_however_they_lie_in_memory() -> None:
    weights = {"a": np.array([[1, 2], [3, 4]], np.float32).T, "b": np.array(5.0, np.float32)}

    vector = Layout.of(weights).flatten(weights).vector

    assert vector.tolist() == [1, 3, 2, 4, 5]


def test_restored_float32_tensors_are_views_and_cost_no_copy() -> None:
    weights = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
    layout = Layout.of(weights)
    flat = layout.flatten(weights)

    restored = layout.restore(flat)

    assert all(np.shares_memory(tensor, flat.vector) for tensor in restored.values())


def test_flattening_never_gives_the_callers_own_memory() -> None:
    weights = {"a": np.ones(4, np.float32)}

    vector = Layout.of(weights).flatten(weights).vector
    vector += 1

    assert weights["a"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        (specs(("w", (2, 3), "float32"), ("b", (3,), "float32")), None),
        (
            specs(("w", (3, 2), "float32"), ("b", (3,), "float32")),
            "w float32[2, 3] where this one has w float32[3, 2]",
        ),
        (
            specs(("w", (2, 3), "float16"), ("b", (3,), "float32")),
            "w float32[2, 3] where this one has w float16[2, 3]",
        ),
        (
            specs(("w", (2, 3), "float32"), ("c", (3,), "float32")),
            "b float32[3] where this one has c float32[3]",
        ),
        (
            specs(("b", (3,), "float32"), ("w", (2, 3), "float32")),
            "w float32[2, 3] where this one has b float32[3]",
        ),
        (specs(("w", (2, 3), "float32")), "2 tensors, this one 1"),
        (specs(), "2 tensors, this one 0"),
        (
            specs(("w", (2, 3), "float32"), ("b", (3,), "float32"), ("s", (), "int64")),
            "2 tensors, this one 3",
        ),
    ],
    ids=["equal", "shape", "dtype", "name", "order", "one less", "none", "one more"],
)
def test_the_first_difference_of_two_layouts_is_said_in_words(found: Layout, difference: str | None) -> None:
    layout = specs(("w", (2, 3), "float32"), ("b", (3,), "float32"))

    said = layout.difference(found)

    assert said == (difference and f"the federation's model has {difference}")
    assert layout.difference(found, whose="the task") == (difference and f"the task has {difference}")
    assert (layout.digest == found.digest) == (difference is None)


def test_a_model_of_another_layout_is_refused_when_it_is_flattened() -> None:
    layout = specs(("w", (2,), "float32"))

    with pytest.raises(
        LayoutError, match=r"^the model has w float32\[2\] where these weights have w float64\[2\]"
    ):
        layout.flatten({"w": np.zeros(2, np.float64)})
    with pytest.raises(LayoutError, match="the weights lack w"):
        layout.flatten({})
    with pytest.raises(LayoutError, match=r"^the model has no a, b, c and 1 more"):
        layout.flatten({name: np.zeros(2, np.float32) for name in "wabcd"})


@pytest.mark.parametrize(
    ("trained", "statistics", "integers"), [(5, 1, 8), (3, 1, 8), (4, 0, 8), (4, 2, 8), (4, 1, 7), (4, 1, 9)]
)
def test_flat_arrays_of_another_length_are_refused(trained: int, statistics: int, integers: int) -> None:
    tensors = TensorSpec("w", (2, 2), "float32"), TensorSpec("mean", (), "float32", "statistic")
    layout = Layout((*tensors, TensorSpec("n", (), "int64", "statistic")))
    flat = FlatWeights(np.zeros(trained, np.float32), np.zeros(statistics, np.float32), bytes(integers))

    with pytest.raises(LayoutError, match="expected 4 trained values, 1 statistics and 8 bytes of integers"):
        layout.restore(flat)


def test_a_layout_with_one_name_twice_an_unknown_dtype_or_a_trained_integer_is_refused() -> None:
    with pytest.raises(LayoutError, match="occur twice: w"):
        specs(("w", (1,), "float32"), ("w", (2,), "float32"))
    with pytest.raises(LayoutError, match="w has the dtype complex64; known are float16"):
        specs(("w", (1,), "complex64"))
    with pytest.raises(LayoutError, match="n is int64: integers are statistics, never trained"):
        Layout((TensorSpec("n", (), "int64"),))


def a_batch_normalization() -> tuple[Arrays, dict[str, Group]]:
    weights = {
        name: np.full(2, at, np.float32) for at, name in enumerate(["gamma", "mean", "kernel", "head"])
    }
    return dict(weights), {"mean": "statistic", "kernel": "frozen", "head": "local"}


def test_statistics_lie_in_a_vector_of_their_own_and_frozen_and_local_tensors_do_not_travel() -> None:
    weights, groups = a_batch_normalization()
    layout = Layout.of(weights, groups)

    flat = layout.flatten({name: weights[name] for name in ("mean", "gamma")})

    assert flat.vector.tolist() == [0, 0]
    assert flat.statistics.tolist() == [1, 1]
    assert [str(spec) for spec in layout.tensors] == ["gamma float32[2]", "mean float32[2] (statistic)"]
    assert layout.frozen is not None
    assert (layout.frozen.tensors, layout.frozen.parameters) == (1, 2)
    assert layout.beside_vector_size_bytes == 8


def test_another_group_is_another_layout_and_the_difference_names_it() -> None:
    weights, groups = a_batch_normalization()
    layout = Layout.of(weights, groups)

    other = Layout.of(weights, {**groups, "mean": "trained"})

    assert layout.digest != other.digest
    assert layout.difference(other) == (
        "the federation's model has mean float32[2] (statistic) where this one has mean float32[2]"
    )


def test_frozen_tensors_with_other_values_or_another_number_are_another_layout() -> None:
    weights, groups = a_batch_normalization()
    layout = Layout.of(weights, groups)

    other_values = Layout.of({**weights, "kernel": np.full(2, 9, np.float32)}, groups)
    not_frozen = Layout.of({name: weights[name] for name in ("gamma", "mean")}, groups)

    assert len({layout.digest, other_values.digest, not_frozen.digest}) == 3
    assert "load the same pretrained weights in build_model at every site" in str(
        layout.difference(other_values)
    )
    assert "this one has no frozen tensors: freeze the same layers" in str(layout.difference(not_frozen))


def test_the_local_tensors_of_two_sites_may_differ() -> None:
    weights, groups = a_batch_normalization()

    two_sites = [Layout.of({**weights, "head": np.zeros(size, np.float32)}, groups) for size in (3, 7)]

    assert two_sites[0].digest == two_sites[1].digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_digest_of_frozen_tensors_covers_name_dtype_shape_and_every_value(dtype: str) -> None:
    values = np.array([[0, 1], [1, 1]], FLOATS.get(dtype) or np.dtype(dtype))

    different: list[Arrays] = [
        {"w": values},
        {"v": values},
        {"w": values.reshape(4)},
        {"w": values.T.copy() * 0},
        {"w": values.astype("float32" if dtype != "float32" else "float64")},
    ]

    assert len({FrozenPart.of(weights) for weights in different}) == len(different)
    assert FrozenPart.of({"w": values}) == FrozenPart.of({"w": np.asfortranarray(values)})


def test_tensors_that_are_not_finite_are_found_by_name() -> None:
    weights, groups = a_batch_normalization()
    layout = Layout.of(weights, groups)

    assert layout.tensors_not_finite(np.zeros(2, np.float32), np.array([0, np.nan], np.float32)) == ["mean"]
    assert layout.tensors_not_finite(np.array([np.inf, 0], np.float32), np.zeros(2, np.float32)) == ["gamma"]
    assert Layout(()).tensors_not_finite(no_values(), no_values()) == []


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 131_073])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_found_wherever_it_stands(size: int, poison: float) -> None:
    clean = np.full(size, np.finfo(np.float32).max, np.float32)
    assert np.isfinite(largest_magnitude(clean))

    for place in (0, size // 2, size - 1):
        poisoned = clean.copy()
        poisoned[place] = poison
        assert not np.isfinite(largest_magnitude(poisoned))


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 131_073])
def test_the_largest_magnitude_is_that_of_the_largest_element_of_either_sign(size: int) -> None:
    for place, value in ((0, -3.0), (size // 2, 2.0), (size - 1, -7.0)):
        vector = np.full(size, 0.5, np.float32)
        vector[place] = value

        assert largest_magnitude(vector) == abs(value)


def test_a_vector_of_no_elements_has_the_magnitude_0() -> None:
    assert largest_magnitude(np.empty(0, np.float32)) == 0
