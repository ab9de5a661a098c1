"""Ends what this process has started when this process is gone, however it ended: by SIGKILL too.

A guard is a small process of its own that reads a pipe whose other end this process alone holds. When this
process ends, the kernel closes that end, and the guard kills what it watches. It works with every kind of
end, with threads, and on every Unix. The file is also the guard's program, and so imports nothing but the
standard library.
"""

import atexit
import errno
import fcntl
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """One process to end; with it its group if it leads one.

    `lock_file` is one that the process holds locked as long as it lives, so that no other process with the
    same number is ever killed. `epmd_port` is where the port mapper of a RabbitMQ node listens, which is
    ended too.
    """

    pid: int
    lock_file: str = ""
    epmd_port: int = 0


@dataclass(slots=True)
class Guard:
    """The guard process, and what it watches."""

    _process: subprocess.Popen[bytes]
    _watched: set[int] = field(default_factory=set)

    @classmethod
    def start(cls) -> "Guard":
        """Start the guard, and wait until it heeds no signal but SIGKILL."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        if process.stdout is not None:
            process.stdout.read(1)
            process.stdout.close()
        return cls(process)

    def watch(self, watched: Watched) -> None:
        """End this process when the caller's process is gone."""
        self._watched.add(watched.pid)
        self._tell(f"watch\t{watched.pid}\t{watched.lock_file}\t{watched.epmd_port}\n")

    def release(self, pid: int) -> None:
        """Leave this process alone from now on: it has ended, or may outlive the caller's process."""
        if pid in self._watched:
            self._watched.discard(pid)
            self._tell(f"release\t{pid}\n")

    def close(self) -> None:
        """End what is still watched, then the guard itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                # At once, and so in one piece: several threads may start and stop processes.
                pipe.write(line.encode())
        except BrokenPipeError:
            log.warning(
                "the process that ends the broker and the parts when this one is killed has ended itself; "
                "they stay if this one is killed"
            )


@functools.cache
def guard() -> Guard:
    """Return the one guard of this process; the first call starts it."""
    started = Guard.start()
    atexit.register(started.close)
    return started


def watch_until_the_end(lines: Iterable[bytes]) -> None:
    """Take in which processes to watch, one line each; at the end of the lines, end those that are left."""
    watched: dict[int, Watched] = {}
    for line in lines:
        word, pid, *more = os.fsdecode(line).rstrip("\n").split("\t")
        if word == "watch":
            watched[int(pid)] = Watched(int(pid), more[0], int(more[1]))
        else:
            watched.pop(int(pid), None)
    for each in watched.values():
        kill(each)
    # A port mapper refuses to end while a node lives that uses it.
    deadline = time.monotonic() + PATIENCE_S
    for port in {each.epmd_port for each in watched.values() if each.epmd_port}:
        while not stop_port_mapper(port) and time.monotonic() < deadline:
            time.sleep(0.05)


def kill(watched: Watched) -> None:
    """Kill a process, with its group if it leads one."""
    if watched.lock_file and not is_locked(Path(watched.lock_file)):
        return
    with suppress(ProcessLookupError):
        if os.getpgid(watched.pid) == watched.pid:
            os.killpg(watched.pid, signal.SIGKILL)
        else:
            os.kill(watched.pid, signal.SIGKILL)


def is_locked(path: Path) -> bool:
    """Tell whether some process holds a lock on this file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def stop_port_mapper(port: int) -> bool:
    """Ask a node's own epmd to end; True when it is gone. It refuses while a node is registered with it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as epmd:
            epmd.sendall(b"\x00\x01k")
            epmd.recv(2)
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"!")
    os.close(1)
    watch_until_the_end(sys.stdin.buffer)
