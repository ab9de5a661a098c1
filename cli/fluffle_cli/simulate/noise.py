"""The noise of a simulation with differential privacy, which follows from its seed."""

from hashlib import sha256

from fluffle.model import Layout
from fluffle.privacy.noise import NoiseSecret
from fluffle.privacy.plan import DRAWN_BYTES, PrivacyPlan, PrivacyState
from fluffle_aggregator.private.combinations import require_no_statistics
from fluffle_aggregator.private.secret_noise import SecretNoise
from fluffle_aggregator.private.starting import grid_for
from fluffle_aggregator.private.sums import AddedNoise, PrivateSums


def first_sums(
    plan: PrivacyPlan, layout: Layout, *, federation: str, buffer_size: int, seed: int
) -> PrivateSums:
    """Return the sums of a leader that has released nothing.

    Raises ConfigError for a model that cannot be private.
    """
    require_no_statistics(layout)
    grid = grid_for(plan, layout, plan.clip)
    if plan.mechanism == "local":
        return PrivateSums(plan, PrivacyState(commitment=""))
    secret = NoiseSecret(sha256(f"fluffle simulate {seed}".encode()).digest())
    state = PrivacyState(commitment=secret.commitment, clip=None if plan.count_std is None else plan.clip)
    noise = SecretNoise(secret, federation, plan, state, grid, drawn=bytes(DRAWN_BYTES))
    return PrivateSums(plan, state, AddedNoise(noise, grid, buffer_size))
