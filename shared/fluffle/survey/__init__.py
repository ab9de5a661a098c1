"""Federated statistics: what each site sends of its data, how it is merged, and what is published of it.

A site sends sums of integers, never a row: for each column the counts of a histogram whose leaves lie on a
grid that all sites share, the number of missing values, and the sums of the values and of their squares.
These are merged exactly, so that the result does not depend on the order of the answers.
"""

from fluffle.survey.columns import MAX_COLUMNS
from fluffle.survey.result import SurveyedColumn, SurveyResult
from fluffle.survey.statistics import DataStatistics, statistics_of

__all__ = ["MAX_COLUMNS", "DataStatistics", "SurveyResult", "SurveyedColumn", "statistics_of"]
