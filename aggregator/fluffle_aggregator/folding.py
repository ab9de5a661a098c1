"""What a record says of an update that it contains. Pure."""

from fluffle.record import Folded
from fluffle.update import WeightUpdate


def folded_of(
    update: WeightUpdate, weight: float, staleness: int, *, now: float, published_at: float, share: float
) -> Folded:
    """Return the facts of an update; times are in Unix seconds."""
    return Folded(
        update.id,
        update.base_version,
        staleness,
        weight,
        published_at,
        now,
        update.loss,
        update.train_s,
        update.steps,
        update.batch_size,
        share,
    )
