"""Whether an update is new, and started from a version that this model has gone through. Pure."""

from pydantic import BaseModel, Field

from fluffle.record import Rank, is_in_history
from fluffle.update import UpdateId
from fluffle_aggregator.gates.fitting import DUPLICATE
from fluffle_aggregator.gates.gate import Gate, Incoming, Refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.strategies.strategy import Strategy

ABSORBS_APPLIED = "absorbs-applied"
TOO_MANY_RUNS = "too-many-runs"
SECOND_IN_ROUND = "second-in-round"
FUTURE_VERSION = "future-version"
UNKNOWN_BASE = "unknown-base"
TOO_STALE = "too-stale"


class StalenessLimit(BaseModel):
    """A limit on how late an update may be; None is no limit."""

    max_staleness: int | None = Field(
        None,
        ge=0,
        description="Reject updates that are more than this many versions late. Workers learn of it: they "
        "abort a round that would be too late, and begin a new one from the newest version. Unlimited if "
        "unset.",
    )

    def staleness_limit(self, strategy: Strategy) -> int | None:
        """Return how many versions late an update may be: 0 in synchronous rounds, None without a limit."""
        return 0 if strategy.one_update_per_version else self.max_staleness


def of_a_version_to_come(version: int, model: GlobalModel) -> Refusal | None:
    """Return why an evaluation of this version does not count, or None when there is one of that number."""
    if version <= model.version:
        return None
    return Refusal(FUTURE_VERSION, f"version {version} is not made yet: the newest is {model.version}")


def is_new(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
    """Let an update pass that the model does not contain."""
    update = incoming.update
    if model.secure and (why := model.secure.why_given_up(update.id)):
        return Refusal(*why)
    if model.secure and update.id in model.secure.buffer:
        return Refusal(DUPLICATE, f"update {update.id} is in the buffer already")
    if update.id in model.applied:
        return Refusal(DUPLICATE, f"the model contains update {update.id} already")
    if counted := [str(each) for each in update.absorbed if each in model.applied]:
        return Refusal(
            ABSORBS_APPLIED,
            f"the update takes the place of {', '.join(counted)}, which the model contains already",
        )
    if full := _why_full(update.id, model):
        return Refusal(TOO_MANY_RUNS, full)
    if model.strategy.one_update_per_version and update.id.worker in model.in_buffer and not update.refresh:
        return Refusal(
            SECOND_IN_ROUND,
            f"worker {update.id.worker} has given its update for version {model.version} already",
        )
    return incoming


def _why_full(update: UpdateId, model: GlobalModel) -> str:
    secure = model.secure
    if secure is None:
        return model.applied.why_full(update)
    full = secure.remembered(model.applied).why_full(update) or secure.given_up.why_full(update)
    return full and (
        f"{full}, or rotate the keys (`fluffle keys rotate`): with a new epoch the runs of older ones are "
        "forgotten"
    )


def has_a_known_base(limits: StalenessLimit) -> Gate:
    """Return the gate that lets an update pass when it started from a version of this history."""

    def gate(incoming: Incoming, model: GlobalModel) -> Incoming | Refusal:
        update = incoming.update
        staleness = model.staleness(update.base_version)
        if staleness < 0:
            return Refusal(
                FUTURE_VERSION,
                f"the update started from version {update.base_version}, but the newest is {model.version}",
            )
        base = Rank(update.base_term, update.base_version)
        if not is_in_history(base, model.terms, model.version):
            return Refusal(
                UNKNOWN_BASE,
                f"the update started from version {base}, which is not in the history of this model: the "
                "aggregator that published it had lost the lead",
            )
        # No version is made of a survey's answers one by one, so none of them is late; nor is a refresh.
        limit = None if update.shape or update.refresh else limits.staleness_limit(model.strategy)
        if limit is not None and staleness > limit:
            return Refusal(
                TOO_STALE,
                f"the update started from version {update.base_version}, {staleness} versions ago; "
                f"at most {limit} are allowed",
            )
        return incoming

    return gate
