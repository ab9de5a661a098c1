"""The steps of a site's data in their order, and what each did."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.duplicates import constant_columns, first_of_each
from fluffle_worker.data.holding_out import held_out_rows
from fluffle_worker.data.missing import fit_imputer, in_rows, is_missing, labelled, without_infinite
from fluffle_worker.data.outliers import fit_bounds, usual_rows
from fluffle_worker.data.resampling import resampled
from fluffle_worker.data.rows import Rows, labels_of, names_of
from fluffle_worker.data.settings import LOSSES, WEIGHTS, DataSteps
from fluffle_worker.data.suspicious import suspicious_labels
from fluffle_worker.data.weights import LossRemedy, loss_remedy, row_weights


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did: rows before and after it, in all and of each class, and the rest in words."""

    step: str
    before: int
    after: int
    detail: str
    classes_before: tuple[int, ...] = ()
    classes_after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """The rows to train on and those held out, the change of the loss, and what each step did.

    `real` is the number of training rows that the site really has: made-up ones do not count. `missing` says
    of which of the training rows' values nothing was known before they were filled; None where all were.
    """

    train: Rows
    held_out: Rows | None
    remedy: LossRemedy | None
    reports: tuple[StepReport, ...]
    real: int
    missing: NDArray[np.bool_] | None = None


@dataclass(eq=False)
class _Course:
    """The rows on their way through the steps."""

    train: Rows
    held_out: Rows | None = None
    reports: list[StepReport] = field(default_factory=list)
    # Where the table of the training rows was filled [rows, columns]; None where it was not.
    filled: NDArray[np.bool_] | None = None

    def report(self, step: str, before: Rows, detail: str) -> None:
        """Note what a step did with the training rows. Raises TaskError when no row is left."""
        counts = _class_counts(before), _class_counts(self.train)
        self.reports.append(StepReport(step, len(before), len(self.train), detail, *counts))
        if not len(self.train):
            raise TaskError(
                f"the data step {step} left none of {len(before)} rows ({detail}): choose another way in "
                "KerasTask(data=...) or in the table [data]"
            )

    def keep(self, step: str, kept: NDArray[np.bool_], what: str) -> None:
        """Drop the training rows that are not kept, if there are any."""
        if kept.all():
            return
        before, self.train = self.train, self.train.take(kept)
        self.filled = None if self.filled is None else self.filled[kept]
        self.report(step, before, f"dropped {int((~kept).sum())} rows {what}")

    def held_out_or_nothing(self) -> Iterator[Rows]:
        """Yield the rows that are held out, if there are some."""
        if self.held_out is not None:
            yield self.held_out


def take_steps(
    rows: Rows,
    steps: DataSteps,
    *,
    site: int,
    share: float = 0.0,
    split_seed: int = 0,
    held_out: Rows | None = None,
    prior: NDArray[np.float64] | None = None,
) -> PreparedRows:
    """Take all steps but those inside the training step; `site` and the steps' seed make them repeatable.

    Everything is fitted on the training rows. A `share` of the rows, which `site` and `split_seed` choose, is
    held out; or else `held_out` are rows of their own. These get the fitted clipping and imputation, and
    nothing else. `prior` is the share of each class in the rows of all sites [classes], None while nobody
    knows it. Raises TaskError for data that a step cannot work with.
    """
    rng = np.random.default_rng([steps.seed, site])
    course = _Course(rows, held_out)
    course.keep("labels", labelled(rows), "without a label, a target or a valid weight")
    if steps.duplicates == "drop":
        course.keep("duplicates", first_of_each(course.train), "that are equal to an earlier one")
    if share:
        _hold_out(course, share, np.random.default_rng([split_seed, site]))
    _clean_columns(course, steps, rng)
    _judge_labels(course, steps, rng)
    real, filled = len(course.train), course.filled
    remedy = _balance(course, steps, rng, prior)
    return PreparedRows(
        course.train, course.held_out, remedy, tuple(course.reports), min(real, len(course.train)), filled
    )


def _hold_out(course: _Course, share: float, rng: np.random.Generator) -> None:
    before = course.train
    held = held_out_rows(before.y, len(before), share, rng)
    course.held_out, course.train = before.take(held), before.take(~held)
    course.report("local_validation", before, f"held out {int(held.sum())} rows for evaluation")


