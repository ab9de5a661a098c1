"""Curves and histograms for TensorBoard of each version that an evaluator has evaluated."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import make_histogram

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.record import Evaluation, ModelVersion

log = get_logger(__name__)

# Each worker with its own curves has a file that stays open. The sums contain all workers.
MAX_WORKERS = 64
BINS = 30
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Curves:
    """A folder with the federation's curves, and in `workers/NAME` those of each worker."""

    def __init__(self, folder: Path) -> None:
        """Begin new files in a folder, beside earlier ones; ConfigError when it cannot be written."""
        self._folder = folder
        try:
            self._federation = EventFile(folder)
        except OSError as error:
            raise ConfigError(f"--tensorboard {folder} cannot be written: {error.strerror}") from error
        self._workers: dict[str, EventFile] = {}
        self._staleness_sum = self._updates = 0

    def note(self, version: ModelVersion, evaluation: Evaluation) -> None:
        """Write the numbers of an evaluated version; a write error is logged only."""
        try:
            self._note_federation(version, evaluation)
            self._note_workers(version)
        except OSError as error:
            log.warning("cannot write for TensorBoard", folder=str(self._folder), because=error.strerror)

    def close(self) -> None:
        """Close the files."""
        for each in [self._federation, *self._workers.values()]:
            each.close()

    def _note_federation(self, version: ModelVersion, evaluation: Evaluation) -> None:
        scalars = {f"metrics/{name}": value for name, value in evaluation.metrics.items()}
        scalars |= {
            "federation/updates": version.updates,
            "federation/rejected": version.rejected,
            "federation/term": version.term,
            "federation/seconds to commit": version.elapsed_s,
            "federation/seconds to evaluate": evaluation.evaluate_s,
        }
        staleness_sum = sum(one.staleness_sum for one in version.contributors.values())
        if version.updates > self._updates:
            # Includes the versions in between, which this evaluator has not read.
            mean = (staleness_sum - self._staleness_sum) / (version.updates - self._updates)
            scalars["staleness/mean since the last evaluation"] = mean
        self._staleness_sum, self._updates = staleness_sum, version.updates
        histograms: dict[str, Sequence[float]] = {
            "staleness/of this version": [one.staleness for one in version.folded],
            "weights/of this version": [one.weight for one in version.folded],
            "norms/of the last updates": version.norms,
        }
        self._federation.add(version, scalars, histograms)

    def _note_workers(self, version: ModelVersion) -> None:
        for name, one in sorted(version.contributors.items()):
            if name not in self._workers:
                if len(self._workers) >= MAX_WORKERS:
                    continue
                self._workers[name] = EventFile(self._folder / "workers" / name)
                if len(self._workers) == MAX_WORKERS:
                    log.warning("TensorBoard gets curves of some workers only", workers=MAX_WORKERS)
            scalars = {
                "worker/updates": one.updates,
                "worker/mean staleness": one.mean_staleness,
                "worker/rejected": one.rejected,
            }
            self._workers[name].add(version, scalars)


class EventFile:
    """One file in a folder, which is one curve in each of TensorBoard's charts.

    tensorboardX's own writer works in a thread, where an error of the disk is lost; here OSError is raised.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(
        self,
        version: ModelVersion,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Sequence[float]] = {},
    ) -> None:
        """Write values of one version by their tags, except empty histograms and numbers beyond float32."""
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if abs(value) <= LARGEST_FLOAT32
        ]
        for tag, numbers in histograms.items():
            if numbers:
                array = np.asarray(numbers, np.float64)
                # numpy's own bins of equal values would reach beyond them, and with them TensorBoard's axis.
                bins = BINS if array.min() < array.max() else [array[0]] * 2
                values.append(Summary.Value(tag=tag, histo=make_histogram(array, bins)))
        event = Event(wall_time=version.committed_at, step=version.version, summary=Summary(value=values))
        self._write(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.SerializeToString())
        # TensorBoard may be reading the file now.
        self._file.flush()
