"""Files of events as TensorBoard reads them, without TensorBoard and TensorFlow."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import HistogramProto, Summary
from tensorboardX.record_writer import RecordWriter

VERSION: Final = "brain.Event:2"
BINS: Final = 30
LARGEST_FLOAT32: Final = float(np.finfo(np.float32).max)


class EventFile:
    """One file in a folder, which is one curve in each of TensorBoard's charts."""

    def __init__(self, folder: Path) -> None:
        """Begin a new file. Raises OSError when it cannot be written, as the others do."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._write(Event(wall_time=time.time(), file_version=VERSION))

    def add(
        self,
        step: int,
        *,
        at: float,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Write the values of one step by their tags; `at` is Unix time in seconds.

        A histogram of nothing, and a number that float32 does not hold, are left out.
        """
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if abs(value) <= LARGEST_FLOAT32
        ]
        values += [
            Summary.Value(tag=tag, histo=histogram(numbers))
            for tag, numbers in (histograms or {}).items()
            if len(numbers)
        ]
        self._write(Event(wall_time=at, step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.SerializeToString())
        # Whoever looks sees each event at once.
        self._file.flush()


def histogram(values: Sequence[float]) -> HistogramProto:
    """Return a histogram of finite values, of which there is at least one."""
    numbers = np.asarray(values, np.float64)
    # Of equal values numpy would make bins beyond the smallest and the largest: the ends for TensorBoard.
    counts, edges = np.histogram(numbers, BINS if numbers.min() < numbers.max() else [numbers[0]] * 2)
    return HistogramProto(
        min=numbers.min(),
        max=numbers.max(),
        num=numbers.size,
        sum=numbers.sum(),
        sum_squares=np.square(numbers).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
