"""One shared data set cut into sites: at random, by Dirichlet, or by label shards. Pure."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fluffle.errors import ConfigError

Indices = NDArray[np.int64]

MIN_EXAMPLES = 20
TARGET_BINS = 10


def split_indices(
    labels_or_targets: NDArray[np.generic], *, split: str, sites: int, seed: int
) -> list[Indices]:
    """Return one ascending array of indices for each site: together everything, nothing twice.

    `labels_or_targets` has one entry for each example: [examples] or [examples, 1]. Floats with more than ten
    different values are the targets of a regression: ten bins of equal size (by quantile) stand for their
    labels. `split` is "iid", "dirichlet:ALPHA" or "shards:N". Every site gets at least 20 examples: one that
    the draw leaves short takes the rest from the largest. The same arguments give the same split.

    Raises ConfigError for an unknown split, a wrong ALPHA or N, and fewer than 20 examples for each site.
    """
    name, _, argument = split.partition(":")
    if name not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: say iid, dirichlet:ALPHA or shards:N")
    if sites < 1:
        raise ConfigError(f"a data set is split among at least 1 site, not {sites}")
    if len(labels_or_targets) < MIN_EXAMPLES * sites:
        raise ConfigError(
            f"{len(labels_or_targets)} examples are too few for {sites} sites: "
            f"each needs at least {MIN_EXAMPLES}"
        )
    labels = _labels(labels_or_targets)
    parts = SPLITS[name](labels, sites, argument, np.random.default_rng(seed))
    return [np.sort(part) for part in _filled(parts)]


def iid(labels: Indices, sites: int, argument: str, rng: np.random.Generator) -> list[Indices]:
    """Deal the examples at random into parts of equal size, give or take one."""
    if argument:
        raise ConfigError(f"the split iid takes no number, but found {argument!r} behind it")
    return np.array_split(rng.permutation(labels.size), sites)


def dirichlet(labels: Indices, sites: int, argument: str, rng: np.random.Generator) -> list[Indices]:
    """Deal each label out in proportions drawn from Dirichlet(ALPHA): the smaller, the less alike the sites.

    The sites differ in size, too. Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of
    Neural Networks" (2019), arXiv 1905.12022, section 4. Hsu, Qi and Brown (2019), arXiv 1909.06335, draw
    each site's mixture of labels instead of each label's mixture of sites, and keep the sites equally large.
    """
    alpha = _number_in(argument)
    if not 0 < alpha < 1e6:
        raise ConfigError(
            f"dirichlet:ALPHA needs a number above 0 and below 1000000, not {argument!r}; "
            "for example dirichlet:0.5"
        )
    parts: list[list[Indices]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        of_label = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(sites, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * of_label.size).astype(np.int64)
        for part, piece in zip(parts, np.split(of_label, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def shards(labels: Indices, sites: int, argument: str, rng: np.random.Generator) -> list[Indices]:
    """Sort by label, cut into sites x N shards of equal size, and deal N to each: it sees about N labels.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data"
    (2017), arXiv 1602.05629, section 3.
    """
    number = _number_in(argument)
    if not (number.is_integer() and 1 <= number <= labels.size):
        raise ConfigError(
            f"shards:N needs a whole number from 1 to the number of examples, {labels.size}, "
            f"not {argument!r}; for example shards:2"
        )
    per_site = int(number)
    shuffled = rng.permutation(labels.size)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, sites * per_site)
    hands = rng.permutation(sites * per_site).reshape(sites, per_site)
    return [np.concatenate([pieces[index] for index in hand]) for hand in hands]


SPLITS: Mapping[str, Callable[[Indices, int, str, np.random.Generator], list[Indices]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
}


def _number_in(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        return float("nan")


def _labels(labels_or_targets: NDArray[np.generic]) -> Indices:
    flat = labels_or_targets.reshape(-1)
    if flat.size != len(labels_or_targets):
        raise ConfigError(f"labels must be [examples] or [examples, 1], not {list(labels_or_targets.shape)}")
    values, labels = np.unique(flat, return_inverse=True)
    if not np.issubdtype(flat.dtype, np.floating) or values.size <= TARGET_BINS:
        return np.asarray(labels, np.int64)
    targets = flat.astype(np.float64)
    edges: NDArray[np.float64] = np.quantile(targets, np.arange(1, TARGET_BINS) / TARGET_BINS)
    return np.asarray(np.searchsorted(edges, targets, side="right"), np.int64)


def _filled(parts: list[Indices]) -> list[Indices]:
    """Return the parts after moving examples from the largest to any that has fewer than MIN_EXAMPLES."""
    filled = list(parts)
    while min(sizes := [part.size for part in filled]) < MIN_EXAMPLES:
        short, largest = int(np.argmin(sizes)), int(np.argmax(sizes))
        moved = min(MIN_EXAMPLES - sizes[short], sizes[largest] - MIN_EXAMPLES)
        filled[short] = np.concatenate([filled[short], filled[largest][-moved:]])
        filled[largest] = filled[largest][:-moved]
    return filled
