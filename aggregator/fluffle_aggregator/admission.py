"""Whether an update may become part of the model, and if not, why. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from fluffle.broker import Delivery
from fluffle.compression import decompressed
from fluffle.events import AFTER_THE_END
from fluffle.model import largest_magnitude, some_of
from fluffle.record import Evaluation, Rank, is_in_history
from fluffle.topology import Exchange
from fluffle.update import WeightUpdate
from fluffle_aggregator.global_model import GlobalModel

# Squared (Adam's moments) and summed over a million updates it is still far below float32's largest, 2**128.
MAX_MAGNITUDE = float(2**50)


class Reason(StrEnum):
    """Why a message is refused, in a word; the refusal's detail says the rest."""

    UNREADABLE = "unreadable"
    OTHER_PROTOCOL = "other-protocol"
    CRASHES = "crashes"
    FOREIGN_SENDER = "foreign-sender"
    WRONG_FEDERATION = "wrong-federation"
    WRONG_LAYOUT = "wrong-layout"
    WRONG_CONTENT = "wrong-content"
    NOT_FINITE = "not-finite"
    TOO_LARGE = "too-large"
    BAD_EXAMPLES = "bad-examples"
    FUTURE_VERSION = "future-version"
    UNKNOWN_BASE = "unknown-base"
    TOO_STALE = "too-stale"
    DUPLICATE = "duplicate"
    ABSORBS_APPLIED = "absorbs-applied"
    TOO_MANY_RUNS = "too-many-runs"
    SECOND_IN_ROUND = "second-in-round"
    TOO_MANY = "too-many"
    TOO_MUCH = "too-much"
    OVER_SHARE = "over-share"
    LARGE_NORM = "large-norm"
    FINISHED = AFTER_THE_END


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an update is not applied: a word to count by, and a sentence for whoever sent it."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits that the operator sets; None is no limit.

    `max_messages` and `max_mib` are for one user and minute, `max_share` is of a full buffer's weight, and
    `max_norm` counts medians of the norms before. `limits.py` holds these four.
    """

    max_staleness: int | None = None
    min_examples: int = 1
    max_examples: int = 1_000_000_000
    max_messages: int | None = None
    max_mib: float | None = None
    max_share: float | None = None
    max_norm: float | None = None
    on_large_norm: Literal["reject", "clip"] = "reject"


def foreign_sender(claimed: str, delivery: Delivery, way_in: Exchange) -> Refusal | None:
    """Return why a message may not speak for whom it names, or None when RabbitMQ vouches for it.

    The broker verifies the user, if the message says one, and lets each publish to the exchanges that it has
    the right to: nobody but workers to the one for updates, nobody but evaluators to the one for evaluations.
    So no worker can end the federation by claiming an accuracy, and no evaluator can train.
    """
    if delivery.exchange != way_in.name:
        return Refusal(
            Reason.FOREIGN_SENDER,
            f"a message of this kind counts if it comes through the exchange {way_in.name}, "
            f"not {delivery.exchange!r}",
        )
    if delivery.user == claimed:
        return None
    found = f"the RabbitMQ user {delivery.user!r}" if delivery.user else "no verified RabbitMQ user (user_id)"
    return Refusal(Reason.FOREIGN_SENDER, f"the message speaks for {claimed!r} but comes from {found}")


def refusal(
    update: WeightUpdate, model: GlobalModel, policy: Policy, *, finished: str = ""
) -> Refusal | None:
    """Return why this update may not be folded into this model, or None when it may."""
    if finished:
        return Refusal(Reason.FINISHED, f"the federation has finished: {finished}")
    return (
        _misfit(update, model)
        or _repeated(update, model)
        or _untimely(update, model, policy)
        or _unsound(update, model, policy)
    )


def evaluation_refusal(evaluation: Evaluation, model: GlobalModel) -> Refusal | None:
    """Return why an evaluator's report does not count, or None when it does."""
    if evaluation.federation != model.record.federation:
        return Refusal(Reason.WRONG_FEDERATION, f"the evaluation is for {evaluation.federation!r}")
    if evaluation.version > model.version:
        return Refusal(
            Reason.FUTURE_VERSION,
            f"version {evaluation.version} is not made yet: the newest is {model.version}",
        )
    return None


