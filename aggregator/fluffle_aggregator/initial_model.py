"""The model that an aggregator's settings name: version 0 of a new federation.

Of a federation that runs already its architecture must be the same.

It comes from a file, from a task object, or from a task that is named: then a child process builds it, so
that the aggregator itself never loads TensorFlow.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fluffle.checked_task import CheckedTask, TaskModel
from fluffle.data_source import DataSource, reading_from
from fluffle.errors import ConfigError, ConnectionLost, LayoutError, TaskError
from fluffle.logs import get_logger
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.privacy.plan import PrivacyState
from fluffle.record import ModelVersion, Rank
from fluffle.safetensors_file import ModelFile, read_layout, read_model_file
from fluffle.sealed.plan import SealedState
from fluffle.survey.messages import Survey
from fluffle.task import Task
from fluffle_aggregator.settings import AggregatorSettings

log = get_logger(__name__)

CHILD_TIMEOUT_S = 600.0
POLL_S = 0.1


class InitialModel:
    """Where the model of the settings comes from: nowhere, which is enough where a federation exists."""

    def read(self) -> ModelFile:
        """Return the model; ConfigError or TaskError when there is none."""
        raise ConfigError(
            "a new federation needs a model: give --task, whose seeded weights become version 0, or "
            "--initial-model FILE"
        )

    def compare(self, layout: Layout) -> None:
        """Begin to compare its architecture with the running federation's; may raise as `look` does."""

    def look(self) -> None:
        """Raise LayoutError, which names the difference, once it is known that the two differ."""


