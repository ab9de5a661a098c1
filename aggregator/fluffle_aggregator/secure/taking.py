"""Takes an opened sum into the model: all of its updates at once. Pure."""

from fluffle.codecs.floats import Float32Vector
from fluffle.model import no_values
from fluffle.secure.closing import CloseRecord
from fluffle.secure.sums import SumRecord
from fluffle.secure.surveyed import SurveySums
from fluffle.update import WeightUpdate
from fluffle_aggregator.accumulators import RunningSum
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.sections import Coverage, Totals
from fluffle_aggregator.secure.opening import OpenedSum
from fluffle_aggregator.secure.weighing import IntegerWeights


def take_survey(model: GlobalModel, close: CloseRecord, opened: SurveySums) -> list[str]:
    """Make the next version with the survey's result; return what does not fit it, in words."""
    answers = [each.id for each in close.updates]
    if model.survey:
        model.survey.settle(opened, tuple(each.worker for each in answers))
    unfit = model.close_survey()
    if model.secure:
        model.secure.end_survey()
    model.applied = model.applied.adding(answers)
    model.make_newer()
    return unfit


def take_sum(model: GlobalModel, record: SumRecord, opened: OpenedSum) -> None:
    """Note all updates of an opened sum in the order of its close record, and make the next version of it."""
    if model.secure:
        model.applied = model.secure.remembered(model.applied)
        model.secure.note_sum()
    coverage, statistics = Coverage(), model.no_statistics()
    weigh = IntegerWeights(record.plan.greatest)
    for each, facts in zip(record.close.updates, record.updates, strict=True):
        update = WeightUpdate(
            federation=record.close.federation,
            id=each.id,
            base_term=each.base_term,
            base_version=each.base_version,
            layout_digest=model.record.layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(no_values()),
            examples=0,
            steps=0,
            train_s=facts.train_s,
        )
        weight = weigh.of(model.staleness(update.base_version))
        one = Totals(weight.factor, weight.divisor, weight.mixing, 1, weight.staleness)
        coverage = coverage.adding(0, one)
        statistics = statistics.with_sum(opened.statistics, weight)
        model.note_folded(update, weight, now=facts.received_at, published_at=facts.published_at, share=1.0)
        model.in_buffer[each.id.worker] = weight.factor
    model.step_with(RunningSum(opened.delta, coverage), statistics)
    _note_released(model, record)


def spend(model: GlobalModel, record: SumRecord) -> None:
    """Let the updates of a sum that is given up count as sent: perhaps somebody has opened it."""
    if model.private:
        for each in record.close.updates:
            sent = model.private.state.of(each.id.worker).updates
            model.private.note_released(each.id.worker, sent + 1)
    _note_released(model, record)


def _note_released(model: GlobalModel, record: SumRecord) -> None:
    if model.private:
        for each, facts in zip(record.close.updates, record.updates, strict=True):
            model.private.note_released(each.id.worker, facts.released)