def _misfit(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    layout = model.record.layout
    if update.federation != model.record.federation:
        return Refusal(
            Reason.WRONG_FEDERATION,
            f"the update is for {update.federation!r}, this is {model.record.federation!r}",
        )
    if update.layout_digest != layout.digest:
        return Refusal(
            Reason.WRONG_LAYOUT,
            f"the update's layout is {update.layout_digest!r}, the federation's {layout.digest!r}: "
            "worker and federation run different models",
        )
    found = update.vector.size, update.statistics.size, len(update.integers)
    expected = layout.size, layout.statistics_size, layout.integers_size_bytes
    if found != expected:
        return Refusal(
            Reason.WRONG_LAYOUT,
            "the update has {} trained values, {} statistics and {} bytes of integers; "
            "the model has {}, {} and {}".format(*found, *expected),
        )
    if update.sends != model.strategy.sends:
        return Refusal(
            Reason.WRONG_CONTENT,
            f"the update carries {update.sends}, but {model.strategy.name} needs {model.strategy.sends}: "
            "it was trained for a plan that is no longer in force",
        )
    return None


def _repeated(update: WeightUpdate, model: GlobalModel) -> Refusal | None:
    if update.id in model.applied:
        return Refusal(Reason.DUPLICATE, f"the model contains update {update.id} already")
    if counted := [str(each) for each in update.absorbed if each in model.applied]:
        return Refusal(
            Reason.ABSORBS_APPLIED,
            f"the update takes the place of {', '.join(counted)}, which the model contains already",
        )
    if full := model.applied.why_full(update.id):
        return Refusal(Reason.TOO_MANY_RUNS, full)
    if model.strategy.one_update_per_version and update.id.worker in model.in_buffer:
        return Refusal(
            Reason.SECOND_IN_ROUND,
            f"worker {update.id.worker} has given its update for version {model.version} already",
        )
    return None


def _untimely(update: WeightUpdate, model: GlobalModel, policy: Policy) -> Refusal | None:
    staleness = model.staleness(update.base_version)
    if staleness < 0:
        return Refusal(
            Reason.FUTURE_VERSION,
            f"the update started from version {update.base_version}, but the newest is {model.version}",
        )
    base = Rank(update.base_term, update.base_version)
    if not is_in_history(base, model.terms, model.version):
        return Refusal(
            Reason.UNKNOWN_BASE,
            f"the update started from version {base}, which is not in the history of the model: whoever "
            "published it had lost the lead",
        )
    limit = 0 if model.strategy.one_update_per_version else policy.max_staleness
    if limit is not None and staleness > limit:
        return Refusal(
            Reason.TOO_STALE,
            f"the update started from version {update.base_version}, {staleness} versions ago; "
            f"at most {limit} are allowed",
        )
    return None


def _unsound(update: WeightUpdate, model: GlobalModel, policy: Policy) -> Refusal | None:
    if not policy.min_examples <= update.examples <= policy.max_examples:
        return Refusal(
            Reason.BAD_EXAMPLES,
            f"the update claims {update.examples} examples; expected {policy.min_examples} to "
            f"{policy.max_examples} (FLUFFLE_MIN_EXAMPLES, FLUFFLE_LIMIT_EXAMPLES)",
        )
    # NaN passes through numpy's maximum, but not through Python's.
    largest = float(np.maximum(update.vector.largest_magnitude(), largest_magnitude(update.statistics)))
    if not math.isfinite(largest):
        tensors = model.record.layout.tensors_not_finite(decompressed(update.vector), update.statistics)
        return Refusal(Reason.NOT_FINITE, f"the update holds NaN or infinite values, in {some_of(tensors)}")
    if largest > MAX_MAGNITUDE:
        return Refusal(
            Reason.TOO_LARGE,
            f"the update holds {largest:.3g}; more than {MAX_MAGNITUDE:.3g} would overflow float32 when "
            "squared or summed up",
        )
    return None
