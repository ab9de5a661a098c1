"""Whether an update is one for this model: federation, architecture and plan. Pure."""

from dataclasses import replace

from fluffle.codecs.tail import tail_of
from fluffle.compression import most_bytes
from fluffle.errors import LayoutError
from fluffle.events import AFTER_THE_END
from fluffle.secure.surveyed import size_of
from fluffle.survey.shape import SurveyShape
from fluffle.update import WeightUpdate
from fluffle_aggregator.gates.gate import Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.sealed.fitting import why_differently_sealed
from fluffle_aggregator.secure.masked_buffer import MaskedBuffer

FINISHED = AFTER_THE_END
DUPLICATE = "duplicate"
WRONG_FEDERATION = "wrong-federation"
WRONG_LAYOUT = "wrong-layout"
WRONG_CONTENT = "wrong-content"
SURVEY_OPEN = "survey-open"
SURVEY_OVER = "survey-over"
NO_SURVEY = "no-survey"
OTHER_DATA = "other-data"
OTHER_EPOCH = "other-epoch"
NOT_REGISTERED = "not-registered"


def of_another_federation(report: str, federation: str, model: GlobalModel) -> Refusal | None:
    """Return why a report for this federation does not count, or None when it is the model's own.

    `report` says what it is, such as "the answer".
    """
    if federation == model.record.federation:
        return None
    return Refusal(WRONG_FEDERATION, f"{report} is for {federation!r}")


def has_answered(worker: str) -> Refusal:
    """Return the refusal of a second answer to a survey."""
    return Refusal(DUPLICATE, f"{worker} has answered this survey already: its first answer counts")


def of_other_data(worker: str, first: str, difference: str) -> Refusal:
    """Return the refusal of an answer whose data differs from that of the worker that answered first."""
    return Refusal(OTHER_DATA, f"the data of {worker} is not like that of {first}: {difference}")


