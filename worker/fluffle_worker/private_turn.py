"""A worker's turn with differential privacy: it sends no update that the promise does not cover.

Of one worker each sum has one update at most, and some sums must lie between two of them. So it trains only
from a version from which its update counts in the next sum, with no other update under way, and it leaves
when the model contains all updates that it may send.
"""

import threading
import time
from dataclasses import dataclass, replace
from typing import Final

from fluffle.broker import Broker
from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model_stream import await_record
from fluffle.record import ModelVersion
from fluffle.topology import Topology
from fluffle.update import UpdateId
from fluffle_worker.pace.share import TrainShare
from fluffle_worker.released import ReleasedUpdates
from fluffle_worker.spool import Spool
from fluffle_worker.unsent import drop_unsent

log = get_logger(__name__)

# How long the records are read before the newest version is looked at again: a record may be lost.
LOOK_FOR_S: Final = 30.0
# An update of which no version has told for so long is lost: no buffer waits longer than 900 s.
LOST_AFTER_S: Final = 1200.0
# Under masks a buffer waits for its workers. RabbitMQ delivers an update 20 times, each for 20 minutes.
LOST_UNDER_MASKS_AFTER_S: Final = 7 * 3600.0
# So long one of an earlier process of this worker is waited for that may have been refused meanwhile.
EARLIER_LOST_AFTER_S: Final = 10.0


@dataclass(kw_only=True, eq=False)
class PrivateTurn:
    """Knows the update that is under way, and whether the next one may be trained."""

    worker: str
    topology: Topology
    stop: threading.Event
    train_share: TrainShare
    spool: Spool
    released: ReleasedUpdates
    _earlier: UpdateId | None = None
    _under_way: UpdateId | None = None
    _refused_before: int = 0
    _lost_at: float = 0.0
    _has_begun: bool = False

    def __post_init__(self) -> None:
        """Note the last update of an earlier process, before this one begins a run of its own."""
        self._earlier = self._newest

    def begin(self, version: ModelVersion) -> None:
        """Look at a version before anything is sent.

        Raises ConfigError when this worker could send nothing that a promise of privacy covers.
        """
        self.released.require(version)
        if version.plan.privacy is None:
            return
        if not self._has_begun:
            self._has_begun = True
            log.info("differential privacy", promise=version.plan.privacy.promise)
            if version.plan.privacy.mechanism == "local":
                self._drop_without_noise()
            else:
                self._look_for_earlier(version)
        if self.train_share != 1:
            raise ConfigError(
                f"{version.federation} has differential privacy, in which each update has all layers: start "
                f"this worker without --train-share {self.train_share}"
            )

    def note_round(self, base: ModelVersion) -> None:
        """Note the update in the spool, if there is one: it began from this version, and is sent now."""
        if _has_turns(base) and self.spool.waiting:
            self._under_way, self._refused_before = self._newest, _refused(base, self.worker)
            self._lost_at = time.monotonic() + _lost_after_s(base)

    @property
    def _newest(self) -> UpdateId | None:
        """The newest update of the spool, None if there never was one."""
        following = self.spool.next_id
        return replace(following, sequence=following.sequence - 1) if following.sequence > 1 else None

    def start_over(self) -> None:
        """Forget what was sent to a federation that was reset."""
        self._under_way = self._earlier = None

    def why_spent(self, version: ModelVersion) -> str:
        """Return why this worker has nothing more to send; empty while it has."""
        plan, state = version.plan.privacy, version.privacy
        if plan is None or state is None:
            return ""
        if not state.is_spent(self.worker, plan):
            has_sent_all = self._has_sent_all(version) and not self.spool.waiting
            if not has_sent_all or self._is_under_way(version):
                return ""
        of_them = "the model contains them all" if plan.mechanism == "central" else "it has sent them all"
        return f"this worker's privacy budget of {plan.updates} updates is spent: {of_them}"

    def is_ready(self, version: ModelVersion, broker: Broker) -> bool:
        """Tell whether a round may start from a version.

        If not, wait for a version that changes that, and return False: it is then to be read.
        """
        if not _has_turns(version):
            return True
        self._settle(version)
        if self._may_train(version):
            return True
        log.debug("waiting for a version from which an update counts", newest=version.version)

        def is_news(record: ModelVersion) -> bool:
            if record.rank <= version.rank:
                return False
            return bool(record.is_over or self._may_train(record) or self.why_spent(record))

        await_record(broker, self.topology, is_news, stop=self.stop, timeout_s=self._patience_s)
        return False

    @property
    def _patience_s(self) -> float:
        """How long to wait for a record: at most until the update under way is given up."""
        if self._under_way is None:
            return LOOK_FOR_S
        return max(0.0, min(LOOK_FOR_S, self._lost_at - time.monotonic()))

    def _look_for_earlier(self, version: ModelVersion) -> None:
        """Find the last update of an earlier process, of which nobody knows here what became of it."""
        if self._earlier is None or version.applied.is_past(self._earlier):
            return
        self._under_way, self._refused_before = self._earlier, _refused(version, self.worker)
        may_be_refused = not self.spool.waiting and self._refused_before > 0
        patience_s = EARLIER_LOST_AFTER_S if may_be_refused else _lost_after_s(version)
        self._lost_at = time.monotonic() + patience_s

    def _drop_without_noise(self) -> None:
        """Drop what an earlier life has kept that has no noise."""
        if dropped := drop_unsent(self.spool, lambda update: update.released > 0):
            log.warning("dropped unsent updates of before differential privacy", updates=dropped)
        if self.spool.has_residual and not self.released.has_any:
            self.spool.forget_residual()

    def _settle(self, version: ModelVersion) -> None:
        """Forget the update under way once a version contains it, or tells that it was refused."""
        if self._under_way and not self._is_under_way(version):
            self._under_way = None
        if self._under_way and time.monotonic() >= self._lost_at:
            log.info("no version tells what became of an update: going on", update=str(self._under_way))
            self._under_way = None

    def _is_under_way(self, version: ModelVersion) -> bool:
        update = self._under_way
        is_refused = _refused(version, self.worker) > self._refused_before
        return update is not None and not is_refused and not version.applied.is_past(update)

    def _may_train(self, version: ModelVersion) -> bool:
        plan, state = version.plan.privacy, version.privacy
        if plan is None or state is None:
            return True
        if self._is_under_way(version) or self._has_sent_all(version):
            return False
        return state.steps_to_wait(self.worker, plan) == 0

    def _has_sent_all(self, version: ModelVersion) -> bool:
        """Tell whether this worker has sent all updates that it may; it counts where it adds the noise."""
        plan = version.plan.privacy
        counts = plan is not None and plan.mechanism != "central"
        return bool(plan and counts and self.released.count(self.worker, version) >= plan.updates)


def _has_turns(version: ModelVersion) -> bool:
    """Tell whether workers wait for turns: an update with all its noise may be sent at any time."""
    return version.plan.privacy is not None and version.plan.privacy.mechanism != "local"


def _lost_after_s(version: ModelVersion) -> float:
    return LOST_UNDER_MASKS_AFTER_S if version.plan.secure else LOST_AFTER_S


def _refused(version: ModelVersion, worker: str) -> int:
    known = version.contributors.get(worker)
    return known.rejected if known else 0
