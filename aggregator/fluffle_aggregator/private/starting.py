"""How a leader begins with differential privacy, or goes on with what the record says has been released."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.privacy.grid import Grid
from fluffle.privacy.noise import NoiseSecret
from fluffle.privacy.plan import DRAWN_BYTES, PrivacyPlan, PrivacyState
from fluffle.privacy.secret_file import read_secret
from fluffle.record import ModelVersion
from fluffle_aggregator.private.combinations import require_no_statistics
from fluffle_aggregator.private.secret_noise import SecretNoise
from fluffle_aggregator.private.sums import PrivateSums, grid_of

log = get_logger(__name__)

WHAT_STAYS = (
    "losses, metrics, numbers of examples and steps, and evaluations stay at the sites; integer tensors keep "
    "their first values; an evaluator's own data is not protected"
)


@dataclass(frozen=True, slots=True)
class PrivateStart:
    """The secret of an aggregator with differential privacy, where it was read, and the plan that it asks."""

    path: Path
    secret: NoiseSecret
    asked: PrivacyPlan

    @classmethod
    def reading(cls, path: Path, asked: PrivacyPlan) -> "PrivateStart":
        """Read the file with the secret, and log what is promised. Raises ConfigError when it has none."""
        found = cls(path, read_secret(path), asked)
        say_promise(asked)
        return found

    def first_state(self, layout: Layout) -> PrivacyState:
        """Return the state of a federation that has released nothing.

        Raises ConfigError for a model that cannot be private.
        """
        grid_for(self.asked, layout)
        return PrivacyState(commitment=self.secret.commitment)

    def sums_of(self, record: ModelVersion, *, buffer_size: int) -> PrivateSums:
        """Return the sums of a leader that goes on from a record, with the noise of its plan.

        Raises ConfigError when the federation was begun with another secret: its noise could not go on.
        """
        plan, state = record.plan.privacy, record.privacy
        if plan is None or state is None:
            raise ConfigError(
                f"version {record.version} has a promise of differential privacy, and does not say what was "
                "released: begin a new federation"
            )
        if state.commitment != self.secret.commitment:
            raise ConfigError(
                f"{self.path} (dp_secret) has another secret than the one that {record.federation} was begun "
                "with: copy the file of the other aggregators"
            )
        grid = grid_for(plan, record.layout)
        drawn = secrets.token_bytes(DRAWN_BYTES)
        noise = SecretNoise(self.secret, record.federation, plan, state, grid, drawn=drawn)
        return PrivateSums(plan, state, noise, grid, buffer_size=buffer_size)


def grid_for(plan: PrivacyPlan, layout: Layout) -> Grid:
    """Return the grid for the sums of a model. Raises ConfigError when it cannot be private."""
    require_no_statistics(layout)
    try:
        return grid_of(plan, layout.size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def say_promise(plan: PrivacyPlan) -> None:
    """Log what is promised to each worker, and what does not travel."""
    log.info("differential privacy", promise=plan.promise)
    log.info(
        "with differential privacy, sums are shown with noise alone",
        noise=float(f"{plan.std:.6g}"),
        bands=plan.bands,
        clip=plan.clip,
        besides=WHAT_STAYS,
    )
