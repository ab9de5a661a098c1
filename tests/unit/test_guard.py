"""What a process has started ends with it, however it ends."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from federation import wait_until

from fluffle_cli.guard import Guard, Watched, guard, is_locked, kill

# A program that starts another, says its number, and sleeps.
STARTER = """
import subprocess, sys, time
from fluffle_cli.guard import Watched, guard
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session={new_session}
)
guard().watch(Watched(child.pid))
{then}
print(child.pid, guard()._process.pid, flush=True)
time.sleep({sleep_s})
"""


def start(*, new_session: bool = True, then: str = "", sleep_s: int = 600) -> subprocess.Popen[str]:
    program = STARTER.format(new_session=new_session, then=then, sleep_s=sleep_s)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def started_by(starter: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the process that was started, and the guard."""
    assert starter.stdout is not None
    return [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("new_session", [True, False], ids=["leads a group", "is in the starter's group"])
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name
)
def test_a_process_ends_with_the_one_that_started_it(number: signal.Signals, new_session: bool) -> None:
    with start(new_session=new_session) as starter:
        child, its_guard = started_by(starter)

        starter.send_signal(number)

        wait_until(lambda: is_gone(child) and is_gone(its_guard), "the end of both", deadline_s=20)


def test_a_process_ends_when_the_one_that_started_it_returns_without_ending_it() -> None:
    with start(sleep_s=0) as starter:
        processes = started_by(starter)

        assert starter.wait(20) == 0
        wait_until(lambda: all(map(is_gone, processes)), "the end of both", deadline_s=20)


def test_a_released_process_keeps_running() -> None:
    with start(then="guard().release(child.pid)") as starter:
        child, its_guard = started_by(starter)

        starter.kill()

        wait_until(lambda: is_gone(its_guard), "the end of the guard", deadline_s=20)
        assert not is_gone(child)
        child.kill()


def test_the_guard_ignores_signals_and_still_ends_the_process() -> None:
    with start() as starter:
        child, its_guard = started_by(starter)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            its_guard.send_signal(number)
        starter.kill()

        wait_until(lambda: is_gone(child), "the end of what it watches", deadline_s=20)


def test_a_process_is_left_alone_when_another_one_has_its_number(tmp_path: Path) -> None:
    lock = tmp_path / "node.lock"
    lock.touch()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        assert not is_locked(lock)

        kill(Watched(other.pid, lock_file=str(lock)))

        assert other.poll() is None
        other.kill()


def test_a_warning_is_logged_when_the_guard_was_killed(caplog: pytest.LogCaptureFixture) -> None:
    own = Guard.start()
    own._process.kill()
    own._process.wait()

    own.watch(Watched(os.getpid()))

    assert "they keep running" in caplog.text
    own.close()


def test_threads_that_start_processes_at_once_share_one_guard() -> None:
    with ThreadPoolExecutor(8) as pool:
        guards = list(pool.map(lambda _: guard(), range(8)))

    assert {each._process.pid for each in guards} == {guard()._process.pid}
