"""Updates that the broker has not confirmed yet, in a folder on disk, so that no training is lost.

The names of the files are the spool's memory, so that a confirm can be noted on a full disk too:

    000000000007-RUN.update   update 7 of a run, not confirmed: the message as it is published, and a digest
    000000000006-RUN.done     the last one that was confirmed, or dropped; empty
    000000000005-RUN.damaged  one that could not be read any more, set aside
    000000000004-RUN.sent     with a codec that leaves out: confirmed, but not known to be applied
    000000000007-RUN.residual what update 7 left out; it counts if update 7 is there
    *.part                    is being written
    lock                      held by the one process that uses the folder

Numbers only increase, over all runs, so that the order of names is the order in which they were made.
"""

import fcntl
import os
import re
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.errors import ConfigError, WireError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle.wire import encode_update, require_protocol
from fluffle_worker.digested_file import DIGEST_BYTES, Damaged, read_digested, remove, write_digested

log = get_logger(__name__)

State = Literal["update", "done", "damaged", "sent", "residual", "part"]
_NAME = re.compile(
    r"(?P<sequence>[0-9]{12})-(?P<run>[0-9a-f]{16})\.(?P<state>update|done|damaged|sent|residual)"
)


class NoRoomForResidual(Exception):
    """The disk has no room for an update and what it left out; the earlier residual is unchanged."""


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """What an update left out, and what has become of the updates before it.

    The content of the `absorbed` ones, by their number in the run, is in it or in the update. `in_flight` are
    sent, and may be applied or refused.
    """

    vector: Vector
    absorbed: tuple[int, ...] = ()
    in_flight: tuple[UpdateId, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """An update that is not confirmed; `body` is its message if it could not be written to the disk."""

    id: UpdateId
    size_bytes: int
    body: bytes | None = None


@contextmanager
def open_spool(folder: Path, *, worker: str, max_bytes: int) -> "Iterator[Spool]":
    """Open the spool of a worker for this process; it holds at most `max_bytes`, or one larger update.

    Raises ConfigError when the folder cannot be used, or when another process uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the worker's spool {folder} cannot be used ({error.strerror}): give --spool a folder that this "
            f"user may write to and that stays when the worker ends"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process uses the spool {folder} ({error.strerror}): is a worker of the name "
                f"{worker!r} running already? Give this one another --name or --spool"
            ) from error
        yield Spool(folder, worker=worker, max_bytes=max_bytes)
    finally:
        os.close(lock)


class Spool:
    """The unconfirmed updates, oldest first, and the ids that this worker has used so far.

    An update keeps its id, and no id is used twice, whenever the process dies: a restarted worker continues
    its run, as long as everything of the run is on disk.
    """

    def __init__(self, folder: Path, *, worker: str, max_bytes: int) -> None:
        """Read what an earlier process left; for `open_spool`, which holds the lock."""
        self.folder = folder
        self._worker = worker
        self._max_bytes = max_bytes
        self._waiting: deque[Waiting] = deque()
        # Confirmed with a codec that leaves out, and the update with the newest residual.
        self._sent: list[UpdateId] = []
        self._residual: UpdateId | None = None
        self._done: Path | None = None
        self._begin_run(after=0)
        residuals: list[UpdateId] = []
        for path in sorted(folder.iterdir()):
            if path.suffix == ".part":
                remove(path)
            elif name := _NAME.fullmatch(path.name):
                update_id = UpdateId(worker, name["run"], int(name["sequence"]))
                if name["state"] == "residual":
                    residuals.append(update_id)
                else:
                    self._recall(update_id, name["state"], path)
        # Beyond the last number, the process died before the update itself was on disk.
        valid = [one for one in residuals if one.sequence <= self._last.sequence]
        self._residual = valid[-1] if valid else None
        for one in residuals:
            if one != self._residual:
                self._remove(one, "residual")

    @property
    def waiting(self) -> int:
        """The number of updates that are not confirmed."""
        return len(self._waiting)

    @property
    def next_id(self) -> UpdateId:
        """The id of the next update."""
        return replace(self._last, sequence=self._last.sequence + 1)

    @property
    def sent(self) -> list[UpdateId]:
        """The updates that are confirmed, but not known to be applied, oldest first."""
        return list(self._sent)

    @property
    def has_residual(self) -> bool:
        """Whether an update has left something out."""
        return self._residual is not None

    def add(self, update: WeightUpdate, residual: Residual | None = None) -> None:
        """Keep an update whose id is `next_id` until it is confirmed: it is on disk when this returns.

        The oldest updates are dropped if there is no room. When the disk is full, the update waits in memory
        under the id of a new run, since an id that is not on disk could be used twice. A residual replaces
        the one before in the same moment; with one, a full disk raises NoRoomForResidual instead.
        """
        body = encode_update(update)
        self._make_room(len(body))
        try:
            if residual is None:
                self._remove(update.id, "residual")
            else:
                numbers = np.array([len(residual.absorbed), *residual.absorbed], "<u8")
                left_out = (numbers.data.cast("B"), Float32Vector.of(residual.vector).payload)
                write_digested(self._path(update.id, "residual"), *left_out)
            # From here on, both count.
            write_digested(self._path(update.id, "update"), body)
        except OSError as error:
            # The update first: without it, a residual does not count.
            for state in ("update", "residual"):
                self._remove(update.id, state)
            self._remove(update.id, "part")
            if residual is None:
                self._keep_in_memory(update, error)
                return
            raise NoRoomForResidual(f"{self.folder}: {error.strerror}") from error
        if residual is not None:
            self._replace_residual(update.id, residual)
        self._is_run_on_disk = True
        self._last = update.id
        self._waiting.append(Waiting(update.id, len(body)))

    def oldest(self) -> tuple[UpdateId, bytes] | None:
        """Return the id and the message of the oldest update; damaged ones are set aside."""
        while self._waiting:
            first = self._waiting[0]
            try:
                body = first.body or read_digested(self._path(first.id, "update"))
                require_protocol(body)
            except (Damaged, WireError, OSError) as error:
                self._set_aside(self._waiting.popleft().id, str(error))
            else:
                return first.id, body
        return None

    def confirm(self) -> None:
        """Note that the broker has the oldest update."""
        one = self._waiting.popleft()
        if self._residual is None or one.body is not None:
            self._finish(one)
        elif self._rename(one.id, "update", "sent"):
            self._sent.append(one.id)

    def sent_message(self, update: UpdateId) -> bytes:
        """Return the message of an update that was sent; raises Damaged or OSError."""
        return read_digested(self._path(update, "sent"))

    def residual(self) -> tuple[UpdateId, Residual] | None:
        """Return what was left out last, and by which update; None if nothing, or if it is damaged."""
        if self._residual is None:
            return None
        try:
            body = read_digested(self._path(self._residual, "residual"))
        except (Damaged, OSError) as error:
            log.warning("cannot read what earlier updates left out: it is lost", because=str(error))
            return None
        count = int.from_bytes(body[:8], "little")
        absorbed = np.frombuffer(body, "<u8", count, 8).tolist()
        return self._residual, Residual(np.frombuffer(body, "<f4", offset=8 + 8 * count), tuple(absorbed))

    def forget_residual(self) -> None:
        """Drop what was left out, and the sent updates that were kept for it."""
        for one in self._sent:
            if one == self._last:
                self._finish(Waiting(one, 0), "sent")
            else:
                self._remove(one, "sent")
        self._remove(self._residual, "residual")
        self._sent, self._residual = [], None

    def clear(self) -> int:
        """Drop all unconfirmed updates, and return how many there were."""
        dropped = len(self._waiting)
        self.forget_residual()
        while self._waiting:
            self._finish(self._waiting.popleft())
        return dropped

    def start_over(self) -> int:
        """Drop all unconfirmed updates, and begin a new run at number 1; return how many were dropped.

        For another federation under the same name, in which none of them can count.
        """
        dropped = self.clear()
        for path in self.folder.iterdir():
            # Names with higher numbers would come after those of the new run.
            if _NAME.fullmatch(path.name):
                remove(path)
        self._begin_run(after=0)
        return dropped

    def compare(self, applied: AppliedUpdates) -> None:
        """Begin a new run if a model contains updates of this run that the spool does not know.

        That happens when the folder was restored from an older copy: its next numbers are used already.
        """
        known = applied.runs.get((self._worker, self._last.run))
        if known is None or known.highest <= self._last.sequence:
            return
        log.warning(
            "the spool is older than the updates that this worker has sent: starting a new run",
            spool=str(self.folder),
            run=self._last.run,
            last_in_spool=self._last.sequence,
            last_in_model=known.highest,
        )
        # The residual may have been sent since.
        self.forget_residual()
        self._begin_run(after=self._last.sequence)

    def _begin_run(self, *, after: int) -> None:
        self._last = UpdateId(self._worker, secrets.token_hex(8), after)
        # Whether an id of this run is on disk, so that another process would continue the run.
        self._is_run_on_disk = False

    def _recall(self, update: UpdateId, state: str, path: Path) -> None:
        """Learn from the name of a file what an earlier process did; they come in their order."""
        self._last = update
        self._is_run_on_disk = True
        if state == "update":
            self._waiting.append(Waiting(update, max(0, path.stat().st_size - DIGEST_BYTES)))
        elif state == "done":
            self._mark(path)
        elif state == "sent":
            self._sent.append(update)

    def _make_room(self, size_bytes: int) -> None:
        while self._waiting and sum(one.size_bytes for one in self._waiting) + size_bytes > self._max_bytes:
            oldest = self._waiting.popleft()
            self._finish(oldest)
            log.warning(
                "the spool is full: dropped its oldest update; --spool-max-mib sets the limit",
                update=str(oldest.id),
                spool=str(self.folder),
            )

    def _keep_in_memory(self, update: WeightUpdate, error: OSError) -> None:
        if self._is_run_on_disk:
            self._begin_run(after=self._last.sequence)
        self._last = replace(self._last, sequence=update.id.sequence)
        body = encode_update(replace(update, id=self._last))
        self._waiting.append(Waiting(self._last, len(body), body))
        log.warning(
            "cannot write an update to the disk: it waits in memory, and is lost if this process ends",
            update=str(self._last),
            spool=str(self.folder),
            because=error.strerror,
        )

    def _replace_residual(self, update: UpdateId, residual: Residual) -> None:
        """Let the residual of a newer update count, and remove the files that it does not need."""
        if self._residual != update:
            self._remove(self._residual, "residual")
        self._residual = update
        needed = {*residual.in_flight, *(replace(update, sequence=each) for each in residual.absorbed)}
        for one in self._sent:
            if one not in needed:
                self._remove(one, "sent")
        self._sent = [one for one in self._sent if one in needed]

    def _finish(self, one: Waiting, state: State = "update") -> None:
        """Remove an update from the disk; its name stays, so that its number is not used again."""
        # Not synced: after a power cut, the update is sent again and refused as a duplicate.
        if one.body is None and self._rename(one.id, state, "done"):
            self._mark(self._path(one.id, "done"))

    def _mark(self, done: Path) -> None:
        """Let this file be the one that names the last update that was confirmed or dropped."""
        if self._done:
            remove(self._done)
        self._done = done
        with suppress(OSError):
            os.truncate(done, 0)

    def _set_aside(self, update: UpdateId, reason: str) -> None:
        aside = self._path(update, "damaged")
        with suppress(OSError):
            self._path(update, "update").replace(aside)
        log.warning(
            "an update in the spool cannot be sent and is set aside. Delete the file, or put a good copy in "
            "its place under its old name (.update) while no worker runs",
            update=str(update),
            file=str(aside),
            because=reason,
        )

    def _rename(self, update: UpdateId, old: State, new: State) -> bool:
        try:
            self._path(update, old).replace(self._path(update, new))
        except OSError as error:
            log.warning(
                "cannot rename a sent update in the spool: it will be sent once more after a restart",
                update=str(update),
                spool=str(self.folder),
                because=error.strerror,
            )
            return False
        return True

    def _remove(self, update: UpdateId | None, state: State) -> None:
        if update is not None:
            remove(self._path(update, state))

    def _path(self, update: UpdateId, state: State) -> Path:
        return self.folder / f"{update.sequence:012d}-{update.run}.{state}"