def fits_the_model(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
    """Let an update pass that this model can take in; of one with a part, say where the part begins."""
    update, layout = incoming.update, model.record.layout
    if model.over:
        return Refusal(FINISHED, f"the federation has finished: {model.over}")
    if update.federation != model.record.federation:
        return Refusal(
            WRONG_FEDERATION,
            f"the update is for {update.federation!r}, this is {model.record.federation!r}",
        )
    if (update.shape or model.survey) and (refusal := _not_of_this_time(update, model)):
        return refusal
    if update.layout_digest != layout.digest:
        return Refusal(
            WRONG_LAYOUT,
            f"the update's layout is {update.layout_digest!r}, the federation's {layout.digest!r}: "
            "worker and federation run different models",
        )
    is_protected = bool(update.epoch or update.key or model.secure or model.sealed)
    if is_protected and (refusal := _differently_protected(update, model)):
        return refusal
    found = update.vector.size, update.statistics.size, len(update.integers)
    is_whole = found == (layout.size, layout.statistics_size, layout.integers_size_bytes)
    is_usual = is_whole and not (is_protected or model.private or update.first_tensor)
    if not is_usual and (refusal := _wrong_sizes(update, model)):
        return refusal
    strategy, plan = model.strategy, model.plan
    if update.sends != strategy.sends:
        return Refusal(
            WRONG_CONTENT,
            f"the update carries {update.sends}, but {strategy.name} needs {strategy.sends}: "
            "it was trained for a plan that is no longer in force",
        )
    # What is held until the step must not take more memory than was reckoned with at the start.
    if strategy.rule.holds_vectors and len(update.vector.payload) > most_bytes(plan.codec, layout.size):
        return Refusal(
            WRONG_CONTENT,
            f"the update came in {update.codec}, and rule {strategy.rule} holds updates in {plan.codec}: "
            "it was trained for a plan that is no longer in force",
        )
    if not update.first_tensor:
        return incoming
    # From here on the vector of a part is one of the model's size.
    return replace(incoming, update=replace(update, vector=tail_of(layout.size, update.vector)))


def _not_of_this_time(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    """Return why an update comes while a survey is open, or an answer while none is; None otherwise."""
    if update.shape is None:
        if model.survey is None:
            return None
        return Refusal(SURVEY_OPEN, "the federation's survey is open: workers train when it has ended")
    if model.survey is None or not model.survey.aim.is_asked:
        if model.survey or model.draft.survey is None:
            return Refusal(NO_SURVEY, "this federation has no survey")
        return Refusal(SURVEY_OVER, "the survey has ended")
    if model.secure is None:
        return Refusal(WRONG_CONTENT, "the answer is masked, and this federation has no secure aggregation")
    return None


def _unlike_the_others(shape: SurveyShape, worker: str, buffer: MaskedBuffer) -> Refusal | None:
    """Return why an answer to a survey cannot be added to those before it, or None when it can."""
    if buffer.has_one_of(worker):
        return has_answered(worker)
    difference = buffer.shape.difference(shape) if buffer.shape else ""
    return of_other_data(worker, buffer.updates[0].id.worker, difference) if difference else None


def _differently_protected(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    """Return why an update is not masked or sealed as the plan says, or None when it is."""
    if why := why_differently_sealed(update, model.sealed):
        return Refusal(*why)
    return _differently_masked(update, model)


def _differently_masked(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    """Return why an update is not masked as the plan says, or None when it is."""
    secure, epoch = model.secure, update.epoch
    if secure is None:
        if not epoch:
            return None
        detail = f"the update is masked for epoch {epoch}, and this federation has no secure aggregation"
        return Refusal(WRONG_CONTENT, f"{detail}: it was trained for a plan that is no longer in force")
    if not epoch:
        return Refusal(
            WRONG_CONTENT,
            "the update is not masked, and this federation has secure aggregation: it was trained for a plan "
            "that is no longer in force",
        )
    if update.id.worker not in secure.registered:
        return Refusal(
            NOT_REGISTERED,
            f"the worker {update.id.worker} is not in the registry, or revoked: the operator adds it with "
            "`fluffle keys registry`",
        )
    if epoch != secure.plan.epoch:
        return Refusal(
            OTHER_EPOCH,
            f"the update is masked for epoch {epoch}, and the helpers have the keys of epoch "
            f"{secure.plan.epoch}: its worker trains anew",
        )
    plan = secure.buffer.plan
    if update.codec != plan.codec:
        return Refusal(WRONG_CONTENT, f"the update came in {update.codec}, and sums are in {plan.codec}")
    if update.revision != plan.revision:
        return Refusal(
            WRONG_CONTENT,
            f"the update was masked by revision {update.revision} of the plan, and this is revision "
            f"{plan.revision}: its worker trains anew",
        )
    return _unlike_the_others(update.shape, update.id.worker, secure.buffer) if update.shape else None


def _wrong_sizes(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    layout = model.record.layout
    try:
        part = layout.tail(update.first_tensor)
    except LayoutError as error:
        return Refusal(WRONG_LAYOUT, f"the update has no part of the model: {error}")
    found = update.vector.size, update.statistics.size, len(update.integers)
    expected = part.size, part.statistics_size, part.integers_size_bytes
    if update.shape:
        expected = size_of(update.shape), 0, 0
    elif model.secure:
        # Statistics are under the masks too.
        expected = model.secure.plan.length(part.size, part.statistics_size), 0, 0
    elif model.sealed:
        # A refresh has the sealed elements alone.
        size = model.sealed.part.size if update.refresh else part.size
        expected = size, 0 if update.refresh else part.statistics_size, 0
    elif model.private:
        # Integers are no sum that noise could be added to: they stay what they were.
        expected = layout.size, 0, 0
    if found != expected:
        which = f" from tensor {update.first_tensor} on" if update.first_tensor else ""
        return Refusal(
            WRONG_LAYOUT,
            "the update has {} trained values, {} statistics and {} bytes of integers; "
            "the model has {}, {} and {}".format(*found, *expected)
            + which,
        )
    return None
