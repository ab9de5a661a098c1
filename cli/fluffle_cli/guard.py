"""Ends the processes that this process has started when this process ends, even if it is killed by SIGKILL.

The guard is a small process that reads a pipe whose other end only this process holds. When this process
ends, the kernel closes that end, and the guard kills the processes that it watches. This file is also the
guard's program, so it imports nothing but the standard library.
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
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Watched:
    """One process to end, and its process group if it leads one.

    The process keeps `lock_file` locked while it lives, so that no other process with the same number is ever
    killed. `epmd_port` is the port of a RabbitMQ node's port mapper, which is ended too.
    """

    pid: int
    lock_file: str = ""
    epmd_port: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """The guard process."""

    _process: subprocess.Popen[bytes]

    @classmethod
    def start(cls) -> "Guard":
        """Start the guard, and wait until it ignores every signal but SIGKILL."""
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
        """End this process when the caller's process has ended."""
        self._tell(f"watch\t{watched.pid}\t{watched.lock_file}\t{watched.epmd_port}\n")

    def release(self, pid: int) -> None:
        """Stop watching a process: it has ended, or may outlive the caller's process."""
        self._tell(f"release\t{pid}\n")

    def close(self) -> None:
        """End the processes that are still watched, then the guard itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                # Unbuffered, and so in one piece: several threads may start and stop processes.
                pipe.write(line.encode())
        except BrokenPipeError:
            log.warning(
                "the process that ends the broker and the parts when this process is killed has ended: if "
                "this process is killed now, they keep running"
            )


def guard() -> Guard:
    """Return this process's only guard; the first call starts it."""
    # Or threads that start the nodes of a cluster would each get a guard of their own.
    with _one_at_a_time:
        return _started_guard()


@functools.cache
def _started_guard() -> Guard:
    started = Guard.start()
    atexit.register(started.close)
    return started


def watch_until_the_end(lines: Iterable[bytes]) -> None:
    """Read which processes to watch, one per line; after the last line, kill those that are still watched."""
    watched: dict[int, Watched] = {}
    for line in lines:
        word, pid, *more = os.fsdecode(line).rstrip("\n").split("\t")
        if word == "watch":
            watched[int(pid)] = Watched(int(pid), more[0], int(more[1]))
        else:
            watched.pop(int(pid), None)
    for each in watched.values():
        kill(each)
    # A port mapper refuses to end while a node uses it.
    deadline = time.monotonic() + PATIENCE_S
    for port in {each.epmd_port for each in watched.values() if each.epmd_port}:
        while not stop_port_mapper(port) and time.monotonic() < deadline:
            time.sleep(0.05)


def kill(watched: Watched) -> None:
    """Kill a process, and its process group if it leads one."""
    if watched.lock_file and not is_locked(Path(watched.lock_file)):
        return
    with suppress(ProcessLookupError):
        if os.getpgid(watched.pid) == watched.pid:
            os.killpg(watched.pid, signal.SIGKILL)
        else:
            os.kill(watched.pid, signal.SIGKILL)


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock on this file."""
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
    """Ask a node's epmd to end; True if it has ended. It refuses while a node is registered with it."""
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
