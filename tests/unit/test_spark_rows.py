"""Arrow batches of a site become the arrays that a task trains on, whatever the batches' sizes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import TaskError
from fluffle_spark.order import Order, SiteReport
from fluffle_spark.rows import FIRST_ROWS, SiteRows


def rows_of(*batches: pa.RecordBatch, label: str = "y") -> SiteRows:
    features = [name for name in batches[0].schema.names if name != label]
    return SiteRows(features, label).add_all(batches)


def a_batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@given(
    st.lists(
        st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 9)), max_size=30), min_size=1
    )
)
def test_rows_keep_their_order_and_values_over_batches(batches: list[list[tuple[float, int]]]) -> None:
    schema = pa.schema({"a": pa.float64(), "y": pa.int32()})
    made = [pa.RecordBatch.from_pylist([{"a": a, "y": y} for a, y in each], schema) for each in batches]
    expected = [pair for each in batches for pair in each]
    if not expected:
        with pytest.raises(TaskError, match="has no rows"):
            rows_of(*made).parts()
        return

    x, y = rows_of(*made).parts()

    np.testing.assert_array_equal(x, np.array([[a] for a, _ in expected], np.float32))
    np.testing.assert_array_equal(y, [y for _, y in expected])


def test_more_rows_than_the_first_array_has_room_for_are_kept() -> None:
    numbers = np.arange(3 * FIRST_ROWS + 7)
    batches = [a_batch(a=part, b=-part, y=part % 2) for part in np.array_split(numbers, 9)]

    x, y = rows_of(*batches).parts()

    np.testing.assert_array_equal(x, np.stack([numbers, -numbers], axis=1).astype(np.float32))
    np.testing.assert_array_equal(y, numbers % 2)


def test_booleans_and_decimals_are_numbers_and_null_is_nan() -> None:
    price = pa.array([1, None, 3], pa.int32()).cast(pa.decimal128(12, 2))
    batch = pa.RecordBatch.from_arrays(
        [pa.array([True, False, None]), price, pa.array([0.5, 1.5, 2.5])], ["sick", "price", "y"]
    )

    rows = rows_of(batch)
    x, y = rows.parts()

    np.testing.assert_array_equal(x, np.array([[1, 1], [0, np.nan], [np.nan, 3]], np.float32))
    np.testing.assert_array_equal(y, np.array([0.5, 1.5, 2.5], np.float32))
    assert rows.missing == {"sick": 1, "price": 1}


def test_nan_counts_as_missing_as_null_does() -> None:
    """Libraries on Spark crashed on NaN where null was expected: dmlc/xgboost#2917 and #4714."""
    assert rows_of(a_batch(a=[1.0, float("nan"), 3.0], y=[0, 1, 0])).missing == {"a": 1}
    assert rows_of(a_batch(a=[[1.0, float("nan")], [1.0, 2.0]], y=[0, 1])).missing == {"a": 1}
    assert rows_of(a_batch(a=[[1.0, 2.0], None], y=[0, 1])).missing == {"a": 2}


def test_a_column_of_arrays_is_the_input_and_several_columns_are_a_dictionary() -> None:
    images = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]

    alone, _ = rows_of(a_batch(image=images, y=[0, 1])).parts()
    both, _ = rows_of(a_batch(image=images, age=[40, 50], y=[0, 1])).parts()

    assert isinstance(alone, np.ndarray)
    assert alone.shape == (2, 2, 2)
    assert isinstance(both, dict)
    np.testing.assert_array_equal(both["image"], alone)
    np.testing.assert_array_equal(both["age"], [40, 50])


def test_texts_are_labels_as_they_are() -> None:
    _, y = rows_of(a_batch(a=[1.0, 2.0], y=["ill", "well"]), a_batch(a=[3.0], y=["unknown"])).parts()

    assert y.tolist() == ["ill", "well", "unknown"]


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (a_batch(a=["x"], y=[1]), "the column 'a' holds string where numbers are expected"),
        (a_batch(a=[1.0], y=pa.array([None], pa.int32())), "the label 'y' is null in 1 of these rows"),
        (a_batch(a=[1.0], y=[float("nan")]), "the label 'y' is NaN in 1 of these rows"),
        (a_batch(a=[[1.0], [1.0, 2.0]], y=[1, 1]), "holds lists of 1 and of 2 values"),
        (a_batch(a=[1.0], y=[[float("nan")]]), "the label 'y' is NaN in 1 of these rows"),
        (a_batch(a=[["x"]], y=[1]), "the column 'a' holds list<item: string> where numbers are expected"),
        (a_batch(a=[1e300], y=[1]), "the column 'a' of the data frame holds 1e\\+300, and models train on"),
        (a_batch(a=[[-1e39]], y=[1]), "the column 'a' of the data frame holds -1e\\+39, and models train on"),
        (a_batch(a=[1.0], y=[1e39]), "the label 'y' of the data frame holds 1e\\+39, and models train on"),
    ],
)
def test_what_cannot_be_trained_on_is_named(batch: pa.RecordBatch, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        rows_of(batch)


def test_arrays_of_another_size_in_a_later_batch_are_refused() -> None:
    with pytest.raises(TaskError, match="holds lists of 2 and of 1 values"):
        rows_of(a_batch(a=[[1.0, 2.0]], y=[1]), a_batch(a=[[1.0]], y=[1]))


def test_an_order_and_a_report_arrive_as_they_were_sent() -> None:
    order = Order(
        site="ward-1", task="t:task", features=("a", "b"), label="y", settings={"delay": 0.5}, code=b"\0\xff"
    )
    report = SiteReport(site="ward-1", rows=3, metrics={"loss": 0.25})

    assert Order.decode(order.encode()) == order
    assert SiteReport.decode(report.encode()) == report
    assert b"\n" not in order.encode()[:-1]


def test_turns_of_a_site_add_up() -> None:
    first = SiteReport(site="w", rows=9, rounds=2, updates=2, metrics={"loss": 1.0})
    second = SiteReport(site="w", rows=9, rounds=3, updates=2, ended="accuracy>=0.9 held")

    both = first.then(second)

    assert (both.rounds, both.updates, both.ended, both.metrics) == (
        5,
        4,
        "accuracy>=0.9 held",
        {"loss": 1.0},
    )
