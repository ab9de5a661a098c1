"""What an evaluator writes for TensorBoard of each version that it has evaluated."""

from __future__ import annotations

from pathlib import Path

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.record import Evaluation, ModelVersion
from fluffle_worker.event_file import EventFile

log = get_logger(__name__)

# Each has a file that stays open. The others are in the sums, and on every other page.
MOST_WORKERS = 64


class Curves:
    """A folder with the federation's curves, and in `workers/NAME` those of each worker."""

    def __init__(self, folder: Path) -> None:
        """Begin new files in a folder, beside those that are there; ConfigError when it cannot be written."""
        self._folder = folder
        try:
            self._federation = EventFile(folder)
        except OSError as error:
            raise ConfigError(f"--tensorboard {folder} cannot be written: {error.strerror}") from error
        self._workers: dict[str, EventFile] = {}
        self._staleness_sum = self._updates = 0

    def note(self, version: ModelVersion, evaluation: Evaluation) -> None:
        """Write down an evaluated version; a disk that takes nothing is logged, and stops nobody."""
        try:
            self._note_federation(version, evaluation)
            self._note_workers(version)
        except OSError as error:
            log.warning(
                "nothing was written for TensorBoard", folder=str(self._folder), because=error.strerror
            )

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
            # Also of the versions in between, which this evaluator has not read.
            late = (staleness_sum - self._staleness_sum) / (version.updates - self._updates)
            scalars["staleness/mean since the last evaluation"] = late
        self._staleness_sum, self._updates = staleness_sum, version.updates
        self._federation.add(
            version.version,
            at=version.committed_at,
            scalars=scalars,
            histograms={
                "staleness/of this version": [one.staleness for one in version.folded],
                "weights/of this version": [one.weight for one in version.folded],
                "norms/of the last updates": version.norms,
            },
        )

    def _note_workers(self, version: ModelVersion) -> None:
        for name, one in sorted(version.contributors.items()):
            if name not in self._workers and len(self._workers) >= MOST_WORKERS:
                continue
            if name not in self._workers:
                self._workers[name] = EventFile(self._folder / "workers" / name)
                if len(self._workers) == MOST_WORKERS:
                    log.warning(
                        "no more workers have curves of their own in TensorBoard", workers=MOST_WORKERS
                    )
            scalars = {
                "worker/updates": one.updates,
                "worker/mean staleness": one.mean_staleness,
                "worker/rejected": one.rejected,
            }
            self._workers[name].add(version.version, at=version.committed_at, scalars=scalars)