def _clean_columns(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    needs_columns = steps.outliers != "keep" or steps.indicator
    if not isinstance(course.train.x, np.ndarray):
        if needs_columns or any(is_missing(each).any() for each in _leaves(course.train.x)):
            course.train.table("impute, outliers or indicator")
        return
    table = course.train.table("impute")
    infinite = int(np.isinf(table).sum()) if table.dtype.kind == "f" else 0
    _change(course, without_infinite, without_infinite(table))
    if infinite:
        course.report("infinite values", course.train, f"{infinite} infinite values count as missing")
    if (constant := constant_columns(course.train.table("impute"))).size:
        course.report(
            "constant columns",
            course.train,
            f"{constant.size} of {table.shape[1]} columns never change here: "
            f"{names_of(course.train, constant)}",
        )
    _clip(course, steps)
    _impute(course, steps, rng)
    outliers = steps.choice("outliers")
    if outliers.name == "forest":
        kept = usual_rows(course.train.table("outliers"), outliers.number, int(rng.integers(2**31)))
        course.keep(f"outliers {outliers}", kept, "that an isolation forest finds most unusual")


def _clip(course: _Course, steps: DataSteps) -> None:
    choice = steps.choice("outliers")
    if choice.name not in {"quantiles", "mad"}:
        return
    table = course.train.table("outliers")
    bounds = fit_bounds(table, choice)
    outside = bounds.outside(table)
    _change(course, bounds.clip, bounds.clip(table))
    course.report(f"outliers {choice}", course.train, f"clipped {outside} of {table.size} values")


def _impute(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    choice = steps.choice("impute")
    before, table = course.train, course.train.table("impute")
    missing = is_missing(table)
    if steps.indicator and before.x.ndim != 2:
        raise TaskError(
            f"indicator adds columns to x of shape [rows, columns], and x has the shape {before.x.shape}: "
            "leave indicator out"
        )
    if choice.name == "refuse" and missing.any():
        where = np.flatnonzero(missing.any(axis=0))
        raise TaskError(
            f"{int(missing.sum())} values are missing or infinite, in the columns {names_of(before, where)}, "
            "and impute is refuse: fill them in train_data, or choose another impute"
        )
    marks = [is_missing(each.table("impute")) for each in (course.train, *course.held_out_or_nothing())]
    is_complete = not any(mark.any() for mark in marks)
    impute = None if is_complete else fit_imputer(before, table, choice, keep_empty=steps.indicator, rng=rng)
    if choice.name == "drop":
        course.keep(f"impute {choice}", ~in_rows(missing), f"with {int(missing.sum())} missing values")
        if course.held_out is not None:
            course.held_out = course.held_out.take(~in_rows(marks[1]))
        marks = [mark[~in_rows(mark)] for mark in marks]
    elif impute:
        _change(course, impute, impute(table))
        empty = int(missing.all(axis=0).sum())
        also = f", {empty} columns without any value with 0" if empty else ""
        course.filled = missing
        course.report(f"impute {choice}", before, f"filled {int(missing.sum())} of {table.size} values{also}")
    if steps.indicator:
        course.train = _with_indicator(course.train, marks[0])
        if course.filled is not None:
            course.filled = np.concatenate([course.filled, np.zeros_like(course.filled)], axis=1)
        if course.held_out is not None:
            course.held_out = _with_indicator(course.held_out, marks[1])
        course.report("indicator", before, f"{table.shape[1]} columns became {2 * table.shape[1]}")


def _with_indicator(rows: Rows, missing: NDArray[np.bool_]) -> Rows:
    names = tuple(f"{name} missing" for name in rows.columns)
    dtype = np.result_type(rows.x.dtype, np.float32) if rows.x.dtype.kind == "f" else rows.x.dtype
    x = np.concatenate([rows.x, missing.astype(dtype)], axis=1)
    return replace(rows, x=x, columns=rows.columns + names)


def _judge_labels(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    choice = steps.choice("labels")
    if choice.name == "keep":
        return
    step, before = f"labels {choice}", course.train
    labels = before.labels(step)
    found = suspicious_labels(before.table(step), labels, int(rng.integers(2**31)))
    if choice.name == "drop":
        course.keep(step, ~found, "whose label is probably wrong")
        return
    course.train = before.weighted(np.where(found, choice.number, 1.0))
    course.report(step, before, f"{int(found.sum())} rows whose label is probably wrong weigh less")


def _balance(
    course: _Course, steps: DataSteps, rng: np.random.Generator, prior: NDArray[np.float64] | None
) -> LossRemedy | None:
    choice = steps.choice("balance")
    if choice.name == "none":
        return None
    labels = course.train.labels(f"balance {choice}")
    if labels.present.size == 1:
        only = int(labels.present[0])
        course.report("one class", course.train, f"all rows have the class {only}: nothing can be balanced")
    before = course.train
    if choice.name in WEIGHTS:
        weights = row_weights(labels, choice)
        course.train = before.weighted(weights)
        spread = f"rows weigh {weights.min():.3g} to {weights.max():.3g}"
        course.report(f"balance {choice}", before, f"{spread}, all together {weights.sum():.6g}")
        return None
    if choice.name in LOSSES:
        course.report(f"balance {choice}", before, "the loss of the training step is changed")
        return loss_remedy(labels.counts, choice, prior)
    course.train, said = resampled(before, labels, choice, rng)
    course.report(f"balance {choice}", before, said)
    return None


def _change(course: _Course, apply: Any, train_table: NDArray[Any]) -> None:
    """Put a changed table in place of the training rows', and change the held-out rows in the same way."""
    course.train = replace(course.train, x=train_table.reshape(course.train.x.shape))
    if course.held_out is not None:
        held = course.held_out
        course.held_out = replace(held, x=apply(held.table("impute")).reshape(held.x.shape))


def _class_counts(rows: Rows) -> tuple[int, ...]:
    labels = None if rows.y is None or not len(rows) else labels_of(rows.y)
    return tuple(labels.counts.tolist()) if labels else ()


def _leaves(x: Any) -> Iterator[NDArray[Any]]:
    if isinstance(x, dict | tuple | list):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _leaves(each)
    else:
        yield np.asarray(x.data if hasattr(x, "tocsr") else x)
