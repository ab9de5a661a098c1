"""Secure aggregation at a worker: what it insists on, which keys it waits for, and how it masks its updates.

A worker that has keys sends nothing in the clear. This module does without the library of ciphers, which
workers without keys need not load: `fluffle_worker.secure_keys` has the keys themselves.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np

from fluffle.broker import Broker
from fluffle.codecs.floats import Float32Vector
from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Vector, no_values
from fluffle.model_stream import newest_version
from fluffle.privacy.skellam import SkellamNoise
from fluffle.record import ModelVersion
from fluffle.secure.measured import too_large
from fluffle.secure.plan import SecurePlan
from fluffle.sites import SiteEvaluation
from fluffle.stopping import StopRequested
from fluffle.survey.statistics import DataStatistics
from fluffle.topology import Topology
from fluffle.update import UpdateId, WeightUpdate
from fluffle.vector_math import largest_magnitude, norm
from fluffle_worker.clipping import ClippingWarnings, few_levels, is_finite
from fluffle_worker.pace.share import TrainShare
from fluffle_worker.released import ReleasedUpdates
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.spool import Spool
from fluffle_worker.unsent import drop_residual, drop_unsent

log = get_logger(__name__)

SETTINGS: Final = "--secure-key, --secure-registry and --secure-operator"
# How often the registry's file is read again, and how long before the newest version is looked at again.
LOOK_EVERY_S, LOOK_FOR_S = 1.0, 30.0


class Keys(Protocol):
    """A worker's key, and the registry of one epoch."""

    @property
    def epoch(self) -> int:
        """The epoch of the registry that was read last."""

    @property
    def digest(self) -> str:
        """The digest of the helpers' keys in that registry."""

    def reread(self) -> str:
        """Read the registry's file again; return why it cannot be used, empty if it can.

        Raises ConfigError when the operator has signed a registry in which this worker cannot take part.
        """

    def masking(
        self,
        update: WeightUpdate,
        delta: Vector,
        found: SiteEvaluation | None,
        plan: SecurePlan,
        random: np.random.Generator,
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of a delta, its update's statistics, and what this site has found at last.

        Return what masks them under an id.
        """

    def masking_with_noise(
        self,
        update: WeightUpdate,
        delta: Vector,
        noise: SkellamNoise,
        plan: SecurePlan,
        random: np.random.Generator,
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of a delta, and add this worker's share of the noise to them.

        Return what masks them under an id.
        """

    def masking_answer(
        self, update: WeightUpdate, statistics: DataStatistics, plan: SecurePlan
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of what a survey asks for; return what masks them under an id."""


@dataclass(kw_only=True, eq=False)
class SecureSite:
    """One worker's part in secure aggregation; without `keys` it takes part in none."""

    keys: Keys | None
    topology: Topology
    stop: threading.Event
    train_share: TrainShare
    released: ReleasedUpdates
    _waits: int = 0
    _has_warned_of_metrics: bool = False
    _warnings: ClippingWarnings = field(default_factory=ClippingWarnings)

    @property
    def insists(self) -> bool:
        """Whether this worker sends nothing that is not masked."""
        return self.keys is not None

    def prepare(self, spool: Spool) -> None:
        """Begin a new run if this worker has keys, and drop what an earlier life has kept in the clear.

        A spool that was restored from an older copy has ids that were sent already. Under such an id another
        update would have the same mask, and the difference of the two would be known to the aggregator.
        """
        if self.keys is None:
            return
        spool.begin_run()
        if dropped := drop_unsent(spool, _is_masked):
            log.warning(
                "dropped unsent updates of before secure aggregation: they are not masked",
                updates=dropped,
                spool=str(spool.folder),
            )

    def require(self, version: ModelVersion) -> None:
        """Raise ConfigError, before anything is sent, when the plan and this worker do not go together."""
        plan, federation = version.plan, version.federation
        if plan.secure is None:
            if self.keys:
                raise ConfigError(
                    f"this worker insists on secure aggregation, and the plan of {federation} wants updates "
                    "that are not masked: start the aggregator with --secure-aggregation, or this worker "
                    f"without {SETTINGS}"
                )
            return
        if self.keys is None:
            raise ConfigError(
                f"{federation} uses secure aggregation, and this worker has no key: make one with `fluffle "
                "keys worker NAME`, send NAME.pub to the operator, and start this worker with "
                f"{SETTINGS}"
            )
        if self.train_share != 1:
            raise ConfigError(
                f"{federation} uses secure aggregation, in which each update has all layers: start this "
                f"worker without --train-share {self.train_share}"
            )
        if plan.sends != "delta":
            raise ConfigError(
                f"{federation} uses secure aggregation, which is for deltas, and its plan wants weights: "
                "choose the strategy fedbuff or fedavg at the aggregator"
            )

    def is_current(self, version: ModelVersion) -> bool:
        """Tell whether the keys are of the epoch of a version's plan, or none are needed."""
        secure = version.plan.secure
        return secure is None or self.keys is None or self.keys.epoch == secure.epoch

    def is_ready(self, version: ModelVersion, broker: Broker) -> bool:
        """Tell whether a round may start from a version.

        If its plan and the registry are of different epochs, wait for a newer file, or for a newer version,
        and return False after a while: the newest version is then to be looked at again. Raises StopRequested
        when asked to stop, and ConfigError when this worker has no place in the new registry, or one with
        other keys.
        """
        keys, secure = self.keys, version.plan.secure
        if keys is None or secure is None:
            return True
        fault = keys.reread() if keys.epoch < secure.epoch else ""
        if keys.epoch == secure.epoch:
            if secure.group_keys not in ("", keys.digest):
                raise ConfigError(
                    f"the registry of this worker has other keys of the helpers for epoch {secure.epoch} "
                    "than that of the aggregator, and sums with its updates could not be opened: ask the "
                    "operator for registry.json and operator.pub"
                )
            self._waits = 0
            return True
        self._waits += 1
        if self._waits.bit_count() == 1:
            _warn_of_epoch(keys.epoch, secure.epoch, fault)
        if keys.epoch > secure.epoch:
            newest_version(
                broker, self.topology, stop=self.stop, newer_than=version.rank, timeout_s=LOOK_FOR_S
            )
        else:
            self._await_epoch(keys, secure.epoch)
        if self.stop.is_set():
            raise StopRequested
        return False

    def add_masked(
        self,
        spool: Spool,
        trained: TrainedUpdate,
        found: SiteEvaluation | None,
        version: ModelVersion,
        random: np.random.Generator,
    ) -> None:
        """Mask an update, which began from this version, and put it into the spool.

        `found` is the newest evaluation at this site, which travels in the update.
        """
        secure = version.plan.secure
        if self.keys is None or secure is None:
            raise ConfigError("only a worker with keys can mask, and only for a plan with secure aggregation")
        drop_residual(spool, "before secure aggregation")
        if version.plan.privacy and version.plan.privacy.shares:
            self._add_with_noise(spool, trained, version, random)
            return
        size = self._warnings.note(trained, version.layout, secure)
        # Behind its mask nobody could tell, and it would spoil the whole sum.
        if not is_finite(size, trained):
            return
        if levels := few_levels(trained.vector, size, secure):
            log.warning(
                "an update is not sent: the aggregator's clip is so wide that it has few levels, and sums of "
                "such updates could be taken apart; start the aggregator with a smaller --secure-clip",
                update=str(trained.update.id),
                levels=levels,
                clip=secure.clip,
                largest=float(f"{largest_magnitude(trained.vector):.3g}"),
            )
            return
        if found and not self._has_warned_of_metrics and (large := too_large(found, secure)):
            self._has_warned_of_metrics = True
            log.warning("metrics of this site are too large to be masked, and do not travel", metrics=large)
        under = self.keys.masking(trained.update, trained.vector, found, secure, random)
        spool.add(under(trained.update.id), renamed=under)

    def _add_with_noise(
        self,
        spool: Spool,
        trained: TrainedUpdate,
        version: ModelVersion,
        random: np.random.Generator,
    ) -> None:
        """Count an update, add this worker's share of the noise to it, mask it, and put it into the spool."""
        secure, promised, first = version.plan.secure, version.plan.privacy, trained.update.id
        noise = promised.shares if promised else None
        if self.keys is None or secure is None or noise is None:
            raise ConfigError("noise is added under masks alone")
        if not is_finite(norm(trained.vector), trained):
            return
        update = replace(trained.update, released=self.count_next(first.worker, version))
        masked = self.keys.masking_with_noise(update, trained.vector, noise, secure, random)

        def under(other: UpdateId) -> WeightUpdate:
            if other == first:
                return masked(other)
            # Perhaps the first one is on the disk after all, and is sent when this worker starts again.
            return replace(masked(other), released=self.released.note_next(other.worker, version))

        try:
            spool.add(under(first), renamed=under)
        except ConfigError as error:
            log.warning("an update is lost: the disk has no room for it", because=str(error))

    def count_next(self, worker: str, version: ModelVersion) -> int:
        """Count one more update that leaves with noise of this worker; see `ReleasedUpdates`."""
        return self.released.count_next(worker, version, self.stop)

    def add_masked_answer(self, spool: Spool, statistics: DataStatistics, version: ModelVersion) -> None:
        """Mask the answer to the survey of a version, and put it into the spool."""
        secure = version.plan.secure
        if self.keys is None or secure is None:
            raise ConfigError("only a worker with keys can mask, and only for a plan with secure aggregation")
        answer = WeightUpdate(
            federation=version.federation,
            id=spool.next_id,
            base_term=version.term,
            base_version=version.version,
            layout_digest=version.layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(no_values()),
            examples=0,
        )
        under = self.keys.masking_answer(answer, statistics, secure)
        spool.add(under(answer.id), renamed=under)

    def _await_epoch(self, keys: Keys, epoch: int) -> None:
        """Look at the registry's file again and again, for a while."""
        until = time.monotonic() + LOOK_FOR_S
        while keys.epoch < epoch and time.monotonic() < until and not self.stop.wait(LOOK_EVERY_S):
            keys.reread()


def _warn_of_epoch(own: int, plans: int, fault: str) -> None:
    if own > plans:
        log.warning(
            "the registry is newer than the federation's plan: waiting for a version of its epoch",
            registry_epoch=own,
            plan_epoch=plans,
        )
        return
    log.warning(
        "the registry is older than the federation's plan: put the operator's new registry.json in its place",
        registry_epoch=own,
        plan_epoch=plans,
        **({"because": fault} if fault else {}),
    )


def _is_masked(update: WeightUpdate) -> bool:
    # The protocol refuses an epoch in an update that is not masked.
    return update.epoch > 0
