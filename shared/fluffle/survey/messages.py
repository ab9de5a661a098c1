"""What a survey is in messages: the answer of one worker, and its state in a version's record. Pure."""

from dataclasses import dataclass
from typing import Annotated

from fluffle.fields import Count, Name, Positive, ShortText, at_most
from fluffle.survey.result import SurveyResult
from fluffle.survey.statistics import DataStatistics

# As many as a model remembers runs.
MAX_ANSWERS = 12_000


@dataclass(frozen=True, slots=True, eq=False)
class SiteStatistics:
    """What a worker answers to a survey; only aggregators get to see it."""

    federation: ShortText
    worker: Name
    statistics: DataStatistics


@dataclass(frozen=True, slots=True)
class Survey:
    """The survey of a federation, in the record of each version from the first on; none without one.

    It is open until there is a `result`. `answered` are the workers whose answers are counted; the sums of
    their statistics lie beside the record in the head queue. `wanted` is how many close it, and 0 where time
    alone does. `attempt` counts from 1: it is one more where the sums were lost, and everybody has to answer
    again.
    """

    wanted: Count
    answered: Annotated[tuple[Name, ...], at_most(MAX_ANSWERS)] = ()
    attempt: Positive = 1
    result: SurveyResult | None = None

    @property
    def is_open(self) -> bool:
        """Whether answers are taken."""
        return self.result is None
