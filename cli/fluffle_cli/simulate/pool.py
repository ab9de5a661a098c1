"""Runs in a pool of processes, each of which computes in one thread.

A process plays some runs one after the other, as the import of a framework takes seconds. If it dies, it is
known which run it was playing: that run has failed, and another process goes on with the others.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from fluffle import logs
from fluffle.errors import FluffleError
from fluffle.free_memory import available_bytes
from fluffle.task_errors import in_one_line
from fluffle_cli.simulate.memory import Memory
from fluffle_cli.simulate.one_run import RunResult, line_of, play, share_done
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.view import Version

# Read by the libraries when they are imported.
ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
TOLD_EVERY_S: Final = 0.5
# A framework keeps some memory of each model that it has compiled until its process ends.
RUNS_PER_PROCESS: Final = 20
# Spawned and not forked: TensorFlow's threads do not survive a fork.
_CONTEXT: Final = get_context("spawn")
if TYPE_CHECKING:
    Pipe: TypeAlias = Connection[Any, Any]
else:
    # The types of what is sent and received are known to type checkers alone.
    Pipe = Connection


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: the place of its combination in the grid, its settings with the seed, and its folder."""

    place: int
    settings: SimulateSettings
    folder: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: a line for people, and the share of it that is over, from 0 to 1."""

    run: PlannedRun
    says: str
    share: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has come to its end, or has failed with an error, and the seconds that it took.

    `complaints` are sentences for what was not as it should be.
    """

    run: PlannedRun
    result: RunResult | None
    error: str
    took_s: float
    complaints: Sequence[str] = ()


@dataclass(slots=True)
class _Player:
    process: SpawnProcess
    pipe: Pipe
    run: PlannedRun
    began: float
    runs: int = 0

    @classmethod
    def start(cls, run: PlannedRun, memory: Memory, *, verbose: bool) -> "_Player":
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_play_runs, args=(theirs, memory, verbose), daemon=True)
        with _one_thread():
            process.start()
        # The end of the process is seen in ours, once nobody else has the other end.
        theirs.close()
        player = cls(process, ours, run, 0.0)
        player.give(run)
        return player

    def give(self, run: PlannedRun) -> None:
        self.run, self.began, self.runs = run, time.monotonic(), self.runs + 1
        # If the process has just died, that is seen when it is listened to.
        with suppress(BrokenPipeError):
            self.pipe.send(run)

    def hear(self) -> Progress | Ended:
        try:
            said: Progress | Ended = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            cause = _cause_of_death(self.process.exitcode)
            return Ended(self.run, None, cause, time.monotonic() - self.began)
        return said

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def play_all(
    runs: Sequence[PlannedRun], *, processes: int, verbose: bool = False
) -> Generator[Progress | Ended, None, None]:
    """Play runs, and tell how far each is and how it has ended, in the order in which that happens.

    Closing the generator ends all processes and the runs that they play.
    """
    # Before there are any: what the first runs have taken by then is not there for the others.
    memory = Memory(available_bytes(), runs=max(1, min(processes, len(runs))))
    waiting = deque(runs)
    players: list[_Player] = []
    try:
        while waiting or players:
            while waiting and len(players) < processes:
                players.append(_Player.start(waiting.popleft(), memory, verbose=verbose))
            ready = wait([each.pipe for each in players])
            for player in [each for each in players if each.pipe in ready]:
                told = player.hear()
                yield told
                if isinstance(told, Progress):
                    continue
                if waiting and player.runs < RUNS_PER_PROCESS and player.process.is_alive():
                    player.give(waiting.popleft())
                else:
                    player.stop()
                    players.remove(player)
    finally:
        for each in players:
            each.stop()


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as the system does when there is too little memory"
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}"
    return f"its process exited with code {code}"


def _play_runs(pipe: Pipe, memory: Memory, verbose: bool) -> None:
    """Play runs until there are no more: what a process of the pool does."""
    # Ctrl-C goes to all processes of a terminal; the one that has the results ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure("pretty", verbose=verbose, part="simulate")
    # The other end is closed when nobody wants the results any more.
    with suppress(EOFError, BrokenPipeError):
        while True:
            run: PlannedRun = pipe.recv()
            pipe.send(_played(run, pipe, memory))


def _played(run: PlannedRun, pipe: Pipe, memory: Memory) -> Ended:
    began = told_at = time.monotonic()

    def tell(version: Version) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > TOLD_EVERY_S:
            told_at = time.monotonic()
            pipe.send(Progress(run, line_of(version), share_done(version, run.settings)))

    result, error = None, ""
    complaints: Sequence[str] = ()
    try:
        played = play(run.settings, run.folder, tell, memory)
        # One of which nothing more would come is a result too: it has not held its target.
        result, complaints = played.result, played.complaints
    except BrokenPipeError:
        raise
    except FluffleError as problem:
        error = str(problem)
    except Exception as problem:  # a bug, or whatever a user's task raises: the other runs go on
        logs.get_logger(__name__).debug("a run has failed", exc_info=problem)
        error = in_one_line(problem)
    return Ended(run, result, error, time.monotonic() - began, complaints)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let a process that is started here compute in one thread, unless the user has said how many."""
    added = {name: value for name, value in ONE_THREAD.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
