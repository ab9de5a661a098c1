"""Version 0: from a file, or from the task's seeded weights, which a child process builds.

The child is what loads TensorFlow; the aggregator itself never does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fluffle.errors import TaskError
from fluffle.logs import get_logger
from fluffle.record import ModelVersion, Rank
from fluffle.safetensors_file import read_model_file
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies import Strategy

log = get_logger(__name__)

CHILD_TIMEOUT_S = 600.0


def first_version(settings: AggregatorSettings, strategy: Strategy) -> ModelVersion:
    """Return version 0 of a new federation.

    Raises TaskError when the task cannot be built, and ConfigError when the file cannot be read.
    """
    if settings.initial_model and settings.initial_model.suffix == ".safetensors":
        file = read_model_file(settings.initial_model)
    else:
        with tempfile.TemporaryDirectory(prefix="fluffle-") as folder:
            path = Path(folder) / "initial.safetensors"
            _build(settings, path)
            file = read_model_file(path)
    flat = file.layout.flatten(file.weights)
    return ModelVersion(
        federation=settings.federation,
        term=1,
        version=0,
        parent="",
        terms=(Rank(1, 0),),
        layout=file.layout,
        plan=settings.make_plan(strategy),
        strategy=str(strategy),
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
        committed_at=time.time(),
    )


def _build(settings: AggregatorSettings, path: Path) -> None:
    command = [sys.executable, "-m", "fluffle.initial_model", "--task", settings.task]
    command += ["--seed", str(settings.seed), "--out", str(path)]
    if settings.initial_model:
        command += ["--from", str(settings.initial_model)]
    log.info("building version 0", task=settings.task, seed=settings.seed)
    # The command is made here of this interpreter and of settings, and no shell reads it.
    child = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    if child.returncode != 0:
        said = child.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise TaskError(
            f"version 0 cannot be built from the task {settings.task!r}: {said[0].removeprefix('error: ')}. "
            f"Where there is no TensorFlow, build it elsewhere with `fluffle model init` and pass the file "
            f"as --initial-model"
        )
