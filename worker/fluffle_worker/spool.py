"""Updates that the broker has not confirmed yet, in a folder on disk, so that no training is lost.

The names of the files are the spool's memory, so that a confirm can be noted on a full disk too:

    000000000007-RUN.update   update 7 of a run, not confirmed: the message as it is published, and a digest
    000000000006-RUN.done     the last one that was confirmed, or dropped; empty
    000000000005-RUN.damaged  one that could not be read any more, set aside
    000000000004-RUN.sent     with a codec that leaves out: confirmed, but not known to be applied
    000000000007-RUN.residual what update 7 left out; it counts if update 7 is there
    .*.part                   is being written
    lock                      held by the one process that uses the folder

Numbers only increase, over all runs, so that the order of names is the order in which they were made.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from fluffle.codecs.floats import Float32Vector
from fluffle.errors import ConfigError, SpoolInUse, WireError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.record_wire import require_protocol
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle.whole_file import write_whole
from fluffle.wire import encode_update

log = get_logger(__name__)

DIGEST_BYTES = 16
Renamed = Callable[[UpdateId], WeightUpdate]
_NAME = re.compile(r"([0-9]{12})-([0-9a-f]{16})\.(update|done|damaged|sent|residual)")


class Damaged(Exception):
    """A file of the spool cannot be read, or does not hold what was written."""


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


def write_digested(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that exists as a whole or not at all; ConfigError when it cannot be written."""
    write_whole(path, [*parts, _digest(path, *parts)], mode=0o600)


def read_digested(path: Path) -> bytes:
    """Return what `write_digested` wrote; raises Damaged when the file has changed or cannot be read."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            body = file.read(max(0, size_bytes))
            digest = file.read()
    except OSError as error:
        raise Damaged(str(error)) from error
    if size_bytes < 0 or digest != _digest(path, body):
        raise Damaged(f"its {len(body)} bytes do not match their digest")
    return body


def _digest(path: Path, *parts: bytes | memoryview) -> bytes:
    """Return a checksum that detects damaged, shortened or renamed files; no protection from attackers."""
    running = xxhash.xxh3_128(path.stem.encode())
    for part in parts:
        running.update(part)
    return running.digest()


@contextmanager
def open_spool(folder: Path, *, worker: str, max_bytes: int) -> "Iterator[Spool]":
    """Open the spool of a worker for this process; it holds at most `max_bytes`, or one larger update.

    Raises ConfigError when the folder cannot be used, and SpoolInUse when another process uses it.
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
            raise SpoolInUse(
                f"another process uses the spool {folder} ({error.strerror}): is a worker of the name "
                f"{worker!r} running already? Give this one another --name or --spool"
            ) from error
        yield Spool(folder, worker=worker, max_bytes=max_bytes)
    finally:
        os.close(lock)


