"""Finished updates that are not confirmed yet, in a folder on disk: what the worker has learnt is not lost.

The names of the files are the spool's memory, so that even on a full disk a confirm can be noted:

    000000000007-RUN.update   update 7 of a run waits: the message as it is published, then a digest
    000000000006-RUN.done     the last one that was confirmed, or dropped; empty
    000000000005-RUN.damaged  one that could not be read any more, set aside
    000000000004-RUN.sent     with a codec that leaves out: confirmed, but not known to be applied
    000000000007-RUN.residual what update 7 left out; it counts if update 7 was kept
    *.part                    is being written
    lock                      held by the one process that works here

Numbers only go up, over all runs, so that names sort in the order of their making.
"""

from __future__ import annotations

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
# In the order of their removal: without its update a residual counts for nothing.
STATES_OF_ONE: tuple[State, ...] = ("update", "residual")
_NAME = re.compile(
    r"(?P<sequence>[0-9]{12})-(?P<run>[0-9a-f]{16})\.(?P<state>update|done|damaged|sent|residual)"
)


class NoRoomForResidual(Exception):
    """The disk takes neither an update nor what it left out; what was left out before is as it was."""


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
    """An update that is not confirmed; its message is `body`, or None while it lies on disk."""

    id: UpdateId
    size_bytes: int
    body: bytes | None = None


