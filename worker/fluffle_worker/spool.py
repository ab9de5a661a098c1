"""Finished updates that are not confirmed yet, in a folder on disk: what the worker has learnt is not lost.

The names of the files are the spool's memory, so that even on a full disk a confirm can be noted:

    000000000007-RUN.update   update 7 of a run waits: the message as it is published, then a digest
    000000000006-RUN.done     the last one that was confirmed, or dropped; empty
    000000000005-RUN.damaged  one that could not be read any more, set aside
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

import xxhash

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.update import Applied, UpdateId, WeightUpdate
from fluffle.wire import encode_update

log = get_logger(__name__)

DIGEST_BYTES = 16

State = Literal["update", "done", "damaged", "part"]
_NAME = re.compile(r"(?P<sequence>[0-9]{12})-(?P<run>[0-9a-f]{16})\.(?P<state>update|done|damaged)")


class Damaged(Exception):
    """A file of the spool does not hold what was written."""


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
        for path in sorted(folder.iterdir()):
            self._recall(path)

    @property
    def waiting(self) -> int:
        """The number of updates that are not confirmed."""
        return len(self._waiting)

    @property
    def next_id(self) -> UpdateId:
        """The id of the next update."""
        return replace(self._last, sequence=self._last.sequence + 1)

    def add(self, update: WeightUpdate) -> None:
        """Keep an update whose id is `next_id` until it is confirmed: it is on disk when this returns.

        The oldest ones are dropped for which there is no room. When the disk takes nothing, the update waits
        in memory, under the id of a fresh run: an id that is not on disk could be given twice.
        """
        body = encode_update(update)
        self._make_room(len(body))
        try:
            _write(self._path(update.id, "update"), body)
        except OSError as error:
            self._keep_in_memory(update, error)
            return
        self._run_is_known = True
        self._last = update.id
        self._waiting.append(Waiting(update.id, len(body)))

    def oldest(self) -> tuple[UpdateId, bytes] | None:
        """Return the id and the message of the oldest update; damaged ones are set aside."""
        while self._waiting:
            first = self._waiting[0]
            try:
                return first.id, self._read(first)
            except (Damaged, OSError) as error:
                self._set_aside(first, str(error))
        return None

    def confirm(self) -> None:
        """Take note that the broker has the oldest update."""
        self._leave(self._waiting.popleft())

    def clear(self) -> int:
        """Drop all that waits, and return how many that were."""
        dropped = len(self._waiting)
        while self._waiting:
            self._leave(self._waiting.popleft())
        return dropped

    def compare(self, applied: Applied) -> None:
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
        self._last = replace(self._last, run=secrets.token_hex(8))
        self._run_is_known = False

    def _recall(self, path: Path) -> None:
        """Learn from the name of a file what was before this process; they come in their order."""
        if path.suffix == ".part":
            _remove(path)
        name = _NAME.fullmatch(path.name)
        if name is None:
            return
        self._last = UpdateId(self._worker, name["run"], int(name["sequence"]))
        self._run_is_known = True
        if name["state"] == "update":
            self._waiting.append(Waiting(self._last, max(0, path.stat().st_size - DIGEST_BYTES)))
        elif name["state"] == "done":
            self._mark(path)

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
        _remove(self._path(update.id, "part"))
        _remove(self._path(update.id, "update"))
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

    def _leave(self, one: Waiting) -> None:
        """Let an update leave the spool; its name stays, so that its number is not given again."""
        if one.body is not None:
            return
        done = self._path(one.id, "done")
        try:
            # Not waited for: after a power cut, the update is sent again and refused as a duplicate.
            self._path(one.id, "update").replace(done)
            self._mark(done)
        except OSError as error:
            log.warning(
                "the spool cannot note that an update is done with, which will be sent once more",
                update=str(one.id),
                spool=str(self.folder),
                because=error.strerror,
            )

    def _mark(self, done: Path) -> None:
        """Let this file be the one that tells which update left last."""
        if self._done:
            _remove(self._done)
        self._done = done
        os.truncate(done, 0)

    def _read(self, one: Waiting) -> bytes:
        if one.body is not None:
            return one.body
        return _read(self._path(one.id, "update"))

    def _set_aside(self, first: Waiting, reason: str) -> None:
        self._waiting.popleft()
        path, aside = self._path(first.id, "update"), self._path(first.id, "damaged")
        with suppress(OSError):
            path.replace(aside)
        log.warning(
            "an update in the spool is damaged and set aside; the others go on. Check the disk, then delete "
            "the file, or put a good copy in its place under its old name (.update) while no worker runs",
            update=str(first.id),
            file=str(aside),
            because=reason,
        )

    def _path(self, update: UpdateId, state: State) -> Path:
        return self.folder / f"{update.sequence:012d}-{update.run}.{state}"


def _digest(name: str, body: bytes) -> bytes:
    """Return what tells a damaged, shortened or renamed file; against accidents, not against people."""
    running = xxhash.xxh3_128(name.encode())
    running.update(body)
    return running.digest()


def _write(path: Path, body: bytes) -> None:
    """Write a file that is there as a whole or not at all, even after a power cut."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(body)
        file.write(_digest(path.stem, body))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes:
    """Return the message that was written; Damaged when the file is not what it was."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        body = file.read(max(0, size_bytes))
        if size_bytes < 0 or file.read() != _digest(path.stem, body):
            raise Damaged(f"its {len(body)} bytes do not go with their digest")
    return body


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
