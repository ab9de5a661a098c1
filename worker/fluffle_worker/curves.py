"""Curves and histograms for TensorBoard of each version that an evaluator has evaluated."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
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
    """A folder with the federation's curves, and in `workers/NAME` those of each worker.

    tensorboardX's SummaryWriter writes in a thread, where an error of the disk is lost: it is not used.
    """

    def __init__(self, folder: Path) -> None:
        """Begin new files in a folder, beside earlier ones; ConfigError when it cannot be written."""
        self._folder = folder
        self._files: dict[Path, EventsWriter] = {}
        self._staleness_sum = self._updates = 0
        try:
            self._file_in(folder)
        except OSError as error:
            raise ConfigError(f"--tensorboard {folder} cannot be written: {error.strerror}") from error

    def note(self, version: ModelVersion, evaluation: Evaluation | None) -> None:
        """Write the numbers of a version, evaluated or not; a write error is logged only."""
        try:
            self._note_federation(version, evaluation)
            self._note_workers(version)
        except OSError as error:
            log.warning("cannot write for TensorBoard", folder=str(self._folder), because=error.strerror)

    def close(self) -> None:
        """Close the files."""
        for each in self._files.values():
            each.close()

    def _note_federation(self, version: ModelVersion, evaluation: Evaluation | None) -> None:
        scalars: dict[str, float] = {}
        if evaluation:
            scalars = {f"metrics/{name}": value for name, value in evaluation.metrics.items()}
            scalars["federation/seconds to evaluate"] = evaluation.evaluate_s
        if version.site_evaluation:
            # Of a version before this one, as far as it is known here.
            over = version.site_evaluation.metrics
            scalars |= {name.replace(".", "/", 1): value for name, value in over.items()}
        scalars |= {
            "federation/updates": version.updates,
            "federation/rejected": version.rejected,
            "federation/term": version.term,
            "federation/seconds to commit": version.elapsed_s,
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
        self._add(self._folder, version, scalars, histograms)

    def _note_workers(self, version: ModelVersion) -> None:
        for name, one in sorted(version.contributors.items()):
            folder = self._folder / "workers" / name
            if folder not in self._files and len(self._files) == MAX_WORKERS:
                log.warning("TensorBoard gets curves of some workers only", workers=MAX_WORKERS)
            if folder in self._files or len(self._files) <= MAX_WORKERS:
                scalars = {
                    "worker/updates": one.updates,
                    "worker/mean staleness": one.mean_staleness,
                    "worker/rejected": one.rejected,
                }
                if site := version.sites.get(name):
                    scalars |= {f"site/{each.name}": each.value for each in site.metrics if each.count}
                    scalars["site/version"] = site.version
                self._add(folder, version, scalars)

    def _file_in(self, folder: Path) -> EventsWriter:
        if folder not in self._files:
            folder.mkdir(parents=True, exist_ok=True)
            # With the process: a file of another one may have begun in the same second.
            self._files[folder] = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        return self._files[folder]

    def _add(
        self,
        folder: Path,
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
        file = self._file_in(folder)
        file.write_event(
            Event(wall_time=version.committed_at, step=version.version, summary=Summary(value=values))
        )
        # TensorBoard may be reading the file now.
        file.flush()
