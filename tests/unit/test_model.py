"""A model as a layout and one vector: what goes in comes out again, and what differs is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle.errors import LayoutError
from fluffle.model import FLOATS, INTEGERS, Layout, TensorSpec, largest_magnitude

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
    return Layout(tuple(TensorSpec(*each) for each in names_and_shapes))


@given(models())
def test_flattening_and_restoring_gives_the_same_arrays(weights: Arrays) -> None:
    layout = Layout.of(weights)

    vector, integers = layout.flatten(weights)
    restored = layout.restore(vector, integers)

    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    assert len(integers) == layout.integers_size_bytes
    assert list(restored) == list(weights)
    for name, array in weights.items():
        assert restored[name].dtype == array.dtype
        assert restored[name].shape == array.shape
        assert restored[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_float_of_any_width_lies_in_the_vector_as_float32(dtype: str) -> None:
    third = np.array([1 / 3, -2.5], FLOATS[dtype])

    vector, _ = Layout.of({"x": third}).flatten({"x": third})

    assert vector.tolist() == third.astype(np.float32).tolist()


def test_a_bfloat16_tensor_comes_back_as_bfloat16() -> None:
    weights = {"x": np.array([1.0, -0.5], FLOATS["bfloat16"])}
    layout = Layout.of(weights)

    restored = layout.restore(*layout.flatten(weights))

    assert layout.tensors == (TensorSpec("x", (2,), "bfloat16"),)
    assert restored["x"].dtype.name == "bfloat16"
    assert restored["x"].astype(np.float64).tolist() == [1.0, -0.5]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool"])
def test_integers_travel_beside_the_vector_and_keep_every_bit(dtype: str) -> None:
    extremes = [False, True] if dtype == "bool" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    weights = {"steps": np.array(extremes, dtype), "x": np.zeros(3, np.float32)}
    layout = Layout.of(weights)

    vector, integers = layout.flatten(weights)

    assert vector.size == 3
    assert layout.restore(vector, integers)["steps"].tolist() == extremes


def test_integers_travel_as_little_endian_bytes_on_every_machine() -> None:
    weights = {"n": np.array([1, 258], ">i4")}
    layout = Layout.of(weights)

    _, integers = layout.flatten(weights)

    assert integers == b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert layout.restore(np.empty(0, np.float32), integers)["n"].tolist() == [1, 258]


def test_the_vector_follows_the_tensors_in_c_order_however_they_lie_in_memory() -> None:
    weights = {"a": np.array([[1, 2], [3, 4]], np.float32).T, "b": np.array(5.0, np.float32)}

    vector, _ = Layout.of(weights).flatten(weights)

    assert vector.tolist() == [1, 3, 2, 4, 5]


def test_restored_float32_tensors_are_views_and_cost_no_copy() -> None:
    weights = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
    layout = Layout.of(weights)
    vector, integers = layout.flatten(weights)

    restored = layout.restore(vector, integers)

    assert all(np.shares_memory(tensor, vector) for tensor in restored.values())


def test_flattening_never_gives_the_callers_own_memory() -> None:
    weights = {"a": np.ones(4, np.float32)}

    vector, _ = Layout.of(weights).flatten(weights)
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
    assert (layout.digest == found.digest) == (difference is None)


def test_a_model_of_another_layout_is_refused_when_it_is_flattened() -> None:
    layout = specs(("w", (2,), "float32"))

    with pytest.raises(LayoutError, match=r"w float32\[2\] where this one has w float64\[2\]"):
        layout.flatten({"w": np.zeros(2, np.float64)})


@pytest.mark.parametrize(("floats", "integers"), [(5, 8), (3, 8), (4, 7), (4, 9)])
def test_a_vector_or_integers_of_another_length_are_refused(floats: int, integers: int) -> None:
    layout = specs(("w", (2, 2), "float32"), ("n", (), "int64"))

    with pytest.raises(LayoutError, match="expected 4 floats and 8 bytes of integers"):
        layout.restore(np.zeros(floats, np.float32), bytes(integers))


def test_a_layout_with_one_name_twice_or_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(LayoutError, match="'w' stand there twice"):
        specs(("w", (1,), "float32"), ("w", (2,), "float32"))
    with pytest.raises(LayoutError, match="w has the dtype complex64; known are float16"):
        specs(("w", (1,), "complex64"))


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
