"""Surveys under secure aggregation: what sites have, and their masked answers."""

from dataclasses import replace

import numpy as np
from builders import a_layout, a_version, an_update
from securing import EPOCH, PLAN, a_secure_config

from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.secure.surveyed import numbers_of, survey_plan
from fluffle.survey import DataStatistics, statistics_of
from fluffle.survey.messages import Survey
from fluffle.update import WeightUpdate
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.survey import SurveyAim

SITES = ("w1", "w2", "w3")


def statistics(worker: str, *names: str, classes: int = 2) -> DataStatistics:
    place = int(worker[1:])
    x = np.random.default_rng(place).normal(10.0 * place, 3.0, (40, 2))
    return statistics_of(x, np.full(40, place % 2), names=names or ("age", "pulse"), classes=classes)


def an_answer(
    worker: str, sequence: int = 1, *, found: DataStatistics | None = None, layout: Layout | None = None
) -> WeightUpdate:
    found = found or statistics(worker)
    plain = replace(an_update(worker, sequence, layout=layout or a_layout()), shape=found.shape)
    return EPOCH.masked(plain, numbers_of(found), survey_plan(PLAN))


def a_survey(
    wanted: int = 3, *, seconds: float | None = None, first: ModelVersion | None = None
) -> AggregatorConfig:
    aim = SurveyAim(wanted=wanted, seconds=seconds, min_count=5)
    return a_secure_config(first=replace(first or a_version(), survey=Survey(wanted)), survey_aim=aim)
