"""As many rows of each class: rows drawn again, rows left out, or rows made between others."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.choices import Choice
from fluffle_worker.data.optional import import_for
from fluffle_worker.data.rows import Indices, Labels, Rows

# The classes of imbalanced-learn that keep all rows and add others behind them.
SYNTHETIC = {
    "smote": "SMOTE",
    "borderline_smote": "BorderlineSMOTE",
    "svm_smote": "SVMSMOTE",
    "adasyn": "ADASYN",
}


def resampled(rows: Rows, labels: Labels, choice: Choice, rng: np.random.Generator) -> tuple[Rows, str]:
    """Return rows in which each class that is there has as many as the largest, or the smallest, has.

    Also what was done, in words. Made-up rows have the mean weight of their class.
    """
    if choice.name == "undersample":
        each = int(labels.counts[labels.present].min())
        return rows.take(np.sort(_drawn(labels, each, rng))), f"drew {each} rows of each class"
    most = int(labels.counts.max())
    said = f"drew rows again until each class had {most}"
    if choice.name in SYNTHETIC:
        rows, labels, said = _with_made_rows(rows, labels, choice, rng)
    return rows.take(_drawn(labels, most, rng)), said


def _drawn(labels: Labels, each: int, rng: np.random.Generator) -> Indices:
    """Return `each` rows of each class: all of them and some again, or as many different ones."""
    drawn = []
    for label in labels.present:
        own = np.flatnonzero(labels.of_rows == label)
        if own.size > each:
            drawn.append(rng.choice(own, each, replace=False))
        else:
            drawn += [own, rng.choice(own, each - own.size)]
    return np.concatenate(drawn)


def _made_rows(
    table: NDArray[Any], labels: Labels, label: int, choice: Choice, seed: int
) -> NDArray[np.float64] | None:
    """Return rows that are made for one class [made, columns], or None where none can be made."""
    over = import_for(f"balance {choice}", "imblearn.over_sampling", extra="data")
    most, own = int(labels.counts.max()), int(labels.counts[label])
    if own < 2:
        return None
    neighbours = min(int(choice.number), own - 1)
    options = {"n_neighbors" if choice.name == "adasyn" else "k_neighbors": neighbours}
    sampler = getattr(over, SYNTHETIC[choice.name])(
        sampling_strategy={label: most}, random_state=seed, **options
    )
    try:
        both, _ = sampler.fit_resample(table.astype(np.float64), labels.of_rows)
    except (ValueError, RuntimeError):
        # It finds no row near other classes, or so few rows are missing that it makes none.
        return None
    return np.asarray(both[len(table) :])


def _with_made_rows(
    rows: Rows, labels: Labels, choice: Choice, rng: np.random.Generator
) -> tuple[Rows, Labels, str]:
    table = rows.table(f"balance {choice}")
    few = [int(label) for label in labels.present if labels.counts[label] < labels.counts.max()]
    found = {label: _made_rows(table, labels, label, choice, int(rng.integers(2**31))) for label in few}
    made = {label: of_label for label, of_label in found.items() if of_label is not None}
    without = [str(label) for label in few if label not in made]
    said = f"made {sum(map(len, made.values()))} rows"
    if without:
        said += f", and drew rows of the classes {', '.join(without)} again, since none could be made"
    if not made:
        return rows, labels, said
    of_made = np.repeat(list(made), list(map(len, made.values())))
    weights = rows.weights
    if weights is not None:
        sums = np.bincount(labels.of_rows, weights, minlength=labels.counts.size)
        weights = np.concatenate([weights, (sums / np.maximum(labels.counts, 1))[of_made]])
    more = _as(np.concatenate(list(made.values())), table.dtype).reshape(-1, *rows.x.shape[1:])
    y = np.concatenate([np.asarray(rows.y), _like(rows.y, of_made)])
    of_rows = np.concatenate([labels.of_rows, of_made])
    grown = Labels(of_rows, np.bincount(of_rows, minlength=labels.counts.size))
    return Rows(np.concatenate([rows.x, more]), y, weights, rows.columns), grown, said


def _as(made: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return (made if dtype.kind == "f" else np.rint(made)).astype(dtype)


def _like(y: Any, labels: Indices) -> NDArray[Any]:
    """Return labels in the form of `y`: numbers [rows] or [rows, 1], or one-hot [rows, classes]."""
    if y.ndim == 2 and y.shape[1] > 1:
        return np.eye(y.shape[1], dtype=y.dtype)[labels]
    return np.asarray(labels.astype(y.dtype).reshape(-1, *y.shape[1:]))
