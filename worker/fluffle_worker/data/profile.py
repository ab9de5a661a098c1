"""What a site's data is like before any step: counts for each column and class. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.choices import Choice
from fluffle_worker.data.duplicates import constant_columns, first_of_each
from fluffle_worker.data.missing import incomplete_rows, labelled
from fluffle_worker.data.outliers import fit_bounds
from fluffle_worker.data.rows import Rows

# A value is called an outlier when it lies so many median absolute deviations from the median of its column.
OUTLIER = Choice("mad", 5)
BINS = 20


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """One column: how many of its values are missing, infinite or outliers, and how they are distributed.

    `bins` counts the finite values in 20 intervals of equal width, `shown` from where to where. Outliers are
    counted in the first and in the last one.
    """

    name: str
    missing: int
    infinite: int
    outliers: int
    is_constant: bool
    lowest: float
    mean: float
    highest: float
    shown: tuple[float, float]
    bins: tuple[int, ...]

    @property
    def findings(self) -> int:
        """How many values are not as they should be."""
        return self.missing + self.infinite + self.outliers


@dataclass(frozen=True, slots=True)
class Profile:
    """The data of a site: no `classes` for a regression, no `duplicates` where x is not one array."""

    rows: int
    row_shape: str
    unlabelled: int
    incomplete: int
    classes: tuple[int, ...]
    duplicates: int | None
    columns: tuple[ColumnProfile, ...]

    def senseless(self) -> str:
        """Return why training on this data would be senseless; empty when it is not."""
        if not self.rows:
            return "there are no rows: train_data must return at least 1"
        if self.unlabelled == self.rows:
            return f"none of the {self.rows} rows has a label: return y with numbers"
        if self.columns and all(each.missing + each.infinite == self.rows for each in self.columns):
            return f"all values of all {len(self.columns)} columns are missing: see what train_data reads"
        if sum(count > 0 for count in self.classes) == 1:
            only = next(label for label, count in enumerate(self.classes) if count)
            return (
                f"all rows have the class {only}: a site with one class teaches a model nothing else; leave "
                "it out, or give it rows of other classes"
            )
        return ""


def profile_of(rows: Rows) -> Profile:
    """Return what the rows of a site are like."""
    if not len(rows):
        return Profile(0, "", 0, 0, (), None, ())
    has_label = labelled(rows)
    known = rows.take(has_label)
    labels = known.classes
    classes = tuple(labels.counts.tolist()) if labels else ()
    unlabelled = int((~has_label).sum())
    incomplete = int(incomplete_rows(rows).sum())
    if not rows.is_table:
        return Profile(len(rows), type(rows.x).__name__, unlabelled, incomplete, classes, None, ())
    table = rows.table("profile")
    return Profile(
        len(rows),
        " x ".join(map(str, rows.x.shape[1:])),
        unlabelled,
        incomplete,
        classes,
        len(rows) - int(first_of_each(rows).sum()),
        tuple(_columns(rows, table)),
    )


def _columns(rows: Rows, table: NDArray[Any]) -> list[ColumnProfile]:
    floats = table.astype(np.float64)
    infinite = np.isinf(floats)
    floats[infinite] = np.nan
    missing = np.isnan(floats) & ~infinite
    bounds = fit_bounds(floats, OUTLIER, rows.categories)
    outliers = bounds.is_outside(floats)
    constant = set(constant_columns(floats).tolist())
    found = []
    for at in range(floats.shape[1]):
        values = floats[np.isfinite(floats[:, at]), at]
        low, mean, high = (values.min(), values.mean(), values.max()) if values.size else [np.nan] * 3
        # Equal values have no intervals of their own.
        shown = float(max(low, bounds.lowest[at])), float(min(high, bounds.highest[at]))
        bins = np.zeros(BINS, np.int64)
        if shown[0] < shown[1]:
            bins, _ = np.histogram(values.clip(*shown), BINS, shown)
        found.append(
            ColumnProfile(
                rows.columns[at] if rows.columns else str(at),
                int(missing[:, at].sum()),
                int(infinite[:, at].sum()),
                int(outliers[:, at].sum()),
                at in constant,
                float(low),
                float(mean),
                float(high),
                shown,
                tuple(bins.tolist()),
            )
        )
    return found
