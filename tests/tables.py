"""Tables that nobody made for a test: scikit-learn's tumours, wines and diabetes, as sites have them.

The three sites have a sixth, a third and a half of the rows that are not held out. The first has two
Parquet files. The second has its columns in another order, one more column of text, and gaps. The third has a
CSV file with gaps, and lacks the last class.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

LABEL = "outcome"
SITES = ("site-0", "site-1", "site-2.csv")
HELD_OUT = "held-out.parquet"


def table_of(name: str) -> pd.DataFrame:
    """Return tumours, wines or diabetes, with classes as text in a column "outcome"."""
    if name == "diabetes":
        found = load_diabetes(as_frame=True, scaled=False).frame
    else:
        data = {"tumours": load_breast_cancer, "wines": load_wine}[name](as_frame=True)
        found = data.frame.assign(target=np.array(data.target_names)[data.target])
    return found.rename(columns={"target": LABEL}).sample(frac=1, random_state=0).reset_index(drop=True)


def write_tables(name: str, folder: Path) -> pd.DataFrame:
    """Write the held-out rows and those of SITES, and return the whole table."""
    whole = table_of(name)
    held_out, rest = whole[: len(whole) // 4], whole[len(whole) // 4 :]
    held_out.to_parquet(folder / HELD_OUT, index=False)
    sixth = len(rest) // 6
    first, second, third = rest[:sixth], rest[sixth : 3 * sixth], rest[3 * sixth :]
    (folder / "site-0").mkdir()
    first[: len(first) // 2].to_parquet(folder / "site-0/a.parquet", index=False)
    first[len(first) // 2 :].to_parquet(folder / "site-0/b.parquet", index=False)
    (folder / "site-1").mkdir()
    second = second.iloc[:, ::-1].assign(ward="north").mask(_gaps(second.shape[0], second.shape[1] + 1))
    second.to_parquet(folder / "site-1/rows.parquet", index=False)
    if third[LABEL].dtype.kind not in "biuf":
        third = third[third[LABEL] != third[LABEL].max()]
    third.mask(_gaps(*third.shape)).to_csv(folder / "site-2.csv", index=False)
    return whole


def _gaps(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    return np.random.default_rng(rows).random((rows, columns)) < 0.03
