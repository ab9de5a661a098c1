"""Labels as tables hold them: text, numbers and yes-or-no become classes or targets, or one sentence."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle.table_model import MAX_TABLE_CLASSES
from fluffle_worker.tabular.labels import LabelSurvey, classes_of_rows, targets_of_rows

TEXT = np.array(["b", "a", None, "", "b"], object)


def looked_at(*chunks: NDArray[np.generic]) -> LabelSurvey:
    found = LabelSurvey("outcome")
    for values in chunks:
        found.add(values)
    return found


@pytest.mark.parametrize(
    ("values", "classes", "codes"),
    [
        (np.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
        (TEXT, ("a", "b"), [1, 0, np.nan, np.nan, 1]),
        (np.array([2, 0, 1]), ("0", "1", "2"), [2, 0, 1]),
        (np.array([1.0, np.nan, 0.0]), ("0", "1"), [1, np.nan, 0]),
        (np.array([True, False]), ("0", "1"), [1, 0]),
        (np.array([True, None], object), ("0", "1"), [1, np.nan]),
        (np.array(["1", "0"]), ("0", "1"), [1, 0]),
        (np.array([Decimal(3), Decimal(1)], object), ("1", "2", "3"), [2, 0]),
        (pd.array([1, None, 2], dtype="Int64").astype(object), ("1", "2"), [0, np.nan, 1]),
        (np.array([7, -1]), ("-1", "7"), [1, 0]),
    ],
)
def test_labels_of_each_kind_become_the_numbers_of_their_classes(
    values: NDArray[np.generic], classes: tuple[str, ...], codes: list[float]
) -> None:
    np.testing.assert_array_equal(classes_of_rows("outcome", values, classes), codes)


def test_labels_without_a_missing_one_are_whole_numbers() -> None:
    assert classes_of_rows("outcome", np.array(["b", "a"]), ("a", "b")).dtype == np.int64


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.array(["mild", "sever", "sever"]),
            r"'sever' in 2 rows \(did you mean 'severe'\?\), and the classes",
        ),
        (np.array([1, 5]), r"'1', '5' in 2 rows, and the classes of this federation are 'mild', 'severe'"),
        (np.array([0.5]), "holds 0.5, and classes are text or whole numbers"),
    ],
)
def test_a_label_that_is_no_class_is_named(values: NDArray[np.generic], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        classes_of_rows("outcome", values, ("mild", "severe"))


def test_targets_are_numbers_with_nan_where_one_is_missing() -> None:
    given = np.array([Decimal("1.5"), None, 2], object)

    found = targets_of_rows("months", given)

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, np.nan, 2])
    np.testing.assert_array_equal(targets_of_rows("months", np.array(["1.5", ""])), [1.5, np.nan])
    with pytest.raises(TaskError, match="holds 'many', and this federation's label is a number"):
        targets_of_rows("months", np.array(["1", "many"]))


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (TEXT, ("a", "b")),
        (np.array([10, 9, 9]), ("9", "10")),
        (np.array([True, False]), ("0", "1")),
        (np.array([0.0, 1.0, np.nan]), ("0", "1")),
    ],
)
def test_text_yes_or_no_and_few_whole_numbers_look_like_classes(
    values: NDArray[np.generic], classes: tuple[str, ...]
) -> None:
    found = looked_at(values)

    assert found.are_classes
    assert found.classes() == classes


@pytest.mark.parametrize("values", [np.array([0.5, 1.0]), np.arange(21), np.arange(21.0)])
def test_other_numbers_look_like_a_number(values: NDArray[np.generic]) -> None:
    assert not looked_at(values).are_classes


def test_mean_and_deviation_are_those_of_all_chunks_also_far_from_zero() -> None:
    values = 1.7e9 + np.random.default_rng(0).normal(size=1000)

    found = looked_at(*np.array_split(values, 7), np.array([np.nan, np.inf]))

    assert found.count == 1000
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert found.deviation == pytest.approx(values.std(), rel=1e-5)


def test_a_column_of_as_many_texts_as_rows_is_no_column_of_classes_and_takes_little_memory() -> None:
    found = looked_at(*(np.array([f"{start + at}" for at in range(500)]) for start in range(0, 100_000, 500)))

    assert len(found.names) <= MAX_TABLE_CLASSES + 500
    with pytest.raises(TaskError, match="more than 1,000 different values"):
        found.classes()


def test_a_single_class_is_refused() -> None:
    with pytest.raises(
        TaskError, match=r"all labels 'outcome' of the data are 'a', and a model tells 2 classes"
    ):
        looked_at(np.array(["a", "a"])).classes()
