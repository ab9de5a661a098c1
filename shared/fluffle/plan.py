"""What the federation asks of each worker; it travels in every version's record. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sends = Literal["delta", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a worker trains and what it sends; the worker obeys it.

    `local_steps`, when given, counts minibatches and replaces `local_epochs`. A `learning_rate` of None
    leaves the one that the task's model was compiled with; either is multiplied by `learning_rate_scale`,
    which a schedule changes from version to version. With `keep_optimizer` a worker keeps its optimizer's
    moments from round to round, in its own folder; they are never sent. `proximal_mu` is the weight of the
    proximal term μ/2·‖x − x_base‖² of FedAsync's local objective (Xie et al. 2019, section 3, equation 2).
    `sends` is "delta" (trained minus base) or "weights". With `one_update_per_version` a worker waits for a
    new version before it trains again (synchronous rounds). `codec` is how it compresses what it sends.
    `updates_per_version` is how many updates a published version usually contains: a worker bounds by it how
    many it has under way (see fluffle.in_flight).
    """

    local_epochs: int = 1
    local_steps: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    learning_rate_scale: float = 1.0
    keep_optimizer: bool = False
    proximal_mu: float = 0.0
    sends: Sends = "delta"
    codec: str = "float32"
    one_update_per_version: bool = False
    updates_per_version: int = 1
