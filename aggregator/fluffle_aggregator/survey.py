"""A survey while it is open: which workers have answered, and the sums of what they sent. Pure.

The sums lie beside each version's record in the head queue, where only aggregators read them, until the
version that publishes the result.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, Field

from fluffle.model import Layout, TensorSpec, Vector
from fluffle.record import ModelVersion, MomentsRecord
from fluffle.secure.surveyed import SurveySums
from fluffle.survey.columns import is_of_input
from fluffle.survey.messages import MAX_ANSWERS, SiteStatistics, Survey
from fluffle.survey.packing import MOST_OF_A_SITE, pack, unpack
from fluffle.survey.result import SurveyResult, result_of

# So many times as large as the others' values are those of no site that measures in the same unit.
FAR_APART = 100.0
# The statistics of a model that a survey fills: of all columns, or of one input's, whose name stands behind
# the dot.
_TENSOR = re.compile(r"(?:.*/)?survey_(?P<what>mean|deviation)(?:\.(?P<input>.+?))?(?::[0-9]+)?")


class SurveySettings(BaseModel):
    """Whether a federation begins with a survey of its sites' data, and when that ends."""

    survey: int | None = Field(
        None,
        ge=1,
        le=MAX_ANSWERS,
        description="Begin a new federation with a survey: before they train, workers send the statistics "
        "of their data, and all get the merged ones when this many workers have answered. No survey if "
        "unset.",
    )
    survey_seconds: float | None = Field(
        None,
        gt=0,
        description="End the survey after this many seconds with the answers of those that have answered, "
        "as soon as there is one.",
    )
    survey_min_count: int = Field(
        10,
        ge=1,
        description="Publish nothing of a survey that stands for fewer rows than this: no class, no end "
        "of a column.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyAim:
    """When a survey ends: with the answers of `wanted` workers, or after `seconds` with at least one.

    Without both it is ended at once. Nothing that stands for fewer rows than `min_count` is published, and no
    site may claim more rows than `most_rows`.
    """

    wanted: int = 0
    seconds: float | None = None
    min_count: int = 10
    most_rows: int = 1_000_000_000

    @property
    def is_asked(self) -> bool:
        """Whether a survey is asked for."""
        return bool(self.wanted) or self.seconds is not None

    def is_reached(self, answers: int, elapsed_s: float) -> bool:
        """Tell whether so many answers are enough, when the federation has been led for so many seconds."""
        if self.wanted and answers >= self.wanted:
            return True
        if self.seconds is not None:
            return answers > 0 and elapsed_s >= self.seconds
        return not self.is_asked


NO_AIM = SurveyAim()


class OpenSurvey:
    """The answers of a survey that is open."""

    def __init__(self, recorded: Survey, packed: bytes, aim: SurveyAim, *, begins_anew: bool = False) -> None:
        """Go on from a record and the sums beside it.

        Where those are gone, or if it `begins_anew`, everybody answers again.
        """
        self.aim = aim
        self.is_lost = bool(recorded.answered) and not packed
        self.begins_anew = is_anew = self.is_lost or begins_anew
        self.state = Survey(aim.wanted, () if is_anew else recorded.answered, recorded.attempt + is_anew)
        # Whether the next record says something that the last one did not.
        self.has_changed = self.state != recorded
        self._sums = unpack(memoryview(packed)) if packed and not begins_anew else None
        # What secure aggregation has opened, which takes the place of the sums.
        self._opened: SurveySums | None = None
        self._committed = packed

    def claims_too_much(self, answer: SiteStatistics) -> str:
        """Return why an answer claims more rows, or larger values, than it may; empty where it does not."""
        found = answer.statistics
        if beyond := found.beyond_float32:
            return f"{answer.worker} claims values in the column {beyond[0]!r} that are too large for float32"
        if found.rows <= self.aim.most_rows and found.most_values <= MOST_OF_A_SITE:
            return ""
        return (
            f"{answer.worker} claims {found.rows} rows with {found.most_values} values of a column; at most "
            f"{self.aim.most_rows} rows (limit_examples) and {MOST_OF_A_SITE} values are allowed"
        )

    def differs(self, answer: SiteStatistics) -> str:
        """Return in which way a worker's data is not like that of the others, in words; empty where it is."""
        return self._sums.difference(answer.statistics) if self._sums else ""

    def other_units(self, answer: SiteStatistics) -> Mapping[str, float]:
        """Return how many times as large as the others' a worker's values are, by the columns' names.

        Only of columns where that is 100 times or more, or a hundredth or less: another unit, or an error.
        """
        if self._sums is None:
            return {}
        found: dict[str, float] = {}
        columns = zip(self._sums.names, self._sums.columns, answer.statistics.columns, strict=True)
        for name, others, own in columns:
            if others.size and own.size and not 1 / FAR_APART < own.size / others.size < FAR_APART:
                found[name] = own.size / others.size
        return found

    def add(self, answer: SiteStatistics) -> None:
        """Merge the answer of a worker that claims not too much and does not differ."""
        self._sums = self._sums.merged(answer.statistics) if self._sums else answer.statistics
        self.state = replace(self.state, answered=(*self.state.answered, answer.worker))

    def settle(self, opened: SurveySums, answered: tuple[str, ...]) -> None:
        """Take the opened sum of the masked answers of these workers."""
        self._opened, self.state = opened, replace(self.state, answered=answered)

    def begin_again(self) -> None:
        """Ask everybody to answer once more: the sum of their masked answers was given up."""
        self.state = replace(self.state, attempt=self.state.attempt + 1)

    def packed(self) -> bytes:
        """Return the sums as they lie beside the next record."""
        return pack(self._sums) if self._sums else b""

    @property
    def committed(self) -> bytes:
        """The sums as they lie beside the last record."""
        return self._committed

    def advance(self) -> None:
        """Go on from a record that is published."""
        self._committed, self.has_changed, self.is_lost = self.packed(), False, False

    def closed(self) -> Survey | None:
        """Return the survey with its result, or None when nobody has answered."""
        sums = self._opened or self._sums
        if sums is None:
            return None
        result = result_of(sums, sites=len(self.state.answered), min_count=self.aim.min_count)
        return replace(self.state, result=result)

    @property
    def rows(self) -> int:
        """The rows of all sites that have answered."""
        return self._sums.rows if self._sums else 0


def open_survey(
    record: ModelVersion, moments: MomentsRecord | None, aim: SurveyAim, *, begins_anew: bool
) -> OpenSurvey | None:
    """Return the survey of a record if it is open, with the sums beside it; else None."""
    if record.survey is None or not record.survey.is_open:
        return None
    return OpenSurvey(record.survey, moments.survey if moments else b"", aim, begins_anew=begins_anew)


def with_survey(layout: Layout, statistics: Vector, result: SurveyResult) -> tuple[Vector, list[str]]:
    """Return a model's statistics with those that a survey fills, and what could not be filled, in words.

    A column that is constant, or of which nothing is published, gets a deviation of 1, and without a mean one
    of 0.
    """
    filled, unfit = statistics.copy(), []
    for spec, start in _statistics_of(layout):
        found = _TENSOR.fullmatch(spec.name)
        if found is None:
            continue
        columns = [each for each in result.columns if is_of_input(each.name, found["input"] or "")]
        if spec.size != len(columns):
            unfit.append(
                f"{spec.name} has {spec.size} elements, and the survey has {len(columns)} such columns"
            )
            continue
        values = [each.mean if found["what"] == "mean" else each.deviation for each in columns]
        filled[start : start + spec.size] = _usable(np.array(values), found["what"])
    return filled, unfit


def _statistics_of(layout: Layout) -> Iterator[tuple[TensorSpec, int]]:
    start = 0
    for spec in layout.tensors:
        if spec.is_float and spec.group == "statistic":
            yield spec, start
            start += spec.size


def _usable(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", what: str) -> Vector:
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    if what == "mean":
        return np.where(np.isfinite(floats), floats, np.float32(0))
    return np.where(np.isfinite(floats) & (floats > 0), floats, np.float32(1))
