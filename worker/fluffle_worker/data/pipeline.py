"""The steps of a site's data in their order, and what each did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.duplicates import constant_columns, first_of_each
from fluffle_worker.data.holding_out import held_out_rows
from fluffle_worker.data.missing import (
    fitted_imputer,
    in_rows,
    incomplete_rows,
    is_missing,
    labelled,
    without_infinite,
)
from fluffle_worker.data.outliers import fit_bounds, usual_rows
from fluffle_worker.data.resampling import resampled
from fluffle_worker.data.rows import Rows, names_of
from fluffle_worker.data.settings import CLIPPING, LOSSES, WEIGHTS, DataSteps
from fluffle_worker.data.suspicious import suspicious_labels
from fluffle_worker.data.weights import LossRemedy, loss_remedy, row_weights

# A step that leaves less than this part of the rows, 1 / FEW, is hardly what was meant.
FEW = 10
UNLABELLED = "without a label, a target or a valid weight"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did: rows before and after it, in all and of each class, and the rest in words."""

    step: str
    before: int
    after: int
    detail: str
    classes_before: tuple[int, ...] = ()
    classes_after: tuple[int, ...] = ()

    @property
    def warning(self) -> str:
        """A sentence where the step left less than a tenth of the rows; empty elsewhere."""
        if self.after * FEW >= self.before:
            return ""
        return f"the data step {self.step} left only {self.after:,} of {self.before:,} rows"


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
    """The rows on their way through the steps, and the fitted ones that other rows of the site get too."""

    train: Rows
    reports: list[StepReport] = field(default_factory=list)
    # Where the table of the training rows was filled [rows, columns]; None where it was not.
    filled: NDArray[np.bool_] | None = None
    fitted: list[Callable[[Rows], Rows]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise TaskError when there is nothing to fit a step on."""
        if not len(self.train):
            raise TaskError(f"{self.train.function} returned no examples")
        if self.train.is_table and not self.train.x.size:
            raise TaskError(
                f"{self.train.function} returned x of the shape {self.train.x.shape}: a row must have at "
                "least 1 value"
            )

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

    def change(self, step: Callable[[Rows], Rows]) -> None:
        """Take a fitted step with the training rows."""
        self.train = step(self.train)
        self.fitted.append(step)


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
    course = _Course(rows)
    course.keep("labels", labelled(rows), UNLABELLED)
    if steps.duplicates == "drop":
        course.keep("duplicates", first_of_each(course.train), "that are equal to an earlier one")
    if share:
        held_out = _hold_out(course, share, split_seed=split_seed, site=site)
    _clean_columns(course, steps, rng)
    if held_out is not None:
        held_out = _through(course.fitted, held_out)
    _drop_unusual(course, steps, rng)
    _judge_labels(course, steps, rng)
    real, filled = len(course.train), course.filled
    remedy = _balance(course, steps, rng, prior)
    return PreparedRows(
        course.train, held_out, remedy, tuple(course.reports), min(real, len(course.train)), filled
    )


def _through(fitted: Sequence[Callable[[Rows], Rows]], rows: Rows) -> Rows:
    after = reduce(lambda given, step: step(given), fitted, rows)
    if not len(after):
        raise TaskError(f"all {len(rows)} rows that are held out have missing values: choose another impute")
    return after


def clean_eval_data(rows: Rows, steps: DataSteps) -> tuple[Rows, tuple[StepReport, ...]]:
    """Return what `eval_data` returned with its columns clipped and filled, and what each step did.

    It belongs to no site, and no site's values may leave it: everything is fitted on these rows themselves.
    Raises TaskError for data that a step cannot work with.
    """
    course = _Course(rows)
    course.keep("labels", labelled(rows), UNLABELLED)
    _clean_columns(course, steps, np.random.default_rng(steps.seed))
    return course.train, tuple(course.reports)


def _hold_out(course: _Course, share: float, *, split_seed: int, site: int) -> Rows:
    before = course.train
    held = held_out_rows(before.y, len(before), share, split_seed=split_seed, site=site)
    course.train = before.take(~held)
    course.report("local_validation", before, f"held out {int(held.sum())} rows for evaluation")
    return before.take(held)


def _clean_columns(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    rows = course.train
    if not rows.is_table:
        if steps.outliers != "keep" or steps.indicator:
            rows.table("outliers or indicator")
        if missing := int(incomplete_rows(rows).sum()):
            raise TaskError(
                f"{missing} rows have missing or infinite values, which the data steps fill in one array or "
                f"data frame only, and {rows.function} returned {type(rows.x).__name__}: fill them there"
            )
        return
    table = rows.table("impute")
    infinite = int(np.isinf(table).sum()) if table.dtype.kind == "f" else 0
    course.change(_of_table(without_infinite))
    if infinite:
        course.report("infinite values", rows, f"{infinite} infinite values count as missing")
    if (constant := constant_columns(course.train.table("impute"))).size:
        names = names_of(rows, constant)
        said = f"{constant.size} of {table.shape[1]} columns never change here: {names}"
        course.report("constant columns", course.train, said)
    _clip(course, steps)
    _fill(course, steps, rng)


def _clip(course: _Course, steps: DataSteps) -> None:
    choice = steps.choice("outliers")
    if choice.name not in CLIPPING:
        return
    table = course.train.table("outliers")
    bounds = fit_bounds(table, choice, course.train.categories)
    course.change(_of_table(bounds.clip))
    said = f"clipped {bounds.outside(table)} of {table.size} values"
    course.report(f"outliers {choice}", course.train, said)


def _fill(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    """Fill missing values, drop their rows or refuse them, and mark where they were."""
    choice, before = steps.choice("impute"), course.train
    table = before.table("impute")
    missing = is_missing(table)
    if steps.indicator and before.x.ndim != 2:
        raise TaskError(
            f"indicator adds columns to x of shape [rows, columns], and x has the shape {before.x.shape}: "
            "leave indicator out"
        )
    fill = fitted_imputer(before, table, choice, keep_empty=steps.indicator, rng=rng)

    def filled(rows: Rows) -> Rows:
        where = is_missing(rows.table("impute"))
        kept = ~in_rows(where)
        if choice.name == "refuse":
            _refuse(rows, where)
        elif choice.name == "drop":
            rows, where = rows.take(kept), where[kept]
        elif not kept.all():
            rows = _of_table(fill)(rows)
        return _with_indicator(rows, where) if steps.indicator else rows

    course.change(filled)
    if missing.any():
        course.report(f"impute {choice}", before, _what_filling_did(choice, missing))
    if missing.any() and choice.name != "drop":
        course.filled = missing
    if steps.indicator:
        if course.filled is not None:
            course.filled = np.concatenate([course.filled, np.zeros_like(course.filled)], axis=1)
        course.report("indicator", before, f"{table.shape[1]} columns became {2 * table.shape[1]}")


def _what_filling_did(choice: Choice, missing: NDArray[np.bool_]) -> str:
    if choice.name == "drop":
        return f"dropped {int(in_rows(missing).sum())} rows with {int(missing.sum())} missing values"
    empty = int(missing.all(axis=0).sum())
    also = f", {empty} columns without any value with 0" if empty else ""
    return f"filled {int(missing.sum())} of {missing.size} values{also}"


def _refuse(rows: Rows, missing: NDArray[np.bool_]) -> None:
    if missing.any():
        names = names_of(rows, np.flatnonzero(missing.any(axis=0)))
        raise TaskError(
            f"{int(missing.sum())} values are missing or infinite, in the columns {names}, and impute is "
            f"refuse: fill them in {rows.function}, or choose another impute"
        )


def _with_indicator(rows: Rows, missing: NDArray[np.bool_]) -> Rows:
    names = tuple(f"{name} missing" for name in rows.columns)
    dtype = np.result_type(rows.x.dtype, np.float32) if rows.x.dtype.kind == "f" else rows.x.dtype
    x = np.concatenate([rows.x, missing.astype(dtype)], axis=1)
    return replace(rows, x=x, columns=rows.columns + names)


def _drop_unusual(course: _Course, steps: DataSteps, rng: np.random.Generator) -> None:
    outliers = steps.choice("outliers")
    if outliers.name == "forest":
        kept = usual_rows(course.train.table("outliers"), outliers.number, int(rng.integers(2**31)))
        course.keep(f"outliers {outliers}", kept, "that an isolation forest finds most unusual")


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


def _of_table(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Rows], Rows]:
    """Return a step that changes the table of rows, and keeps the shape of x."""
    return lambda rows: replace(rows, x=change(rows.table("impute")).reshape(rows.x.shape))


def _class_counts(rows: Rows) -> tuple[int, ...]:
    return tuple(rows.classes.counts.tolist()) if rows.classes else ()
