"""Secure aggregation in a worker's loop: what is masked, and which plans it trains for.

The keys are in worker_secrets.py, which loads the library of ciphers.
"""

import threading
from dataclasses import replace
from typing import Protocol

import numpy as np

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.update import UpdateId, WeightUpdate
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.spool import Spool

log = get_logger(__name__)


class Secrets(Protocol):
    """What a worker needs to mask its updates."""

    def await_epoch(self, epoch: int, stop: threading.Event) -> bool:
        """Wait for the registry of the plan's epoch; False when asked to stop, or if the plan is older."""

    def numbers(
        self, delta: Vector, statistics: Vector, plan: SecurePlan, random: np.random.Generator
    ) -> Residues:
        """Return an update in whole numbers, and say if much of it had to be clipped."""

    def masked(self, update: WeightUpdate, numbers: Residues, plan: SecurePlan) -> WeightUpdate:
        """Return an update that holds these numbers under the masks of its id."""


def require_secure(plan: Plan, secrets: Secrets | None, *, train_share: object) -> None:
    """Raise ConfigError when a plan and this worker's settings do not agree about secure aggregation."""
    if plan.secure is None and secrets is not None:
        raise ConfigError(
            "this worker has --secure-key and sends no update without secure aggregation, and the aggregator "
            "has none: start the aggregator with --secure-aggregation, or leave out --secure-key here"
        )
    if plan.secure is not None and secrets is None:
        raise ConfigError(
            "this federation has secure aggregation: make a key with `fluffle keys worker NAME`, send "
            "NAME.pub to the operator, and give --secure-key, --secure-registry and --secure-operator"
        )
    if plan.secure is not None and train_share != 1.0:
        raise ConfigError(
            "--train-share does not go together with secure aggregation, which adds up updates of all "
            "layers: leave it out"
        )


def add_masked(
    spool: Spool, trained: TrainedUpdate, plan: SecurePlan, secrets: Secrets, *, seed: int
) -> None:
    """Mask an update and put it into the spool: nothing else of it is kept, or sent."""
    if spool.has_residual:
        log.warning(
            "what a codec left out of earlier updates is dropped: masked updates take in nothing else"
        )
        spool.forget_residual()
    update = trained.update
    random = np.random.default_rng([seed, update.id.sequence, 1])
    numbers = secrets.numbers(trained.vector, update.statistics, plan, random)

    def masked_as(one: UpdateId) -> WeightUpdate:
        return secrets.masked(replace(update, id=one), numbers, plan)

    spool.add(masked_as(update.id), anew=masked_as)
