"""How a leader begins with differential privacy, or goes on with what the record says has been released."""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.privacy.grid import Grid
from fluffle.privacy.noise import NoiseSecret
from fluffle.privacy.plan import DRAWN_BYTES, PrivacyPlan, PrivacyState
from fluffle.privacy.secret_file import read_secret
from fluffle.privacy.usefulness import NoisyRun
from fluffle.record import ModelVersion
from fluffle_aggregator.private.combinations import require_no_statistics
from fluffle_aggregator.private.secret_noise import SecretNoise
from fluffle_aggregator.private.sums import AddedNoise, PrivateSums, grid_of

log = get_logger(__name__)

WHAT_STAYS = (
    "losses, metrics, numbers of examples and steps, and evaluations stay at the sites; integer tensors keep "
    "their first values; an evaluator's own data is not protected"
)


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The secret of the noise that the aggregator adds, and where it was read."""

    path: Path
    secret: NoiseSecret

    @classmethod
    def reading(cls, path: Path) -> "SecretFile":
        """Read the file with the secret. Raises ConfigError when it has none."""
        return cls(path, read_secret(path))

    def require_same(self, record: ModelVersion) -> None:
        """Raise ConfigError when a federation was begun with another secret: its noise could not go on."""
        _, state = promised_by(record)
        if state.commitment != self.secret.commitment:
            raise ConfigError(
                f"{self.path} (dp_secret) has another secret than the one that {record.federation} was begun "
                "with: copy the file of the other aggregators"
            )

    def noise_for(self, record: ModelVersion, buffer_size: int) -> AddedNoise:
        """Return the noise of a leader that goes on from a record, which has the same secret."""
        plan, state = promised_by(record)
        grid = grid_for(plan, record.layout, state.clip_of(plan))
        drawn = secrets.token_bytes(DRAWN_BYTES)
        noise = SecretNoise(self.secret, record.federation, plan, state, grid, drawn=drawn)
        return AddedNoise(noise, grid, buffer_size)


@dataclass(frozen=True, slots=True)
class PrivateStart:
    """How an aggregator begins a federation with differential privacy: its plan, which may need the layout.

    Without a `secret` the workers add the noise.
    """

    plan_for: Callable[[Layout], PrivacyPlan]
    secret: SecretFile | None = None

    def first_state(self, layout: Layout) -> PrivacyState:
        """Return the state of a federation that has released nothing.

        Raises ConfigError for a model that cannot be private.
        """
        require_no_statistics(layout)
        plan = self.plan_for(layout)
        if plan.mechanism != "distributed":
            grid_for(plan, layout, plan.clip)
        if self.secret is None:
            return PrivacyState(commitment="")
        clip = None if plan.count_std is None else plan.clip
        return PrivacyState(commitment=self.secret.secret.commitment, clip=clip)

    def require_same_secret(self, record: ModelVersion) -> None:
        """Raise ConfigError when the federation of a record was begun with another secret of the noise."""
        if self.secret:
            self.secret.require_same(record)

    def sums_of(self, record: ModelVersion, *, buffer_size: int) -> PrivateSums:
        """Return the sums of a leader that goes on from a record, with the noise of its plan."""
        require_no_statistics(record.layout)
        plan, state = promised_by(record)
        say_noise(plan, record.layout.size, buffer_size)
        added = self.secret.noise_for(record, buffer_size) if self.secret else None
        return PrivateSums(plan, state, added)


def promised_by(record: ModelVersion) -> tuple[PrivacyPlan, PrivacyState]:
    """Return what a record promises, and what was released. Raises ConfigError when it does not say both."""
    plan, state = record.plan.privacy, record.privacy
    if plan is None or state is None:
        raise ConfigError(
            f"version {record.version} has a promise of differential privacy, and does not say what was "
            "released: begin a new federation"
        )
    return plan, state


def grid_for(plan: PrivacyPlan, layout: Layout, clip: float) -> Grid:
    """Return the grid for the sums of a model with this clip.

    Raises ConfigError when noise would hide all.
    """
    try:
        return grid_of(plan, layout.size, clip)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def say_promise(promise: str) -> None:
    """Log what is promised to each worker, and what does not travel."""
    log.info("differential privacy", promise=promise, besides=WHAT_STAYS)


def say_noise(plan: PrivacyPlan, size: int, buffer_size: int) -> None:
    """Log the noise with which sums are shown, and warn if more workers are needed than fill the buffers."""
    shares = (
        {"honest": plan.shares.honest, "weights": "all the same"} if plan.shares else {"bands": plan.bands}
    )
    log.info(
        "with differential privacy, sums are shown with noise alone",
        noise=float(f"{plan.std:.6g}"),
        clip=plan.clip,
        **shares,
    )
    enough = run_of(plan, size, buffer_size).enough_workers()
    if enough is None or enough > plan.separation * buffer_size:
        log.warning(
            "with fewer workers than this, the noise in the model is longer than all updates together",
            workers=enough or "no number of workers is enough",
            advice="see `fluffle privacy plan`: a larger buffer_size or epsilon, more updates of each, "
            "or a smaller model",
        )


def run_of(plan: PrivacyPlan, size: int, buffer_size: int) -> NoisyRun:
    """Return the run of a plan, for a model of so many parameters, with as many workers as fill a buffer."""
    # All workers of a full buffer add their share.
    shares = buffer_size / plan.shares.honest if plan.shares else 1.0
    return NoisyRun(
        workers=buffer_size,
        updates=plan.updates,
        separation=plan.separation,
        buffer_size=buffer_size,
        size=size,
        clip=plan.clip,
        std=plan.std_at(plan.clip) * math.sqrt(shares),
        bands=plan.bands,
        to_each_update=plan.mechanism == "local",
    )