class Spool:
    """The unconfirmed updates, oldest first, and the ids that this worker has used so far.

    An update keeps its id, and no id is used twice, whenever the process dies: a restarted worker continues
    its run, as long as everything of the run is on disk. `sent` are the updates that are confirmed, but not
    known to be applied, oldest first.
    """

    def __init__(self, folder: Path, *, worker: str, max_bytes: int) -> None:
        """Read what an earlier process left; for `open_spool`, which holds the lock."""
        self.folder = folder
        self.sent: list[UpdateId] = []
        self._worker = worker
        self._max_bytes = max_bytes
        # The size of each message, and those that could not be written to the disk.
        self._sizes: dict[UpdateId, int] = {}
        self._in_memory: dict[UpdateId, bytes] = {}
        self._done: Path | None = None
        self.begin_run(after=0)
        residuals: list[UpdateId] = []
        for path in sorted(folder.iterdir()):
            if path.suffix == ".part":
                _remove(path)
            elif name := _NAME.fullmatch(path.name):
                update = UpdateId(worker, name[2], int(name[1]))
                if name[3] == "residual":
                    residuals.append(update)
                    continue
                self._last, self._is_run_on_disk = update, True
                if name[3] == "update":
                    self._sizes[update] = max(0, path.stat().st_size - DIGEST_BYTES)
                elif name[3] == "sent":
                    self.sent.append(update)
                elif name[3] == "done":
                    self._mark(path)
        # Beyond the last number, the process died before the update itself was on disk.
        valid = [one for one in residuals if one.sequence <= self._last.sequence]
        # The update with the newest residual.
        self._residual = valid[-1] if valid else None
        for one in residuals:
            if one != self._residual:
                _remove(self._path(one, "residual"))

    @property
    def waiting(self) -> int:
        """The number of updates that are not confirmed."""
        return len(self._sizes)

    @property
    def next_id(self) -> UpdateId:
        """The id of the next update."""
        return replace(self._last, sequence=self._last.sequence + 1)

    @property
    def has_residual(self) -> bool:
        """Whether an update has left something out."""
        return self._residual is not None

    def add(
        self, update: WeightUpdate, residual: Residual | None = None, *, renamed: Renamed | None = None
    ) -> None:
        """Keep an update whose id is `next_id` until it is confirmed: it is on disk when this returns.

        The oldest updates are dropped if there is no room. When the disk is full, the update waits in memory
        under the id of a new run, since an id that is not on disk could be used twice; `renamed` makes it for
        that id, where more depends on the id. A residual replaces the one before in the same moment; with
        one, a full disk raises NoRoomForResidual instead.
        """
        body = encode_update(update)
        self._make_room(len(body))
        on_disk, left_out = self._path(update.id, "update"), self._path(update.id, "residual")
        try:
            if residual is None:
                _remove(left_out)
            else:
                numbers = np.array([len(residual.absorbed), *residual.absorbed], "<u8")
                write_digested(left_out, numbers.data.cast("B"), Float32Vector.of(residual.vector).payload)
            # From here on, both count.
            write_digested(on_disk, body)
        except ConfigError as error:
            # The update first: without it, a residual does not count.
            _remove(on_disk)
            _remove(left_out)
            if residual is not None:
                raise NoRoomForResidual(str(error)) from error
            self._keep_in_memory(update, renamed, str(error))
            return
        if residual is not None:
            self._replace_residual(update.id, residual)
        self._last, self._is_run_on_disk = update.id, True
        self._sizes[update.id] = len(body)

    def oldest(self) -> tuple[UpdateId, bytes] | None:
        """Return the id and the message of the oldest update; damaged ones are set aside."""
        for update in list(self._sizes):
            try:
                body = self._in_memory.get(update) or read_digested(self._path(update, "update"))
                require_protocol(body)
            except (Damaged, WireError) as error:
                del self._sizes[update]
                self._set_aside(update, str(error))
            else:
                return update, body
        return None

    def confirm(self) -> None:
        """Note that the broker has the oldest update."""
        update = next(iter(self._sizes))
        if self._residual is None or update in self._in_memory:
            self._finish(update)
            return
        del self._sizes[update]
        if self._rename(update, "update", "sent"):
            self.sent.append(update)

    def sent_message(self, update: UpdateId) -> bytes:
        """Return the message of an update that was sent; raises Damaged."""
        return read_digested(self._path(update, "sent"))

    def residual(self) -> tuple[UpdateId, Residual] | None:
        """Return what was left out last, and by which update; None if nothing, or if it is damaged."""
        if self._residual is None:
            return None
        try:
            body = read_digested(self._path(self._residual, "residual"))
        except Damaged as error:
            log.warning("cannot read what earlier updates left out: it is lost", because=str(error))
            return None
        count = int.from_bytes(body[:8], "little")
        absorbed = np.frombuffer(body, "<u8", count, 8).tolist()
        return self._residual, Residual(np.frombuffer(body, "<f4", offset=8 + 8 * count), tuple(absorbed))

    def forget_residual(self) -> None:
        """Drop what was left out, and the sent updates that were kept for it."""
        for one in self.sent:
            if one == self._last:
                self._finish(one, "sent")
            else:
                _remove(self._path(one, "sent"))
        if self._residual:
            _remove(self._path(self._residual, "residual"))
        self.sent, self._residual = [], None

    def clear(self) -> int:
        """Drop all unconfirmed updates, and return how many there were."""
        self.forget_residual()
        dropped = list(self._sizes)
        for one in dropped:
            self._finish(one)
        return len(dropped)

    def drop(self, is_unwanted: Callable[[bytes], bool]) -> int:
        """Drop the unconfirmed updates whose message is unwanted, and return how many there were."""
        before = self.waiting
        for one in list(self._sizes):
            with suppress(Damaged):  # those are never sent
                if is_unwanted(self._in_memory.get(one) or read_digested(self._path(one, "update"))):
                    self._finish(one)
        return before - self.waiting

    def start_over(self) -> int:
        """Drop all unconfirmed updates, and begin a new run at number 1; return how many were dropped.

        For another federation under the same name, in which none of them can count.
        """
        dropped = self.clear()
        for path in self.folder.iterdir():
            # Names with higher numbers would come after those of the new run.
            if _NAME.fullmatch(path.name):
                _remove(path)
        self.begin_run(after=0)
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
        self.begin_run()

    def begin_run(self, *, after: int | None = None) -> None:
        """Begin a new run, in which no id can have been used; its numbers go on, or come `after` this one."""
        after = self._last.sequence if after is None else after
        self._last = UpdateId(self._worker, secrets.token_hex(8), after)
        # Whether an id of this run is on disk, so that another process would continue the run.
        self._is_run_on_disk = False

    def _make_room(self, size_bytes: int) -> None:
        while self._sizes and sum(self._sizes.values()) + size_bytes > self._max_bytes:
            oldest = next(iter(self._sizes))
            self._finish(oldest)
            log.warning(
                "the spool is full: dropped its oldest update; --spool-max-mib sets the limit",
                update=str(oldest),
                spool=str(self.folder),
            )

    def _keep_in_memory(self, update: WeightUpdate, renamed: Renamed | None, reason: str) -> None:
        if self._is_run_on_disk:
            self.begin_run()
        self._last = replace(self._last, sequence=update.id.sequence)
        body = encode_update(renamed(self._last) if renamed else replace(update, id=self._last))
        self._sizes[self._last], self._in_memory[self._last] = len(body), body
        log.warning(
            "cannot write an update to the disk: it waits in memory, and is lost if this process ends",
            update=str(self._last),
            spool=str(self.folder),
            because=reason,
        )

    def _replace_residual(self, update: UpdateId, residual: Residual) -> None:
        """Let the residual of a newer update count, and remove the files that it does not need."""
        if self._residual and self._residual != update:
            _remove(self._path(self._residual, "residual"))
        self._residual = update
        needed = {*residual.in_flight, *(replace(update, sequence=each) for each in residual.absorbed)}
        for one in self.sent:
            if one not in needed:
                _remove(self._path(one, "sent"))
        self.sent = [one for one in self.sent if one in needed]

    def _finish(self, update: UpdateId, state: str = "update") -> None:
        """Remove an update from the disk; its name stays, so that its number is not used again."""
        self._sizes.pop(update, None)
        # Not synced: after a power cut, the update is sent again and refused as a duplicate.
        if self._in_memory.pop(update, None) is None and self._rename(update, state, "done"):
            self._mark(self._path(update, "done"))

    def _mark(self, done: Path) -> None:
        """Let this file be the one that names the last update that was confirmed or dropped."""
        if self._done:
            _remove(self._done)
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

    def _rename(self, update: UpdateId, old: str, new: str) -> bool:
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

    def _path(self, update: UpdateId, state: str) -> Path:
        return self.folder / f"{update.sequence:012d}-{update.run}.{state}"


def _remove(path: Path) -> None:
    """Remove a file if it exists and can be removed."""
    with suppress(OSError):
        path.unlink()
