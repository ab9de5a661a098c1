"""How each worker trains; the plan is part of every version's record. Pure."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fluffle.compression import CodecName
from fluffle.fields import Count, Positive, must
from fluffle.privacy.plan import BoundedPlan
from fluffle.sealed.plan import SealedPlan
from fluffle.secure.plan import SecurePlan

Sends = Literal["delta", "weights"]
Seconds = Annotated[float, must(lambda number: number > 0, "{} is not more than 0")]
MAX_STEPS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a worker trains and what it sends.

    `local_steps`, when given, counts minibatches and replaces `local_epochs`. With `round_seconds` the worker
    chooses `local_steps` itself, from `min_steps` to `max_steps`, so that a round takes about so long; a task
    is then given a plan with the number that was chosen. With a `learning_rate` of None
    the task's model keeps the rate that it was compiled with; either is multiplied by `learning_rate_scale`,
    which a schedule changes from version to version. With `keep_optimizer` a worker keeps its optimizer's
    moments from round to round, in its own folder; they are never sent. With `max_batch_size` a worker may
    train larger minibatches than `batch_size`, up to this size, if that is faster; its learning rate follows.
    `proximal_mu` is the weight of the
    proximal term μ/2·‖x − x_base‖² of FedAsync's local objective (Xie et al. 2019, section 3, equation 2).
    `sends` is "delta" (trained minus base) or "weights", and `codec` compresses it. With
    `one_update_per_version` a worker waits for a new version before it trains again (synchronous rounds).
    `updates_per_version` is how many updates a published version usually contains: it limits how many
    a worker sends. An update that is more than `max_staleness` versions late is refused, so a worker aborts a
    round as soon as it learns that; None is no limit.

    A worker that holds out data evaluates the version that it has received before every `evaluate_every`th
    round; with None as often as takes a tenth of its time at most. `sites_decide` says that the federation
    ends, or calls a version best, by these evaluations.

    With `secure` the workers mask what they send: secure aggregation. With `privacy` the aggregator adds
    noise to the sums, and each worker sends no more updates, and no sooner, than that covers. With `sealed`
    workers encrypt what they send, and decrypt the model.
    """

    local_epochs: Positive = 1
    local_steps: Positive | None = None
    round_seconds: Seconds | None = None
    min_steps: Positive = 1
    max_steps: Positive = MAX_STEPS
    batch_size: Positive = 32
    max_batch_size: Positive | None = None
    learning_rate: float | None = None
    learning_rate_scale: float = 1.0
    keep_optimizer: bool = False
    proximal_mu: float = 0.0
    sends: Sends = "delta"
    codec: CodecName = "float32"
    one_update_per_version: bool = False
    updates_per_version: Positive = 1
    max_staleness: Count | None = None
    evaluate_every: Positive | None = None
    sites_decide: bool = False
    secure: SecurePlan | None = None
    privacy: BoundedPlan | None = None
    sealed: SealedPlan | None = None

    @property
    def may_repeat(self) -> bool:
        """Whether a worker may send a second update from the same version."""
        return not self.one_update_per_version and self.privacy is None

    @property
    def is_private(self) -> bool:
        """Whether nothing is told of a single site besides its update: no loss, no metric and no example."""
        return self.secure is not None or self.privacy is not None

    def examples_of_round(self, examples: int) -> int:
        """Return on how many examples a worker that has so many trains in one round."""
        return self.local_steps * self.batch_size if self.local_steps else self.local_epochs * examples
