"""A survey's figures as rows of tables. Pure."""

import math
from typing import Final

from fluffle.survey.messages import Survey
from fluffle.survey.result import LEVELS, SurveyedColumn, SurveyResult
from fluffle_cli.watching.view import SurveyProgress
from fluffle_cli.words import in_a_row, number, percent

COLUMN_HEADS: Final = (
    *("column", "values", "missing", "mean", "deviation", "lowest", "25 %", "median", "75 %", "highest"),
)
_QUARTILES: Final = tuple(LEVELS.index(level) for level in (0.25, 0.5, 0.75))
FEW: Final = "few"


def column_row(column: SurveyedColumn) -> list[str]:
    """Return the figures of a column, "few" for what is not published."""
    quartiles = [float(column.quantiles[at]) for at in _QUARTILES]
    figures = [column.mean, column.deviation, column.lowest, *quartiles, column.highest]
    counts = [FEW if math.isnan(each) else f"{each:,.0f}" for each in (column.count, column.missing)]
    return [column.name, *counts, *(FEW if math.isnan(each) else number(each) for each in figures)]


def class_rows(result: SurveyResult) -> list[list[str]]:
    """Return rows and share of each class."""
    prior = result.class_prior
    if result.class_counts is None or prior is None:
        return []
    return [
        [str(at), FEW if count is None else f"{count:,}", FEW if count is None else percent(float(prior[at]))]
        for at, count in enumerate(result.class_counts)
    ]


def progress_in_words(survey: Survey) -> str:
    """Say how many workers have answered to a survey that is open."""
    said = SurveyProgress(len(survey.answered), survey.wanted, survey.is_open).in_words
    who = f": {in_a_row(survey.answered, most=12)}" if survey.answered else ""
    return f"The survey is open: {said}{who}."
