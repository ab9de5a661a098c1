"""A survey in plain types, for `fluffle survey --json`, and back again for `fluffle data check`. Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from fluffle.fields import FieldError, kind_of
from fluffle.survey.messages import Survey
from fluffle.survey.result import FACTS, LEVELS, SurveyResult

_RESULT: Final = kind_of(SurveyResult)


def as_json(survey: Survey) -> dict[str, object]:
    """Return a survey in plain types; `result` is null while it is open."""
    return {
        "wanted": survey.wanted,
        "answered": list(survey.answered),
        "is_open": survey.is_open,
        "result": None if survey.result is None else _result(survey.result),
    }


def result_in(text: str) -> SurveyResult:
    """Read the result from what `as_json` has written; ValueError, which says why, for all else."""
    found = json.loads(text)
    try:
        result = found["result"]
        columns = [[each["name"], _packed(each)] for each in result["columns"]]
        read: SurveyResult = _RESULT.read(
            [result["sites"], result["rows"], result["min_count"], columns, result["class_counts"]]
        )
    except (KeyError, TypeError, FieldError) as error:
        raise ValueError("it holds no survey that has ended, as `fluffle survey --json` writes it") from error
    return read


def _result(result: SurveyResult) -> dict[str, object]:
    prior = result.class_prior
    return {
        "sites": result.sites,
        "rows": result.rows,
        "min_count": result.min_count,
        "columns": [
            {
                "name": each.name,
                **{fact: getattr(each, fact) for fact in FACTS},
                "quantiles": dict(zip(map(str, LEVELS), each.quantiles.tolist(), strict=True)),
            }
            for each in result.columns
        ],
        "class_counts": result.class_counts,
        "class_prior": None if prior is None else prior.tolist(),
    }


def _packed(column: Mapping[str, Any]) -> bytes:
    numbers = [column[fact] for fact in FACTS] + [column["quantiles"][str(level)] for level in LEVELS]
    return np.array([float(each) for each in numbers], "<f8").tobytes()
