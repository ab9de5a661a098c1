"""What the leader does with the answers to a survey, and when it ends. Pure."""

from collections.abc import Mapping, Sequence

from fluffle.broker import Delivery
from fluffle.events import Answered
from fluffle.survey.messages import MAX_ANSWERS, SiteStatistics
from fluffle.topology import Topology
from fluffle_aggregator.effects import Ack, Effect, Tell, info, warning
from fluffle_aggregator.gates.fitting import (
    FINISHED,
    NO_SURVEY,
    SURVEY_OVER,
    WRONG_CONTENT,
    has_answered,
    of_another_federation,
    of_other_data,
)
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.sender import foreign_sender
from fluffle_aggregator.gates.values import BAD_EXAMPLES
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.survey import OpenSurvey

# Answers are in a version after so many seconds, or as soon as so many wait for one. Until then they are
# unacked.
COMMITTED_AFTER_S, MOST_HELD = 10.0, 16
# A warning names so many columns.
MOST_NAMED = 5
NO_SECOND_SURVEY = (
    "--survey has no effect: this federation has begun already, and a survey comes before all training. "
    "For one, begin a new federation"
)
BEGINS_ANEW = (
    "the survey begins anew: the answers so far are gone from the head queue, and every worker sends its own "
    "again"
)


class Surveying:
    """The survey as the leader sees it; `held` are the tags of the answers that no version contains yet."""

    def __init__(self, topology: Topology) -> None:
        self.held: list[int] = []
        self._topology = topology
        self._held_from = 0.0

    def begin(self, model: GlobalModel) -> list[Effect]:
        """Say what is to be known of the survey when taking the lead."""
        survey = model.survey
        if survey is None:
            is_ignored = model.survey_aim.is_asked and model.record.survey is None
            return [warning(NO_SECOND_SURVEY)] if is_ignored else []
        if survey.is_lost:
            return [warning(BEGINS_ANEW, attempt=survey.state.attempt)]
        answers, wanted = len(survey.state.answered), survey.state.wanted
        line = "the survey is open: workers answer before they train"
        if survey.begins_anew:
            line = "the survey begins anew, since answers were refused or were not masked: all answer again"
        return [info(line, answered=answers, wanted=wanted or "any")]

    def take_in(
        self, delivery: Delivery, answer: SiteStatistics, model: GlobalModel, *, now: float
    ) -> Sequence[Effect] | Refusal:
        """Merge an answer, or return why not; `now` is the leader's clock."""
        if refused := (
            foreign_sender(answer.worker, delivery, self._topology.updates_in)
            or of_another_federation("the answer", answer.federation, model)
        ):
            return refused
        if model.secure:
            return Refusal(
                WRONG_CONTENT, "the answer is not masked, and this federation has secure aggregation"
            )
        recorded, survey = model.record.survey, model.survey
        if delivery.redeliveries and recorded and answer.worker in recorded.answered:
            # The commit that contains it was confirmed, but the leader died before its ack arrived.
            line = "the survey contains this answer already"
            return [info(line, worker=answer.worker), Ack((delivery.tag,))]
        if model.over:
            return Refusal(FINISHED, f"the federation has finished: {model.over}")
        if survey is None:
            ended = model.draft.survey
            if ended is None:
                return Refusal(NO_SURVEY, "this federation has no survey")
            return Refusal(SURVEY_OVER, f"the survey has ended with {len(ended.answered)} answers")
        if refused := _does_not_fit(answer, survey):
            return refused
        other_units = survey.other_units(answer)
        survey.add(answer)
        if not self.held:
            self._held_from = now
        self.held.append(delivery.tag)
        answers, wanted = len(survey.state.answered), survey.state.wanted
        return [
            Tell(Answered(answer.worker, answers, wanted)),
            info(
                "survey answered",
                worker=answer.worker,
                rows=answer.statistics.rows,
                answered=answers,
                wanted=wanted or "any",
            ),
            *_warned_of(answer.worker, other_units),
        ]

    def masked(self, worker: str, answers: int, model: GlobalModel) -> list[Effect]:
        """Say that a worker has answered under its mask, as the last one of so many."""
        wanted = model.survey.state.wanted if model.survey else 0
        line = info("survey answered", worker=worker, answered=answers, wanted=wanted or "any")
        return [Tell(Answered(worker, answers, wanted)), line]

    def when_due(self, model: GlobalModel, *, elapsed_s: float, now: float) -> list[Effect] | None:
        """Close the survey if it is time to; None when no version is to be published for it."""
        survey = model.survey
        # A sum that is closed is opened first, whatever it is of.
        if survey is None or (model.secure and model.secure.closed):
            return None
        if not survey.aim.is_reached(len(survey.state.answered), elapsed_s):
            is_due = self.held and (len(self.held) >= MOST_HELD or now - self._held_from >= COMMITTED_AFTER_S)
            return [] if is_due else None
        sites, rows = survey.state.answered, survey.rows
        unfit = model.close_survey()
        if not sites:
            return [warning("the survey is ended without an answer: no --survey is asked for any more")]
        return told_of_survey(len(sites), rows, unfit)


def told_of_survey(sites: int, rows: int, unfit: Sequence[str]) -> list[Effect]:
    """Say that a survey has ended, and what does not fit it."""
    line = "a layer does not fit the survey, and changes nothing"
    return [
        info("the survey has ended", sites=sites, rows=rows),
        *(warning(line, because=each) for each in unfit),
    ]


def _warned_of(worker: str, other_units: Mapping[str, float]) -> list[Effect]:
    if not other_units:
        return []
    named = [f"{name} ({times:.3g} times)" for name, times in list(other_units.items())[:MOST_NAMED]]
    line = warning(
        "the values of a site are far larger or smaller than those of the sites before it: if their unit is "
        "another one, correct it there and begin a new federation, since the survey describes all as one",
        worker=worker,
        columns=", ".join(named),
        of=len(other_units),
    )
    return [line]


def _does_not_fit(answer: SiteStatistics, survey: OpenSurvey) -> Refusal | None:
    answered = survey.state.answered
    if answer.worker in answered:
        return has_answered(answer.worker)
    if len(answered) >= MAX_ANSWERS:
        return Refusal(SURVEY_OVER, f"the survey has {MAX_ANSWERS} answers and takes no more")
    if too_much := survey.claims_too_much(answer):
        return Refusal(BAD_EXAMPLES, too_much)
    difference = survey.differs(answer)
    return of_other_data(answer.worker, answered[0], difference) if difference else None
