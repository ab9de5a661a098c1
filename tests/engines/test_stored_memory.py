"""Reading a data set takes little more memory than its arrays, and minibatches take little at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from places import place_of

from fluffle.storage import write_to

COLUMNS = 100
MOST_MB = 300.0
PROGRAM = """if True:
    import json, os, sys
    import pyarrow.parquet, pyarrow.csv
    from fluffle_worker.data import open_dataset
    from harness.process_memory import memory_bytes

    before = memory_bytes(os.getpid(), "VmHWM")
    dataset = open_dataset(sys.argv[1], label="y")
    if sys.argv[2] == "arrays":
        arrays = dataset.arrays()
    else:
        rows = sum(len(x) for x, _ in dataset.minibatches(256, shuffle_seed=0))
        assert rows > 0
        arrays = ()
    above = memory_bytes(os.getpid(), "VmHWM") - before - sum(array.nbytes for array in arrays)
    print(json.dumps({"above_mb": above / 1e6, "arrays_mb": sum(array.nbytes for array in arrays) / 1e6}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """400 MB of numbers in one row group of Parquet, and 200 MB of them as CSV."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    rows = 1_000_000
    columns = {f"c{at}": rng.standard_normal(rows, np.float32) for at in range(COLUMNS)}
    pq.write_table(
        pa.table({**columns, "y": np.arange(rows) % 10}),
        folder / "table.parquet",
        row_group_size=rows,
        use_dictionary=False,
    )
    digits = {f"c{at}": rng.integers(0, 100, rows // 2) for at in range(COLUMNS)}
    pc.write_csv(pa.table({**digits, "y": np.arange(rows // 2) % 10}), folder / "table.csv")
    return {path.suffix[1:]: path for path in folder.iterdir()}


@pytest.mark.parametrize(("scheme", "kind"), [("file", "parquet"), ("hdfs", "parquet"), ("file", "csv")])
@pytest.mark.parametrize("what", ["arrays", "minibatches"])
def test_reading_takes_little_more_memory_than_what_is_kept(
    files: dict[str, Path], scheme: str, kind: str, what: str, request: pytest.FixtureRequest
) -> None:
    url = str(files[kind])
    if scheme == "hdfs":
        url = f"{place_of(scheme, request).url}/{files[kind].name}"
        with files[kind].open("rb") as file:
            write_to(url, iter(lambda: file.read(8 << 20), b""))

    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, what], capture_output=True, text=True, check=True
    )

    found = json.loads(ended.stdout)
    assert found["above_mb"] < MOST_MB
    assert found["arrays_mb"] > 200 or what == "minibatches"