@contextmanager
def open_spool(folder: Path, *, worker: str, max_bytes: int) -> Iterator[Spool]:
    """Take the spool of a worker for this process; `max_bytes` wait in it at most, or one larger update.

    Raises ConfigError when the folder cannot be used, or when another process has it.
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
                f"another process works with the spool {folder} ({error.strerror}): is a worker of the name "
                f"{worker!r} running already? Give this one another --name or --spool"
            ) from error
        yield Spool(folder, worker=worker, max_bytes=max_bytes)
    finally:
        os.close(lock)


class Spool:
    """The updates that wait, oldest first, and the ids that this worker has given so far.

    An update keeps its id for ever, and no id is given twice, whenever the process dies: a worker that is
    started again goes on with its run, as long as everything of the run is on disk.
    """

    def __init__(self, folder: Path, *, worker: str, max_bytes: int) -> None:
        """Read what an earlier process left; for `open_spool`, which holds the lock."""
        self.folder = folder
        self._worker = worker
        self._max_bytes = max_bytes
        self._waiting: deque[Waiting] = deque()
        self._last = UpdateId(worker, secrets.token_hex(8), 0)
        self._done: Path | None = None
        # Whether an id of this run is on disk, so that another process would go on with the run.
        self._run_is_known = False
        # Confirmed with a codec that leaves out, and which update's left-out part is the newest.
        self._sent: list[UpdateId] = []
        self._residual: UpdateId | None = None
        residuals: list[UpdateId] = []
        for path in sorted(folder.iterdir()):
            self._recall(path, residuals)
        for one in residuals:
            # Beyond the last number, the process died before the update itself was on disk.
            newest = one.sequence <= self._last.sequence
            self._forget(self._residual if newest else one, "residual")
            self._residual = one if newest else self._residual

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
        """The updates that are confirmed, but not known to be applied, oldest first; `body` reads them."""
        return list(self._sent)

    @property
    def has_residual(self) -> bool:
        """Whether an update has left something out."""
        return self._residual is not None

    def add(self, update: WeightUpdate, residual: Residual | None = None) -> None:
        """Keep an update whose id is `next_id` until it is confirmed: it is on disk when this returns.

        The oldest ones are dropped for which there is no room. When the disk takes nothing, the update waits
        in memory, under the id of a fresh run: an id that is not on disk could be given twice. With a
        residual, which replaces the one before in the same moment, it raises NoRoomForResidual then.
        """
        body = encode_update(update)
        self._make_room(len(body))
        try:
            if residual is None:
                self._forget(update.id, "residual")
            else:
                numbers = np.array([len(residual.absorbed), *residual.absorbed], "<u8")
                left_out = (numbers.data.cast("B"), Float32Vector.of(residual.vector).payload)
                write_digested(self._path(update.id, "residual"), *left_out)
            # From here on, both count.
            write_digested(self._path(update.id, "update"), body)
        except OSError as error:
            if residual is None:
                self._keep_in_memory(update, error)
                return
            for state in STATES_OF_ONE:
                self._forget(update.id, state)
                remove(self._path(update.id, state).with_suffix(".part"))
            raise NoRoomForResidual(f"{self.folder}: {error.strerror}") from error
        if residual is not None:
            self._supersede(update.id, residual)
        self._run_is_known = True
        self._last = update.id
        self._waiting.append(Waiting(update.id, len(body)))

    def oldest(self) -> tuple[UpdateId, bytes] | None:
        """Return the id and the message of the oldest update; damaged ones are set aside."""
        while self._waiting:
            first = self._waiting[0]
            try:
                body = self._read(first)
                require_protocol(body)
            except (Damaged, WireError, OSError) as error:
                self._set_aside(first, str(error))
            else:
                return first.id, body
        return None

    def confirm(self) -> None:
        """Take note that the broker has the oldest update."""
        one = self._waiting.popleft()
        if self._residual is None or one.body is not None:
            self._leave(one)
            return
        try:
            self._path(one.id, "update").replace(self._path(one.id, "sent"))
        except OSError as error:
            self._say_that_it_stays(one.id, error)
        else:
            self._sent.append(one.id)

    def body(self, update: UpdateId) -> bytes:
        """Return the message of an update that was sent; raises Damaged or OSError."""
        return read_digested(self._path(update, "sent"))

    def residual(self) -> tuple[UpdateId, Residual] | None:
        """Return what was left out last, and by which update; None if nothing, or if it is damaged."""
        if self._residual is None:
            return None
        try:
            body = read_digested(self._path(self._residual, "residual"))
        except (Damaged, OSError) as error:
            log.warning("what was left out so far cannot be read: beginning anew", because=str(error))
            return None
        count = int.from_bytes(body[:8], "little")
        absorbed = np.frombuffer(body, "<u8", count, 8).tolist()
        return self._residual, Residual(np.frombuffer(body, "<f4", offset=8 + 8 * count), tuple(absorbed))

    def forget_residual(self) -> None:
        """Let go of what was left out, and of what was sent for it."""
        for one in self._sent:
            if one == self._last:
                self._leave(Waiting(one, 0), "sent")
            else:
                self._forget(one, "sent")
        self._forget(self._residual, "residual")
        self._sent, self._residual = [], None

    def clear(self) -> int:
        """Drop all that waits, and return how many that were."""
        dropped = len(self._waiting)
        self.forget_residual()
        while self._waiting:
            self._leave(self._waiting.popleft())
        return dropped

    def begin_anew(self) -> int:
        """Drop all that waits, and begin a fresh run from number 1; return how many updates were dropped.

        For another federation under the same name, in which nothing of this can count.
        """
        dropped = self.clear()
        for path in self.folder.iterdir():
            # Names of higher numbers would come after those of the fresh run.
            if _NAME.fullmatch(path.name):
                remove(path)
        self._done = None
        self._last = UpdateId(self._worker, secrets.token_hex(8), 0)
        self._run_is_known = False
        return dropped

    def compare(self, applied: AppliedUpdates) -> None:
        """Begin a fresh run if a model contains updates of this run that the spool knows nothing of.

        That happens when the folder was restored from an older copy: its next numbers are used already.
        """
        known = applied.runs.get((self._worker, self._last.run))
        if known is None or known.highest <= self._last.sequence:
            return
        log.warning(
            "the spool is older than what this worker has sent: beginning a fresh run",
            spool=str(self.folder),
            run=self._last.run,
            last_in_spool=self._last.sequence,
            last_in_model=known.highest,
        )
        # What is left out there may have been sent since.
        self.forget_residual()
        self._last = replace(self._last, run=secrets.token_hex(8))
        self._run_is_known = False

    def _recall(self, path: Path, residuals: list[UpdateId]) -> None:
        """Learn from the name of a file what was before this process; they come in their order."""
        if path.suffix == ".part":
            remove(path)
        name = _NAME.fullmatch(path.name)
        if name is None:
            return
        update_id = UpdateId(self._worker, name["run"], int(name["sequence"]))
        if name["state"] == "residual":
            residuals.append(update_id)
            return
        self._last = update_id
        self._run_is_known = True
        if name["state"] == "update":
            self._waiting.append(Waiting(self._last, max(0, path.stat().st_size - DIGEST_BYTES)))
        elif name["state"] == "done":
            self._mark(path)
        elif name["state"] == "sent":
            self._sent.append(update_id)

    def _make_room(self, size_bytes: int) -> None:
        while self._waiting and sum(one.size_bytes for one in self._waiting) + size_bytes > self._max_bytes:
            oldest = self._waiting.popleft()
            self._leave(oldest)
            log.warning(
                "the spool is full: dropped its oldest update; --spool-max-mib sets the limit",
                update=str(oldest.id),
                spool=str(self.folder),
            )

    def _keep_in_memory(self, update: WeightUpdate, error: OSError) -> None:
        remove(self._path(update.id, "part"))
        remove(self._path(update.id, "update"))
        if self._run_is_known:
            update = replace(update, id=replace(update.id, run=secrets.token_hex(8)))
        self._run_is_known = False
        self._last = update.id
        body = encode_update(update)
        self._waiting.append(Waiting(update.id, len(body), body))
        log.warning(
            "the disk takes no update: it waits in memory, and is lost if this process ends. Make room there",
            update=str(update.id),
            spool=str(self.folder),
            because=error.strerror,
        )

    def _supersede(self, update: UpdateId, residual: Residual) -> None:
        """Remove what the residual of a newer update makes needless."""
        if self._residual != update:
            self._forget(self._residual, "residual")
        self._residual = update
        needed = {*residual.in_flight, *(replace(update, sequence=each) for each in residual.absorbed)}
        for one in self._sent:
            if one not in needed:
                self._forget(one, "sent")
        self._sent = [one for one in self._sent if one in needed]

    def _forget(self, update: UpdateId | None, state: State) -> None:
        if update is not None:
            remove(self._path(update, state))

    def _leave(self, one: Waiting, state: State = "update") -> None:
        """Let an update leave the spool; its name stays, so that its number is not given again."""
        if one.body is not None:
            return
        done = self._path(one.id, "done")
        try:
            # Not waited for: after a power cut, the update is sent again and refused as a duplicate.
            self._path(one.id, state).replace(done)
            self._mark(done)
        except OSError as error:
            self._say_that_it_stays(one.id, error)

    def _say_that_it_stays(self, update: UpdateId, error: OSError) -> None:
        log.warning(
            "the spool cannot note that an update is done with, which will be sent once more",
            update=str(update),
            spool=str(self.folder),
            because=error.strerror,
        )

    def _mark(self, done: Path) -> None:
        """Let this file be the one that tells which update left last."""
        if self._done:
            remove(self._done)
        self._done = done
        os.truncate(done, 0)

    def _read(self, one: Waiting) -> bytes:
        if one.body is not None:
            return one.body
        return read_digested(self._path(one.id, "update"))

    def _set_aside(self, first: Waiting, reason: str) -> None:
        self._waiting.popleft()
        path, aside = self._path(first.id, "update"), self._path(first.id, "damaged")
        with suppress(OSError):
            path.replace(aside)
        log.warning(
            "an update in the spool cannot be sent and is set aside; the others go on. Delete the file, or "
            "put a good copy in its place under its old name (.update) while no worker runs",
            update=str(first.id),
            file=str(aside),
            because=reason,
        )

    def _path(self, update: UpdateId, state: State) -> Path:
        return self.folder / f"{update.sequence:012d}-{update.run}.{state}"
