"""What a process starts ends with it, however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from federation import wait_until

# A program that starts another, prints its number, and sleeps.
STARTER = """
import subprocess, sys, time
from fluffle import guard
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
guard.watch(child.pid)
{then}
print(child.pid, *(each.pid for each in guard._guards.values()), flush=True)
time.sleep({sleep_s})
"""


def start(*, then: str = "", sleep_s: int = 600) -> subprocess.Popen[str]:
    program = STARTER.format(then=then, sleep_s=sleep_s)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def started_by(starter: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the process that was started, and its guard."""
    assert starter.stdout is not None
    return [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def ignores(process: psutil.Process, number: signal.Signals) -> bool:
    """Tell whether Linux has noted that a process ignores a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name
)
def test_a_process_ends_with_the_one_that_started_it(number: signal.Signals) -> None:
    with start() as starter:
        child, its_guard = started_by(starter)

        starter.send_signal(number)

        wait_until(lambda: is_gone(child) and is_gone(its_guard), "the end of both", deadline_s=20)


def test_a_process_ends_when_the_one_that_started_it_returns_without_ending_it() -> None:
    with start(sleep_s=0) as starter:
        processes = started_by(starter)

        assert starter.wait(20) == 0
        wait_until(lambda: all(map(is_gone, processes)), "the end of both", deadline_s=20)


def test_a_released_process_keeps_running() -> None:
    with start(then="guard.release(child.pid)") as starter:
        [child] = started_by(starter)

        starter.kill()
        starter.wait()

        with pytest.raises(psutil.TimeoutExpired):
            child.wait(0.5)
        child.kill()


def test_the_guard_ignores_signals_and_still_ends_the_process() -> None:
    with start() as starter:
        child, its_guard = started_by(starter)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        wait_until(lambda: all(ignores(its_guard, each) for each in signals), "the start of the guard")

        for each in signals:
            its_guard.send_signal(each)
        starter.kill()

        wait_until(lambda: is_gone(child), "the end of what it watches", deadline_s=20)


def test_a_process_whose_guard_was_killed_can_still_be_released() -> None:
    with start(then="[each.kill() for each in guard._guards.values()]; guard.release(child.pid)") as starter:
        [child] = started_by(starter)

        assert not is_gone(child)
        starter.kill()
        child.kill()
