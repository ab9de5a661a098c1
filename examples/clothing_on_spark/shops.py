"""The data of the shops: pictures from Fashion-MNIST, in a Parquet file for each shop.

The shops differ in size and in what they sell, as sites do: nine of ten pictures are of a shop's own kinds.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluffle.storage import write_to
from fluffle.task import Site
from fluffle_worker.tasks import fashion_mnist

# How many pictures a shop has, and the numbers of the kinds that it mostly sells.
SHOPS: Mapping[str, tuple[int, list[int]]] = {
    "knitwear": (9000, [0, 2, 4, 6]),
    "shoes": (5000, [5, 7, 9]),
    "dresses": (3000, [1, 3]),
    "bags": (1500, [8]),
}
OWN_SHARE = 0.9


def tables_of_shops() -> dict[str, pa.Table]:
    """Return the rows of each shop; no picture is in two of them."""
    pictures, kinds = fashion_mnist.train_data(Site(split="iid"))
    rng = np.random.default_rng(0)
    left = np.arange(len(kinds))
    tables = {}
    for shop, (rows, own) in SHOPS.items():
        is_own = np.isin(kinds[left], own)
        chances = np.where(is_own, OWN_SHARE / is_own.sum(), (1 - OWN_SHARE) / (~is_own).sum())
        mine = rng.choice(left, rows, replace=False, p=chances)
        left = np.setdiff1d(left, mine)
        columns = {
            "shop": [shop] * rows,
            "pixels": list(pictures[mine].reshape(rows, -1)),
            "kind": kinds[mine],
        }
        tables[shop] = pa.table(columns)
    return tables


def write_tables(tables: Mapping[str, pa.Table], folder_url: str) -> None:
    """Write a file for each shop into a folder, such as one in HDFS."""
    for shop, table in tables.items():
        file = pa.BufferOutputStream()
        pq.write_table(table, file)
        write_to(f"{folder_url}/{shop}.parquet", [file.getvalue()])
