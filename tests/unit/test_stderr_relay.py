"""What libraries write past the log: whole JSON lines where the log is JSON, also of a crash."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.stderr_relay import level_of

ABSL = "I0000 00:00:1795784458.145411    9194 cudart_stub.cc:31] Could not find cuda drivers on your machine"
TSL = "2026-11-27 12:34:48.511410: E external/xla/cuda_platform.cc:51] failed call to cuInit: UNKNOWN ERROR"
FATAL = "F0000 00:00:1795784458.145411    9194 tensor.cc:705] Check failed: dtype() == expected (1 vs. 2)"

A_PART = """
import logging, os, sys, threading
from fluffle.command_line import run_program, settings_command
from fluffle.settings import SharedSettings

class PartSettings(SharedSettings):
    part = "worker"
    is_service = True

def run(settings):
    logging.getLogger("fluffle").info("working")
    {body}

run_program("part", settings_command(PartSettings, run, about="Do it."))
"""


def run_part(body: str, *flags: str, log_format: str = "auto") -> subprocess.CompletedProcess[str]:
    program = A_PART.format(body=body)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUFFLE_")}
    return subprocess.run(
        [sys.executable, "-c", program, *flags],
        env=environment | {"FLUFFLE_LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """Every line of stderr, which must be one JSON object."""
    parsed = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(isinstance(line, dict) for line in parsed)
    assert all({"time", "level", "part", "event", "logger"} <= line.keys() for line in parsed), done.stderr
    return parsed


def events_of(done: subprocess.CompletedProcess[str]) -> list[object]:
    return [line["event"] for line in lines_of(done)]


def test_what_a_library_writes_to_descriptor_2_is_one_json_object_a_line() -> None:
    done = run_part(
        r"os.write(2, b'one\ntwo \xff\n'); os.system('echo from a child >&2'); os.write(2, b'no end')"
    )

    lines = lines_of(done)
    by_library = [line for line in lines if line["logger"] == "stderr"]
    assert [line["event"] for line in by_library] == ["one", "two �", "from a child", "no end"]
    assert {(line["level"], line["part"], line["federation"]) for line in by_library} == {
        ("info", "worker", "digits")
    }
    assert "working" in [line["event"] for line in lines]


def test_what_python_code_prints_to_stderr_is_json_too_and_a_json_line_stays_what_it_is() -> None:
    done = run_part(
        """print("printed", file=sys.stderr)
    print('{"event": "of a child", "level": "info", "time": "", "part": "p", "logger": "l"}', file=sys.stderr)
    import warnings; warnings.warn("mind that")"""
    )

    lines = lines_of(done)
    assert [line["event"] for line in lines if line["event"] in ("printed", "of a child")] == [
        "printed",
        "of a child",
    ]
    assert [line["level"] for line in lines if "mind that" in str(line["event"])] == ["warning"]


@pytest.mark.parametrize("bytes_", [100_000, 5_000])
def test_a_long_line_becomes_several_and_none_is_torn_by_another_writer(bytes_: int) -> None:
    body = f"""say = lambda: os.write(2, b"x" * {bytes_} + b"\\n")
    threads = [threading.Thread(target=say) for _ in range(4)]
    [thread.start() for thread in threads]
    [logging.getLogger("fluffle").info("line") for _ in range(500)]
    [thread.join() for thread in threads]"""

    events = events_of(run_part(body))

    assert events.count("line") == 500
    assert sum(str(event).count("x") for event in events if set(str(event)) == {"x"}) == 4 * bytes_


def test_the_last_words_of_a_crash_are_still_passed_on() -> None:
    aborted = run_part("os.write(2, b'free(): invalid pointer'); os.abort()")
    segfault = run_part("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()")

    assert aborted.returncode == -signal.SIGABRT
    assert "free(): invalid pointer" in events_of(aborted)
    assert segfault.returncode == -signal.SIGSEGV
    assert any("Segmentation fault" in str(event) for event in events_of(segfault))


def test_a_refusal_an_interrupt_and_a_bug_end_a_part_with_one_json_line() -> None:
    refused = run_part("from fluffle.errors import ConfigError; raise ConfigError('no such thing')")
    interrupted = run_part("raise KeyboardInterrupt")
    bug = run_part("1 / 0")
    wrong = run_part("pass", "--heartbeat-s", "0")

    assert (refused.returncode, lines_of(refused)[-1]["event"]) == (2, "no such thing")
    assert lines_of(refused)[-1]["level"] == "error"
    assert (interrupted.returncode, lines_of(interrupted)[-1]["event"]) == (130, "interrupted")
    assert bug.returncode == 1
    last = lines_of(bug)[-1]
    assert (last["level"], last["error"]) == ("critical", "ZeroDivisionError: division by zero")
    assert "in run" in str(last["exception"])
    assert (wrong.returncode, len(lines_of(wrong))) == (2, 1)
    assert "--heartbeat-s must be greater than or equal to 1" in str(lines_of(wrong)[0]["event"])


def test_a_thread_that_dies_is_one_json_line() -> None:
    done = run_part(
        "thread = threading.Thread(target=lambda: 1 / 0, name='t'); thread.start(); thread.join()"
    )

    last = lines_of(done)[-1]
    assert (last["event"], last["thread"]) == ("a thread was stopped by an error", "t")
    assert "ZeroDivisionError" in str(last["exception"])


def test_a_log_for_people_shows_what_a_library_writes_as_it_is() -> None:
    done = run_part("os.write(2, b'one\\n'); raise KeyError('a bug')", log_format="pretty")

    assert "one" in done.stderr.splitlines()
    assert "{" not in done.stderr
    assert done.stderr.endswith("KeyError: 'a bug'\n")
    assert done.returncode == 1


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_what_only_the_developers_of_a_library_read_is_shown_when_verbose(log_format: str) -> None:
    body = (
        f"os.write(2, {ABSL.encode()!r} + b'\\n' + {TSL.encode()!r} + b'\\n' + {FATAL.encode()!r} + b'\\n')"
    )

    quiet, verbose = run_part(body, log_format=log_format), run_part(body, "-v", log_format=log_format)

    assert "cuda" not in quiet.stderr
    assert "Check failed" in quiet.stderr
    assert all(word in verbose.stderr for word in ("Could not find cuda drivers", "cuInit", "Check failed"))


def test_lines_are_judged_by_what_the_library_thinks_of_them() -> None:
    out_of_memory = "E0000 00:00:1.5 7 bfc_allocator.cc:31] ran out of memory trying to allocate 2.00GiB"

    levels = [level_of(line) for line in (ABSL, TSL, FATAL, out_of_memory, "Killed", "")]

    assert levels == ["debug", "debug", "error", "warning", "info", "info"]


@given(st.text())
def test_any_line_has_a_level(line: str) -> None:
    assert level_of(line) in ("debug", "info", "warning", "error")


def test_a_part_runs_on_a_read_only_folder_as_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd").chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", A_PART.format(body="os.write(2, b'from C')")],
        cwd=tmp_path / "cwd",
        env={"PATH": os.environ["PATH"], "FLUFFLE_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "from C" in events_of(done)
