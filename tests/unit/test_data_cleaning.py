"""Cleaning a site's rows: real data with dirt whose place is known, and what must hold for any table."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from fluffle.errors import ConfigError, TaskError
from fluffle_worker.data import DataSteps
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.outliers import fit_bounds
from fluffle_worker.data.pipeline import PreparedRows, take_steps
from fluffle_worker.data.rows import read_rows

Array = NDArray[Any]
tables = arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-1e6, 1e6))


def steps_on(*data: Any, site: int = 0, share: float = 0.0, **steps: Any) -> PreparedRows:
    return take_steps(read_rows(data), DataSteps(**steps), site=site, share=share)


def said(prepared: PreparedRows, step: str) -> str:
    [report] = [each for each in prepared.reports if each.step.startswith(step)]
    return report.detail


def with_holes(x: Array, share: float = 0.2) -> Array:
    return np.where(np.random.default_rng(5).random(x.shape) < share, np.nan, x)


@given(tables, st.sampled_from([Choice("quantiles", 0.1), Choice("quantiles", 0.01), Choice("mad", 3.0)]))
def test_clipped_values_lie_within_bounds_that_are_values_of_the_column(table: Array, way: Choice) -> None:
    bounds = fit_bounds(table, way)

    clipped = bounds.clip(table)

    assert bounds.outside(clipped) == 0
    inside = (table >= bounds.lowest) & (table <= bounds.highest)
    assert np.array_equal(clipped[inside], table[inside])
    if way.name == "quantiles":
        assert (table.min(axis=0) <= bounds.lowest + 1e-6).all()
        assert (table.max(axis=0) >= bounds.highest - 1e-6).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["median", "mean", "most_frequent", "knn:3", "drop"]))
def test_the_same_seed_gives_the_same_rows_and_nothing_is_missing(seed: int, impute: str) -> None:
    x, y = load_wine(return_X_y=True)
    x = with_holes(x, 0.05)
    steps: dict[str, Any] = {
        "impute": impute,
        "share": 0.3,
        "outliers": "quantiles:0.05",
        "balance": "oversample",
    }

    first, again = (steps_on(x, y, seed=seed, **steps) for _ in range(2))

    assert np.isfinite(first.train.x).all()
    for one, other in ((first.train, again.train), (first.held_out, again.held_out)):
        assert one is not None
        assert other is not None
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(np.asarray(one.y), np.asarray(other.y))


def test_what_is_held_out_has_no_influence_on_what_the_training_rows_become() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = with_holes(x)
    steps: dict[str, Any] = {"share": 0.25, "outliers": "mad:3", "impute": "mean"}
    before = steps_on(x, y, **steps)
    numbered = steps_on(np.arange(len(y))[:, None], y, share=0.25)
    assert numbered.held_out is not None
    is_held = np.isin(np.arange(len(y)), numbered.held_out.x)
    x[is_held] *= 1e6

    after = steps_on(x, y, **steps)

    assert np.array_equal(before.train.x, after.train.x)
    assert after.held_out is not None
    assert after.held_out.x.max() <= after.train.x.max()


def test_each_class_is_held_out_in_its_proportion() -> None:
    x, y = load_digits(return_X_y=True)

    prepared = steps_on(x, y, share=0.2)

    assert prepared.held_out is not None
    held = np.bincount(np.asarray(prepared.held_out.y))
    assert np.abs(held - 0.2 * np.bincount(y)).max() <= 1
    assert len(prepared.held_out) + len(prepared.train) == len(y)


def test_a_data_frame_with_missing_values_of_pandas_is_read_column_by_column() -> None:
    frame = load_diabetes(as_frame=True)
    x = frame.data.assign(visits=pd.array([1, None] * 221, dtype="Int64"), smoker=[True, False] * 221)

    prepared = steps_on(x, frame.target)

    assert prepared.train.x.shape == (442, 12)
    assert (prepared.train.x[:, -2] == 1).all()
    assert said(prepared, "impute") == "filled 221 of 5304 values"


def test_an_indicator_marks_what_was_missing_in_columns_of_its_own() -> None:
    x, y = load_wine(return_X_y=True)
    dirty = with_holes(x)
    dirty[:, 3] = np.nan

    prepared = steps_on(dirty, y, indicator=True)

    assert prepared.train.x.shape == (178, 26)
    assert np.array_equal(prepared.train.x[:, 13:] == 1, np.isnan(dirty))
    assert (prepared.train.x[:, 3] == 0).all()


def test_infinite_values_count_as_missing_and_are_reported() -> None:
    x, y = load_wine(return_X_y=True)
    x[3, 5], x[4, 5] = np.inf, -np.inf

    prepared = steps_on(x, y)

    assert said(prepared, "infinite") == "2 infinite values count as missing"
    assert prepared.train.x[3, 5] == np.median(np.delete(x[:, 5], [3, 4]))


def test_rows_without_a_label_are_dropped_and_counted() -> None:
    x, y = load_wine(return_X_y=True)
    labels = [None if at % 10 == 0 else int(label) for at, label in enumerate(y)]

    prepared = steps_on(x, np.array(labels, object), balance="weights")

    assert said(prepared, "labels") == "dropped 18 rows without a label, a target or a valid weight"
    assert len(prepared.train) == prepared.real == 160


def test_rows_that_are_there_twice_are_dropped_only_when_their_labels_agree() -> None:
    x, y = load_wine(return_X_y=True)
    x, y = np.concatenate([x, x[:10]]), np.concatenate([y, [*y[:5], *(y[5:10] + 1)]])

    prepared = steps_on(x, y, duplicates="drop")

    assert len(prepared.train) == 183


def test_an_isolation_forest_drops_gross_outliers_first() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x[::50] += 50

    prepared = steps_on(x, y, outliers="forest:0.02")

    assert len(prepared.train) == pytest.approx(0.98 * 569, abs=1)
    assert prepared.train.x.max() < 40
    # Three rows have no fiftieth part.
    assert len(steps_on(x[:3], y[:3], outliers="forest:0.02").train) == 3


def test_columns_that_never_change_are_named() -> None:
    frame = load_wine(as_frame=True)
    x = frame.data.assign(ward=7.0)

    assert said(steps_on(x, frame.target), "constant") == "1 of 14 columns never change here: 'ward'"


@pytest.mark.parametrize("labels", ["drop", "weigh:0.2"])
def test_confident_learning_finds_most_wrong_labels(labels: str) -> None:
    x, y = load_digits(return_X_y=True)
    is_wrong = np.random.default_rng(0).random(y.size) < 0.1
    y = np.where(is_wrong, (y + 3) % 10, y)
    number = np.arange(y.size, dtype=np.float64)

    prepared = steps_on(x, y, number, labels=labels)

    weights = prepared.train.weights
    assert weights is not None
    kept = np.isin(number, weights) if labels == "drop" else weights == number
    assert (~kept & is_wrong).sum() > 0.8 * is_wrong.sum()
    assert (~kept & ~is_wrong).sum() < 0.03 * (~is_wrong).sum()


@pytest.mark.parametrize(
    "balance", ["oversample", "smote", "borderline_smote", "svm_smote", "adasyn", "undersample"]
)
def test_resampling_makes_classes_equally_large_and_counts_only_real_rows(balance: str) -> None:
    x, y = load_digits(return_X_y=True)
    # A class of 9 rows and one of a single row, from which nothing can be made.
    keep = (
        ((y != 3) & (y != 5)) | ((y == 3) & (np.cumsum(y == 3) <= 9)) | ((y == 5) & (np.cumsum(y == 5) == 1))
    )

    prepared = steps_on(x[keep], np.eye(10)[y[keep]], np.ones(keep.sum()), balance=balance)

    counts = np.asarray(prepared.train.y).sum(axis=0)
    assert (counts == counts[0]).all()
    assert prepared.train.weights == pytest.approx(np.ones(len(prepared.train)))
    assert prepared.real == min(keep.sum(), len(prepared.train))


@pytest.mark.parametrize("form", [tuple, list, dict, sparse.csr_array])
def test_several_inputs_and_sparse_matrices_are_split_and_resampled(form: Any) -> None:
    x, y = load_digits(return_X_y=True)
    number = np.arange(y.size, dtype=np.float64)
    parts = (x, number[:, None])
    several = (
        form(zip("ab", parts, strict=True))
        if form is dict
        else form(x if form not in {tuple, list} else parts)
    )

    prepared = steps_on(several, y, number, share=0.25, balance="undersample")

    assert prepared.held_out is not None
    for rows in (prepared.train, prepared.held_out):
        assert rows.weights is not None
        of_rows = rows.weights.astype(int)
        assert np.array_equal(np.asarray(rows.y), y[of_rows])
        if form in {tuple, list}:
            assert np.array_equal(rows.x[0], x[of_rows])
            assert np.array_equal(rows.x[1][:, 0], of_rows)
        elif form is dict:
            assert np.array_equal(rows.x["a"], x[of_rows])
        else:
            assert np.array_equal(rows.x.toarray(), x[of_rows])
    with pytest.raises(TaskError, match="needs x as one array or data frame"):
        steps_on(several, y, balance="smote")


def test_a_site_with_three_rows_is_prepared() -> None:
    prepared = steps_on(
        np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]]), np.array([0, 1, 1]), labels="drop", balance="smote"
    )

    assert len(prepared.train) == 4
    assert prepared.real == 3


@pytest.mark.parametrize(
    ("data", "steps", "sentence"),
    [
        (
            ({"a": 1}, [0]),
            {"outliers": "mad"},
            r"x\['a'\] holds int64 where an array of numbers is expected",
        ),
        (
            (pd.DataFrame({"age": [1.0, 2.0], "ward": ["north", None]}), [0, 1]),
            {},
            "the column 'ward' holds str such as 'north' where numbers are expected: turn it into",
        ),
        (
            (np.array([[1.0, np.nan], [2.0, np.nan]]), [0, 1]),
            {},
            "no value is there in any of the 2 rows of train_data in the columns 1, .* set indicator",
        ),
        (
            (np.array([[1.0, np.nan], [np.nan, 1.0]]), [0, 1]),
            {"impute": "drop"},
            r"the data step impute drop left none of 2 rows \(dropped 2 rows with 2 missing values\)",
        ),
        (
            (np.array([[1.0, np.nan], [2.0, 1.0]]), [0, 1]),
            {"impute": "refuse"},
            "1 values are missing or infinite, in the columns 1, and impute is refuse: fill them",
        ),
        (
            (np.ones((3, 2)), [0, -1, 1]),
            {"balance": "weights"},
            "y holds the label -1 in 1 rows; labels count from 0",
        ),
        ((np.ones((3, 2)), [0.0, 1, 2]), {"labels": "drop"}, "whole numbers of an integer type are classes"),
        ((np.ones((2, 2)), [0, 10**9]), {"labels": "drop"}, "label 1000000000, and .* 100,000 classes"),
        (
            (np.ones((4, 2)), [0.5, 1.5, 2.5, 3.5]),
            {"balance": "oversample"},
            r"balance oversample needs a class for each row .* y holds float64 of shape \(4,\)",
        ),
        ((np.ones((2, 2)), [np.nan, np.nan]), {}, "the data step labels left none of 2 rows"),
        ((np.ones((2, 2)), ["benign", "malign"]), {}, "y holds str such as 'benign'"),
        ((np.ones((3, 2)), [0, 1]), {}, r"arrays of one length, not of \[2, 3\]"),
        (
            ((np.ones((2, 2)), np.ones((2, 3))), [0, 1]),
            {"duplicates": "drop"},
            "needs x as one array .* tuple",
        ),
        ((np.ones((0, 2)), []), {"duplicates": "drop"}, "train_data returned no examples"),
        ((np.ones((2, 0)), [0, 1]), {"labels": "drop"}, r"of the shape \(2, 0\): a row must have at least 1"),
        ((pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]), [0, 1]), {}, "more than one column 'a': give"),
        ((np.ones((1, 2)), [0]), {"share": 0.5}, "local_validation 0.5 of 1 rows holds out"),
    ],
)
def test_bad_data_is_refused_with_what_was_found_and_what_to_do(
    data: tuple[Any, ...], steps: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TaskError, match=sentence):
        steps_on(*data, **steps)


@pytest.mark.parametrize(
    ("setting", "text", "sentence"),
    [
        ("impute", "magic", "impute must be one of median, mean, .* knn:NUMBER, not 'magic'"),
        ("impute", "mean:3", "impute 'mean' takes no number, but found 'mean:3'"),
        ("impute", "knn:2.5", "impute 'knn' takes a whole number above 0 and below 1000, such as knn:5"),
        ("outliers", "quantiles:0.7", "'quantiles' takes a number above 0 and below 0.5, such as .*0.01"),
        ("balance", "focal:nan", "'focal' takes a number above 0, such as focal:2, not 'focal:nan'"),
    ],
)
def test_an_unknown_step_is_refused_with_the_known_ones(setting: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        DataSteps(**{setting: text})


def wards(rows: int = 300) -> tuple[pd.DataFrame, Array]:
    """Ages, a ward by its number as a category, and whether somebody smokes; few are ill."""
    rng = np.random.default_rng(0)
    ill = (np.arange(rows) % 10 == 0).astype(int)
    age = rng.normal(40, 10, rows) + 15 * ill
    ward = pd.Series(rng.choice([2, 5, 9], rows), dtype="category")
    return pd.DataFrame({"age": age, "ward": ward, "smokes": rng.integers(0, 2, rows)}), ill


def test_smote_takes_categories_from_neighbours_and_keeps_whole_numbers_whole() -> None:
    x, y = wards()

    prepared = steps_on(x, y, balance="smote")

    made = prepared.train.x[300:]
    assert len(made) == 240
    assert set(made[:, 1]) <= {2.0, 5.0, 9.0}
    assert set(made[:, 2]) == {0.0, 1.0}
    assert not np.isin(made[:, 0], x["age"]).all()


def test_smote_of_categories_alone_takes_all_values_from_neighbours() -> None:
    x, y = wards()
    only = x[["ward"]].assign(again=x["ward"])

    made = steps_on(only, y, balance="smote").train.x[300:]

    assert len(made) == 240
    assert set(made.reshape(-1)) <= {2, 5, 9}


def test_categories_are_filled_with_the_most_frequent_one_and_never_clipped() -> None:
    x, y = wards()
    x.loc[:4, "ward"] = np.nan
    x.loc[5:9, "age"] = np.nan

    filled = steps_on(x, y, impute="mean", outliers="quantiles:0.4").train.x

    assert (filled[:5, 1] == x["ward"].mode()[0]).all()
    assert set(filled[:, 1]) == {2.0, 5.0, 9.0}
    assert len(np.unique(filled[5:10, 0])) == 1


def test_other_ways_to_make_rows_are_refused_for_categories_and_name_them() -> None:
    x, y = wards()

    with pytest.raises(TaskError, match=r"adasyn:5 makes values between others, and the columns 'ward' hold"):
        steps_on(x, y, balance="adasyn")


def test_a_category_that_is_text_is_refused_since_its_codes_may_differ_from_site_to_site() -> None:
    x, y = wards()
    x["ward"] = x["ward"].map({2: "east", 5: "west", 9: "north"})

    with pytest.raises(TaskError, match="the column 'ward' holds str such as"):
        steps_on(x, y)


@given(tables, st.floats(1, 10))
def test_mad_never_clips_all_but_one_value_of_a_column(table: Array, width: float) -> None:
    clipped = fit_bounds(table, Choice("mad", width)).clip(table)

    for before, after in zip(table.T, clipped.T, strict=True):
        assert (np.unique(before).size > 1) == (np.unique(after).size > 1)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "uint8"])
def test_clipping_changes_no_constant_column_of_whole_numbers(dtype: str) -> None:
    table = np.column_stack([[1, 2, 3, 4, 5, 200], np.full(6, 7)]).astype(dtype)

    prepared = steps_on(table, np.array([0, 1] * 3), outliers="mad:3")

    assert prepared.train.x.T.tolist() == [[1, 2, 3, 4, 5, 10], [7] * 6]


@pytest.mark.parametrize("targets", [[-3, 5, 8, 2], [10**12, 3, 5, 8]])
def test_whole_numbers_that_cannot_be_labels_are_the_targets_of_a_regression(targets: list[int]) -> None:
    assert steps_on(np.ones((4, 1)), np.array(targets), share=0.5).reports[0].classes_before == ()
