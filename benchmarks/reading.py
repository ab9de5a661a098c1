"""How fast a worker reads 1 GB of Parquet from HDFS, and what memory that takes beside its arrays.

    python -m benchmarks.reading

Each side reads the same file from a private HDFS, in turns and in a new process each time: `pyarrow` alone
reads it into a table by hdfs-native and fsspec, `arrays` is `open_dataset(...).arrays()`, and `minibatches`
one pass over minibatches of 256 rows in a random order. `ratio` is pyarrow's time over that of the arrays;
to reach, 0.8. `above_mb` is the peak of the process above what it had before it read, and above the arrays
that it keeps; to reach, 300. Everything is on one machine, so a network would slow both sides. A process of
`pyarrow` is sometimes aborted after it has measured (apache/arrow#34314); that is no part of the result.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hdfs_native.fsspec import HdfsFileSystem
from pyarrow import fs

from benchmarks.measuring import OtherWork, Report, in_turns, wide_console
from benchmarks.verdicts import Verdict, exit_code
from fluffle.storage import write_to
from fluffle_worker.data import open_dataset
from harness.hdfs import Hdfs
from harness.process_memory import memory_bytes

COLUMNS = 63
COPY_BYTES = 8 << 20
# Rows in a row group, and how pages are compressed.
CASES = {
    "groups of 64 MB": (250_000, "snappy"),
    "groups of 256 MB": (1_000_000, "snappy"),
    "groups of 64 MB, zstd": (250_000, "zstd"),
}
RATIO, ABOVE_MB = 0.8, 300.0


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="reading", description="Measure reading from HDFS.")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--mb", type=int, default=1000)
    given = parser.parse_args()
    report = Report("reading", f"reading: {given.mb} MB of Parquet from HDFS")
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="fluffle-reading-") as folder, Hdfs.start(Path(folder)) as hdfs:
        for case in CASES:
            url = put_table(hdfs, Path(folder) / "table.parquet", case, given.mb)
            others = OtherWork()
            sides = {side: Side(partial(read, url)) for side, read in READINGS.items()}
            found = in_turns({name: side.seconds for name, side in sides.items()}, given.repeats)
            ratio = found["pyarrow"].over(found["arrays"])
            above = {name: side.above_mb for name, side in sides.items() if name != "pyarrow"}
            report.add(
                {
                    "case": case,
                    **{f"{name}_s": spread for name, spread in found.items()},
                    "ratio": ratio,
                    **{f"{name}_above_mb": round(peak) for name, peak in above.items()},
                },
                others=others.share,
            )
            verdicts += [
                Verdict(f"speed beside pyarrow, {case}", "at least", RATIO, ratio.median),
                Verdict(f"MB above the arrays, {case}", "at most", ABOVE_MB, above["arrays"]),
            ]
    console = wide_console()
    report.show(console)
    for verdict in verdicts:
        console.print(verdict.sentence)
    sys.exit(exit_code(verdicts))


class Side:
    """One way of reading, each time in a new process; `above_mb` is the highest peak so far."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self.above_mb = 0.0

    def seconds(self) -> float:
        """Read once."""
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds, above_mb = pool.submit(timed, self._read).result()
        self.above_mb = max(self.above_mb, above_mb)
        return seconds


def timed(read: Callable[[], int]) -> tuple[float, float]:
    """Return the seconds of a reading and its peak in MB above what it keeps, whose bytes it returns."""
    before = memory_bytes(os.getpid(), "VmHWM")
    began = time.perf_counter()
    kept = read()
    seconds = time.perf_counter() - began
    return seconds, (memory_bytes(os.getpid(), "VmHWM") - before - kept) / 1e6


def by_pyarrow(url: str) -> int:
    """Read a file as pyarrow does with fsspec's filesystem for HDFS, and return the bytes of the table."""
    host, _, rest = url.removeprefix("hdfs://").partition(":")
    port, _, path = rest.partition("/")
    hdfs = fs.PyFileSystem(fs.FSSpecHandler(HdfsFileSystem(host, int(port))))
    return int(pq.read_table(f"/{path}", filesystem=hdfs).nbytes)


def as_arrays(url: str) -> int:
    """Read a file as a worker does, and return the bytes of the arrays."""
    return sum(array.nbytes for array in open_dataset(url, label="y").arrays())


def as_minibatches(url: str) -> int:
    """Pass over a file once, as a worker does that keeps nothing."""
    rows = sum(len(x) for x, _ in open_dataset(url, label="y").minibatches(256, shuffle_seed=0))
    if not rows:
        raise RuntimeError(f"{url} has no rows")
    return 0


READINGS = {"pyarrow": by_pyarrow, "arrays": as_arrays, "minibatches": as_minibatches}


def put_table(hdfs: Hdfs, path: Path, case: str, size_mb: int) -> str:
    """Write a table of random float32 and a class, of so many MB, and return its URL."""
    rows_in_group, compression = CASES[case]
    rng, left = np.random.default_rng(0), size_mb * 1_000_000 // (4 * (COLUMNS + 1))
    names = [*(f"c{at}" for at in range(COLUMNS)), "y"]
    schema = pa.schema([*((name, pa.float32()) for name in names[:-1]), ("y", pa.int32())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression=compression) as writer:
        while left > 0:
            rows = min(rows_in_group, left)
            columns = [rng.standard_normal(rows, np.float32) for _ in range(COLUMNS)]
            columns.append(rng.integers(0, 10, rows, np.int32))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=rows)
            left -= rows
    url = f"{hdfs.url}/{path.name}"
    with path.open("rb") as file:
        write_to(url, iter(lambda: file.read(COPY_BYTES), b""))
    return url


if __name__ == "__main__":
    main()
