"""How far the data of one site is from that of all sites, by the result of a survey. Pure.

The total variation distance of two distributions is the largest difference of the shares that they give to
anything: 0 where they are equal, 1 where they have no value in common.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.survey.columns import ColumnSums, share_below
from fluffle.survey.result import LEVELS, SurveyedColumn, SurveyResult
from fluffle.survey.statistics import DataStatistics
from fluffle_cli.words import in_a_row

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drift:
    """The total variation distance of the classes (None without) and of each column (NaN if unknown).

    That of a column is at least so large: the survey says how all values are distributed in steps of 5 %.
    `says` is a sentence on what was compared.
    """

    says: str
    classes: float | None
    columns: tuple[tuple[str, float], ...]


def drift_of(own: DataStatistics, survey: SurveyResult) -> Drift:
    """Compare a site's statistics with those of all sites."""
    known = dict(zip(own.names, own.columns, strict=True))
    columns = tuple((each.name, _distance(known.get(each.name), each)) for each in survey.columns)
    lacking = [name for name in survey.names if name not in known]
    added = [name for name in own.names if name not in survey.names]
    said = f"against {survey.rows:,} rows of {survey.sites} sites"
    if lacking or added:
        said += f"; the columns differ: {_named(lacking)} here, {_named(added)} there"
    return Drift(f"Drift of this site's {own.rows:,} rows {said}.", _class_distance(own, survey), columns)


def drift_rows(drift: Drift) -> list[list[str]]:
    """Return the distances as a table's rows: the classes, and then the columns, the largest first."""
    rows = [] if drift.classes is None else [["classes", f"{drift.classes:.2f}"]]
    known = sorted((each for each in drift.columns if not np.isnan(each[1])), key=lambda each: -each[1])
    # Rounded, a least distance of 0.00 says nothing.
    shown = [
        [f"column {name}", f"at least {distance:.2f}" if distance >= 0.005 else "none found"]
        for name, distance in known
    ]
    unknown = [[f"column {name}", "unknown"] for name, distance in drift.columns if np.isnan(distance)]
    return [*rows, *shown, *unknown]


def _distance(own: ColumnSums | None, surveyed: SurveyedColumn) -> float:
    """Return the least distance of a column that agrees with all that is published of it.

    Below the edge at a quantile lies at most its level of all values, and at least that of the quantile
    before.
    """
    edges, low, high = _bounds(surveyed)
    if own is None or not own.count or not edges.size:
        return float("nan")
    here = share_below(own, edges)
    # The difference of both shares below an edge moves no more than it must from one edge to the next.
    difference = moved = 0.0
    for least, most in zip(here - high, here - low, strict=True):
        nearest = min(max(difference, least), most)
        moved, difference = moved + abs(nearest - difference), nearest
    return float(moved + abs(difference)) / 2


def _bounds(surveyed: SurveyedColumn) -> tuple[Floats, Floats, Floats]:
    """Return the edges of a column's quantiles, and the least and the largest share of values below each."""
    quantiles, levels = surveyed.quantiles, np.array(LEVELS)
    is_known = np.isfinite(quantiles)
    edges, first = np.unique(quantiles[is_known], return_index=True)
    high = levels[is_known][first]
    last = np.append(first[1:], is_known.sum()) - 1
    low = np.concatenate([[0.0], levels[is_known][last][:-1]]) if edges.size else high
    return edges, low, high


def _class_distance(own: DataStatistics, survey: SurveyResult) -> float | None:
    there = survey.class_prior
    if there is None or own.classes is None or not sum(own.classes):
        return None
    size = max(there.size, len(own.classes))
    here = np.zeros(size)
    here[: len(own.classes)] = np.array(own.classes) / sum(own.classes)
    return float(np.abs(here - np.pad(there, (0, size - there.size))).sum() / 2)


def _named(names: list[str]) -> str:
    shown = in_a_row(list(map(repr, names))) or "nothing"
    return f"{shown} {'are' if len(names) > 1 else 'is'} missing"