class ModelInFile(InitialModel):
    """A .safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_compared = False

    def read(self) -> ModelFile:
        """See InitialModel."""
        self._is_compared = True
        return read_model_file(self._path)

    def compare(self, layout: Layout) -> None:
        """See InitialModel."""
        if self._is_compared:
            return
        self._is_compared = True
        try:
            own = read_layout(self._path)
        except ConfigError as error:
            line = "the initial model is not compared with the federation's, which goes on"
            log.warning(line, because=str(error))
            return
        require_same(layout, own, f"--initial-model {self._path}")


class ModelOfTask(InitialModel):
    """A task object of this process, and a file that it can read, if one is given."""

    def __init__(self, task: Task, seed: int, path: Path | None) -> None:
        self._task, self._seed, self._path = CheckedTask(task), seed, path
        self._built: TaskModel | None = None

    def read(self) -> ModelFile:
        """See InitialModel."""
        built = self._build()
        return ModelFile(built.layout, built.weights)

    def compare(self, layout: Layout) -> None:
        """See InitialModel."""
        require_same(layout, self._build().layout, "the task")

    def _build(self) -> TaskModel:
        if self._built is None:
            self._built = self._task.load(self._path) if self._path else self._task.model(self._seed)
        return self._built


class ModelOfChild(InitialModel):
    """A child process builds a task that is named, and writes it into a folder of its own."""

    def __init__(
        self,
        task: str,
        seed: int,
        path: Path | None,
        folder: Path,
        stop: threading.Event,
        *,
        source: DataSource,
    ) -> None:
        self._path, self._said = folder / "initial.safetensors", folder / "stderr"
        self._command = [sys.executable, "-m", "fluffle.initial_model", "--task", task]
        self._command += ["--seed", str(seed), "--out", str(self._path)]
        given = {"from": path, "data": source.data, "label": source.label, "config": source.config}
        # In one word, so that no value looks like another flag.
        self._command += [f"--{name}={value}" for name, value in given.items() if value is not None]
        self._command += [] if source.surveyed else ["--without-survey"]
        self._task, self._seed, self._stop = task, seed, stop
        self._child: subprocess.Popen[bytes] | None = None
        self._to_compare: Layout | None = None

    def read(self) -> ModelFile:
        """See InitialModel; raises ConnectionLost when it is asked to stop meanwhile."""
        log.info("building version 0", task=self._task, seed=self._seed)
        child, deadline = self._start(), time.monotonic() + CHILD_TIMEOUT_S
        while child.poll() is None:
            if self._stop.wait(POLL_S):
                raise ConnectionLost("this process was asked to stop while version 0 was built")
            if time.monotonic() > deadline:
                raise TaskError(f"the task {self._task!r} did not build a model in {CHILD_TIMEOUT_S:.0f} s")
        if reason := self._failure(child):
            raise TaskError(
                f"version 0 cannot be built from the task {self._task!r}: {reason}. Where there is "
                "no TensorFlow, build it elsewhere with `fluffle model init` and pass the file as "
                "--initial-model"
            )
        return read_model_file(self._path)

    def compare(self, layout: Layout) -> None:
        """See InitialModel. Nobody waits for the child: what it finds comes with `look`."""
        if self._child is None:
            self._start()
            self._to_compare = layout

    def look(self) -> None:
        """See InitialModel."""
        if self._to_compare is None or self._child is None or self._child.poll() is None:
            return
        layout, self._to_compare = self._to_compare, None
        if reason := self._failure(self._child):
            line = "the task cannot be built: its architecture is not compared with the federation's"
            log.warning(line, task=self._task, because=reason)
            return
        require_same(layout, read_layout(self._path), f"--task {self._task}")

    def end(self) -> None:
        """End the child if it is still at work."""
        if self._child:
            self._child.kill()
            self._child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._said.open("wb") as said:
            # The command is made here of this interpreter and of settings, and no shell reads it.
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
        return self._child

    def _failure(self, child: subprocess.Popen[bytes]) -> str:
        if child.returncode == 0:
            return ""
        said = self._said.read_text(errors="replace").strip().splitlines()
        return (
            said[-1].removeprefix("error: ") if said else f"it ended with {child.returncode} and said nothing"
        )


@contextmanager
def initial_model(
    settings: AggregatorSettings, stop: threading.Event, task: Task | None = None
) -> Iterator[InitialModel]:
    """Give the model that the settings name, or that a task object builds."""
    path = settings.initial_model
    source = replace(settings.source("begin"), surveyed=settings.survey is not None)
    if (source.data or source.label) and (settings.task is None or (path and path.suffix == ".safetensors")):
        raise ConfigError(
            "--data and --label say of a task's model which columns it takes, and have no effect without "
            "--task, or with a .safetensors file, which says it itself: leave them out"
        )
    if path and path.suffix == ".safetensors":
        yield ModelInFile(path)
    elif task is not None:
        yield ModelOfTask(reading_from(task, source), settings.seed, path)
    elif settings.task is None:
        yield InitialModel()
    else:
        with tempfile.TemporaryDirectory(prefix="fluffle-") as folder:
            child = ModelOfChild(settings.task, settings.seed, path, Path(folder), stop, source=source)
            try:
                yield child
            finally:
                child.end()


def require_same(federations: Layout, own: Layout, whose: str) -> None:
    """Raise LayoutError, which says what to do, unless the two architectures are equal."""
    if difference := federations.difference(own):
        raise LayoutError(
            f"{whose} is of another architecture than the running federation: {difference}. Leave it "
            "out to go on with the federation's model, or choose another --federation to begin anew"
        )


def first_version(
    file: ModelFile,
    *,
    federation: str,
    plan: Plan,
    strategy: str,
    survey: Survey | None = None,
    privacy: PrivacyState | None = None,
) -> ModelVersion:
    """Return version 0 of a new federation."""
    flat = file.layout.flatten(file.weights)
    return ModelVersion(
        federation=federation,
        term=1,
        version=0,
        parent="",
        terms=(Rank(1, 0),),
        layout=file.layout,
        plan=plan,
        strategy=strategy,
        vector=flat.vector,
        statistics=flat.statistics,
        integers=flat.integers,
        committed_at=time.time(),
        survey=survey,
        privacy=privacy,
        sealed=SealedState() if plan.sealed else None,
    )
