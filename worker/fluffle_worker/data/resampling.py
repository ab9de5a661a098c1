"""As many rows of each class: rows drawn again, rows left out, or rows made between others."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import TaskError
from fluffle_worker.data.choices import Choice
from fluffle_worker.data.optional import import_for
from fluffle_worker.data.rows import Indices, Labels, Rows, names_of

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


def _made_rows(rows: Rows, labels: Labels, label: int, choice: Choice, seed: int) -> NDArray[Any] | None:
    """Return rows that are made for one class [made, columns], or None where none can be made.

    Columns of whole numbers stay such: one of zeros and ones gets the value of the nearer of two neighbours.
    """
    table = rows.table("balance")
    most, own = int(labels.counts.max()), int(labels.counts[label])
    if own < 2:
        return None
    sampler = _sampler(rows, choice, neighbours=min(int(choice.number), own - 1))
    sampler.set_params(sampling_strategy={label: most}, random_state=seed)
    try:
        both, _ = sampler.fit_resample(table.astype(np.float64), labels.of_rows)
    except (ValueError, RuntimeError):
        # It finds no row near other classes, or so few rows are missing that it makes none.
        return None
    made = np.asarray(both[len(table) :])
    is_whole = (table == np.rint(table)).all(axis=0)
    return np.where(is_whole, np.rint(made), made).astype(table.dtype)


def _sampler(rows: Rows, choice: Choice, *, neighbours: int) -> Any:
    """Return what makes rows: with categories SMOTE-NC, or SMOTE-N where there is nothing else."""
    over = import_for(f"balance {choice}", "imblearn.over_sampling", extra="data")
    if not rows.categories:
        option = "n_neighbors" if choice.name == "adasyn" else "k_neighbors"
        return getattr(over, SYNTHETIC[choice.name])(**{option: neighbours})
    if choice.name != "smote":
        names = names_of(rows, rows.categories)
        raise TaskError(
            f"balance {choice} makes values between others, and the columns {names} hold categories: choose "
            "smote, which takes them from neighbours"
        )
    if len(rows.categories) == rows.x.shape[1]:
        return over.SMOTEN(k_neighbors=neighbours)
    return over.SMOTENC(list(rows.categories), k_neighbors=neighbours)


def _with_made_rows(
    rows: Rows, labels: Labels, choice: Choice, rng: np.random.Generator
) -> tuple[Rows, Labels, str]:
    rows.table(f"balance {choice}")
    most = int(labels.counts.max())
    few = [int(label) for label in labels.present if labels.counts[label] < most]
    if not few:
        return rows, labels, f"made no rows, since each class has {most}"
    found = {label: _made_rows(rows, labels, label, choice, int(rng.integers(2**31))) for label in few}
    made = {label: of_label for label, of_label in found.items() if of_label is not None}
    without = [str(label) for label in few if label not in made]
    said = [f"made {sum(map(len, made.values()))} rows"] if made else []
    if without:
        said.append(f"drew rows of the classes {', '.join(without)} again, since none could be made")
    if not made:
        return rows, labels, ", and ".join(said)
    of_made = np.repeat(list(made), list(map(len, made.values())))
    weights = rows.weights
    if weights is not None:
        sums = np.bincount(labels.of_rows, weights, minlength=labels.counts.size)
        weights = np.concatenate([weights, (sums / np.maximum(labels.counts, 1))[of_made]])
    more = np.concatenate(list(made.values())).reshape(-1, *rows.x.shape[1:])
    y = np.concatenate([np.asarray(rows.y), _like(rows.y, of_made)])
    of_rows = np.concatenate([labels.of_rows, of_made])
    grown = Labels(of_rows, np.bincount(of_rows, minlength=labels.counts.size))
    return replace(rows, x=np.concatenate([rows.x, more]), y=y, weights=weights), grown, ", and ".join(said)


def _like(y: Any, labels: Indices) -> NDArray[Any]:
    """Return labels in the form of `y`: numbers [rows] or [rows, 1], or one-hot [rows, classes]."""
    if y.ndim == 2 and y.shape[1] > 1:
        return np.eye(y.shape[1], dtype=y.dtype)[labels]
    return np.asarray(labels.astype(y.dtype).reshape(-1, *y.shape[1:]))
