"""How many updates a worker has ever sent with noise of its own: its own count, on its own disk.

Nobody else can know what the noise has to cover. An update counts before it is kept to be sent,
whatever becomes of it, and over restarts and resets of the federation.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError, WireError
from fluffle.fields import Count
from fluffle.framing import HeaderLimits, join
from fluffle.logs import get_logger
from fluffle.message import BareMessage, decode
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.shares import why_not_kept
from fluffle.record import ModelVersion
from fluffle.stopping import StopRequested
from fluffle_worker.local_noise import why_not_local
from fluffle_worker.spool import Damaged, read_digested, write_digested

log = get_logger(__name__)

NAME: Final = "released.ledger"
# How long a worker waits until it tries to write again.
WRITE_AGAIN_S: Final = 5.0
LIMITS: Final = HeaderLimits(4096, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """How many updates were sent, and the promise that covers them."""

    updates: Count
    promised: PrivacyPlan


_RELEASED: Final = BareMessage("released", Released)


class ReleasedUpdates:
    """The count of one worker in a folder; it is 0 while there is no file."""

    def __init__(self, folder: Path) -> None:
        """Read it. Raises ConfigError when the file is damaged."""
        self._path = folder / NAME
        self._known = self._read() if self._path.exists() else None

    def _read(self) -> Released:
        try:
            return decode(read_digested(self._path), LIMITS, {"released": _RELEASED.read})
        except (Damaged, WireError) as error:
            raise ConfigError(
                f"{self._path} cannot be read ({error}), and says how many updates this worker has sent with "
                "its noise: put a good copy in its place; or delete it, and what the federation's record "
                "says counts alone"
            ) from error

    @property
    def has_any(self) -> bool:
        """Whether this worker has ever sent an update with noise of its own."""
        return self._known is not None

    def require(self, version: ModelVersion) -> None:
        """Raise ConfigError unless the plan of a version keeps to what it promises, and has promised before.

        A plan by which workers add no noise passes, where this worker has never added any.
        """
        promised, federation = version.plan.privacy, version.federation
        if self._known and self._known.promised != promised:
            now = f"promises something else ({promised.promise})" if promised else "promises nothing"
            raise ConfigError(
                f"this worker has sent {self._known.updates} updates to {federation}, which has promised: "
                f"{self._known.promised.promise} Now it {now}. Delete {self._path} only if this worker may "
                "spend another budget on top of that"
            )
        if promised is None or promised.mechanism == "central":
            return
        if promised.mechanism == "local":
            why = why_not_local(promised, version.plan, version.layout)
        else:
            why = why_not_kept(promised, version.plan.secure, version.layout)
        if version.survey and version.survey.is_open:
            why = "a survey is open, whose answers have no noise"
        if why:
            raise ConfigError(
                f"{federation} promises differential privacy, and its plan does not keep to that: {why}. Ask "
                "whoever runs its aggregator"
            )

    def count(self, worker: str, version: ModelVersion) -> int:
        """Return how many updates a worker has sent, by this count or a version's, whichever is more.

        Where this folder was lost, or is an older copy, the record may know of more.
        """
        of_record = version.privacy.of(worker).updates if version.privacy else 0
        return max(of_record, self._known.updates if self._known else 0)

    def count_next(self, worker: str, version: ModelVersion, stop: threading.Event) -> int:
        """Count one more update as `note_next` does; wait while that cannot be written.

        Raises StopRequested when asked to stop meanwhile.
        """
        while True:
            try:
                return self.note_next(worker, version)
            except ConfigError as error:
                log.warning("an update waits until it can be counted on the disk", because=str(error))
            if stop.wait(WRITE_AGAIN_S):
                raise StopRequested

    def note_next(self, worker: str, version: ModelVersion) -> int:
        """Count one more update, which is on the disk when this returns, and return how many there are.

        Raises ConfigError when it cannot be written, or when the promise does not cover it.
        """
        promised, updates = version.plan.privacy, self.count(worker, version) + 1
        if promised is None or updates > promised.updates:
            raise ConfigError(f"no promise covers update {updates} of this worker")
        known = Released(updates=updates, promised=promised)
        write_digested(self._path, bytes(join(_RELEASED.header(known), [], LIMITS)))
        self._known = known
        return updates
