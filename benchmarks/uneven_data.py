"""The scenes of `uneven.py` about a site's data: rare classes, and dirt."""

from collections.abc import Mapping
from statistics import median
from typing import Any, Final

from benchmarks.measuring import Spread
from benchmarks.sections import Demand, Found, Given, Section, level, points

NONE: Final = "none"
CLOTHES: Final = {
    "clients": 8,
    "device_seconds": "spread:0.25:16",
    "local_steps": 20,
    "learning_rate": 0.1,
    "max_updates": 400,
    "evaluate_every": 5,
}


def _data(**steps: Any) -> list[Given]:
    return [{"data": steps}]


BALANCES: Final = (
    *("weights", "class_balanced", "oversample", "undersample"),
    *("smote", "borderline_smote", "svm_smote", "adasyn"),
    *("focal", "balanced_softmax", "fedlc"),
)
# What changes minibatches of tables; the others are for images and sequences.
AUGMENTS: Final = ("noise", "mask", "mixup")
REMEDIES: Final[Mapping[str, list[Given]]] = {
    NONE: _data(),
    **{name: _data(balance=name) for name in BALANCES},
    **{name: _data(augment=(name,)) for name in AUGMENTS},
    "oversample and noise": _data(balance="oversample", augment=("noise",)),
}


def gain_of_the_best(found: Found) -> Spread:
    """Return by how many points the side with the best median is above none, seed by seed."""
    best = max(found, key=lambda side: median(map(level, found[side])))
    return points(level, best, NONE)(found)


def cost_of_the_worst(found: Found) -> Spread:
    """Return by how many points the side that costs most in the median is below none, seed by seed."""
    costs = [points(level, NONE, side)(found) for side in found if side != NONE]
    return max(costs, key=lambda spread: spread.median)


def _balanced(split: str, title: str) -> Section:
    return Section(
        title,
        {**CLOTHES, "task": "benchmarks.uneven_tasks:balanced", "split": split},
        REMEDIES,
        {"macro recall": level},
        [Demand("points that the worst remedy costs", cost_of_the_worst, "at most", 1.0)],
        against=NONE,
    )


LONG_TAIL = Section(
    "Long tail: imbalance 100:1, 8 sites, Dirichlet(0.1)",
    {**CLOTHES, "task": "benchmarks.uneven_tasks:long_tail", "split": "dirichlet:0.1"},
    REMEDIES,
    {"macro recall": level},
    [Demand("points of the best remedy above none", gain_of_the_best, "at least", 5.0)],
    against=NONE,
)


def won_back(found: Found) -> Spread:
    """Return which part of what the dirt costs cleaning wins back, seed by seed."""
    clean, dirty, cleaned = (map(level, found[side]) for side in ("clean", "dirty", "cleaned"))
    return Spread(tuple((c - b) / (a - b) for a, b, c in zip(clean, dirty, cleaned, strict=True)))


def _digits(task: str, **steps: Any) -> list[Given]:
    return [{"task": f"benchmarks.uneven_tasks:{task}", "data": steps}]


CLEANING: Final = {"outliers": "quantiles:0.05", "labels": "drop"}
DIRT = Section(
    "Dirt at half of 8 sites: 20 % of the values missing, 5 % gross outliers, 10 % of the labels wrong",
    {
        "clients": 8,
        "split": "dirichlet:0.5",
        "device_seconds": "constant:1",
        "local_steps": 20,
        "max_updates": 400,
        "evaluate_every": 4,
    },
    {
        "clean": _digits("clean_digits"),
        "dirty": _digits("zero_filled_digits"),
        "filled": _digits("dirty_digits"),
        "filled and clipped": _digits("dirty_digits", outliers="quantiles:0.05"),
        "cleaned": _digits("dirty_digits", **CLEANING),
        "cleaned, mad": _digits("dirty_digits", outliers="mad:5", labels="drop"),
        "clean, with the same steps": _digits("clean_digits", **CLEANING),
        "clean half alone": [{**_digits("clean_half_of_digits")[0], "clients": 4}],
    },
    {"accuracy": level},
    [Demand("part of what the dirt costs that cleaning wins back", won_back, "at least", 0.5)],
    against="clean",
)

SECTIONS: Final[Mapping[str, Section]] = {
    "long-tail": LONG_TAIL,
    "balanced": _balanced("iid", "Balanced classes, and balanced sites"),
    "balanced-skewed": _balanced("dirichlet:0.1", "Balanced classes, at sites that differ: Dirichlet(0.1)"),
    "dirt": DIRT,
}
