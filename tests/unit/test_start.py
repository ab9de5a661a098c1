"""How `fluffle` starts: Ctrl-C while it still imports, and parts that import no more than they need."""

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from federation import wait_until

A_SLOW_MODULE = """
import pathlib, time
pathlib.Path({begun!r}).touch()
try:
    time.sleep(60)
except BaseException as error:
    raise ImportError("a module that takes any exception for its own failure") from error
"""


@pytest.mark.parametrize("module", ["typer", "pydantic"])
def test_ctrl_c_during_the_imports_is_one_line_and_exit_code_130(module: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / f"{module}.py").write_text(A_SLOW_MODULE.format(begun=str(begun)))
    (script,) = entry_points(group="console_scripts", name="fluffle")
    program = f"from {script.module} import {script.attr}; {script.attr}()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "status"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as fluffle:
        wait_until(begun.exists, "the imports", deadline_s=30)

        fluffle.send_signal(signal.SIGINT)
        out, said = fluffle.communicate(timeout=30)

    assert (fluffle.returncode, out, said) == (130, "", "interrupted\n")


@pytest.mark.parametrize("part", ["aggregator", "worker", "evaluator"])
def test_a_part_starts_without_the_modules_of_the_other_commands(part: str) -> None:
    program = (
        "import atexit, sys\n"
        "from fluffle_cli.start import run\n"
        "atexit.register(lambda: print('fluffle_cli.main' in sys.modules))\n"
        "run()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, part, "--help"], capture_output=True, text=True, check=True
    )

    assert f"Usage: fluffle {part} [OPTIONS]" in done.stdout
    assert done.stdout.endswith("\nFalse\n")
