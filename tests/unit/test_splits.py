"""A data set cut into sites: everything, nothing twice, the same for everyone."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluffle.errors import ConfigError
from fluffle_worker.splits import MIN_EXAMPLES, split_indices

SPLITS = ["iid", "dirichlet:0.05", "dirichlet:0.5", "dirichlet:100", "shards:1", "shards:2", "shards:7"]


def labels_of(examples: int, *, classes: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, classes, examples)


def label_share(labels: NDArray[np.int64], part: NDArray[np.int64]) -> float:
    """The share of a site's most frequent label."""
    return float(np.bincount(labels[part]).max() / part.size)


@given(
    split=st.sampled_from(SPLITS),
    sites=st.integers(1, 12),
    spare=st.integers(0, 400),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_exactly_one_site_and_each_site_gets_at_least_twenty(
    split: str, sites: int, spare: int, classes: int, seed: int
) -> None:
    labels = labels_of(sites * MIN_EXAMPLES + spare, classes=classes)

    parts = split_indices(labels, split=split, sites=sites, seed=seed)

    assert len(parts) == sites
    assert sorted(np.concatenate(parts).tolist()) == list(range(labels.size))
    assert all(part.size >= MIN_EXAMPLES and part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(split: str) -> None:
    labels = labels_of(500, classes=10)

    first, again, other = (split_indices(labels, split=split, sites=5, seed=seed) for seed in (1, 1, 2))

    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_iid_sites_are_equally_large_and_have_the_labels_of_the_whole() -> None:
    labels = labels_of(4003, classes=4)

    parts = split_indices(labels, split="iid", sites=4, seed=0)

    assert sorted(part.size for part in parts) == [1000, 1001, 1001, 1001]
    assert all(label_share(labels, part) < 0.32 for part in parts)


def test_the_smaller_alpha_the_less_alike_are_the_sites() -> None:
    labels = labels_of(5000, classes=10)

    alike, apart = (
        np.mean([label_share(labels, part) for part in split_indices(labels, split=split, sites=5, seed=0)])
        for split in ("dirichlet:100", "dirichlet:0.1")
    )

    assert alike < 0.15
    assert apart > 0.3


def test_with_one_shard_for_each_site_a_site_sees_one_label_only() -> None:
    labels = np.repeat(np.arange(5), 100)

    parts = split_indices(labels, split="shards:1", sites=5, seed=3)

    assert sorted(np.unique(labels[part]).tolist() for part in parts) == [[0], [1], [2], [3], [4]]


def test_the_targets_of_a_regression_are_split_by_their_quantiles() -> None:
    targets = np.random.default_rng(0).exponential(size=(1000, 1))

    parts = split_indices(targets, split="shards:1", sites=10, seed=0)

    ranges = sorted((float(targets[part].min()), float(targets[part].max())) for part in parts)
    assert all(below[1] <= above[0] for below, above in itertools.pairwise(ranges))


def test_few_different_floats_are_labels() -> None:
    labels = np.repeat([0.0, 1.0], [50, 150])

    parts = split_indices(labels, split="shards:1", sites=4, seed=0)

    assert sorted(float(labels[part].mean()) for part in parts) == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("split", "sites", "said"),
    [
        ("random", 2, "unknown split 'random': say iid, dirichlet:ALPHA or shards:N"),
        ("dirichlet", 2, "dirichlet:ALPHA needs a number above 0"),
        ("dirichlet:0", 2, "not '0'; for example dirichlet:0.5"),
        ("dirichlet:nan", 2, "not 'nan'"),
        ("dirichlet:inf", 2, "not 'inf'"),
        ("shards:0", 2, "shards:N needs a whole number from 1 to the number of examples, 100"),
        ("shards:1.5", 2, "not '1.5'"),
        ("shards:two", 2, "not 'two'; for example shards:2"),
        ("iid:3", 2, "takes no number, but found '3'"),
        ("iid", 6, "100 examples are too few for 6 sites: each needs at least 20"),
        ("iid", 0, "at least 1 site, not 0"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_with_the_reason(split: str, sites: int, said: str) -> None:
    labels = labels_of(100, classes=3)

    with pytest.raises(ConfigError) as refused:
        split_indices(labels, split=split, sites=sites, seed=0)

    assert said in str(refused.value)


def test_labels_with_two_axes_are_refused() -> None:
    one_hot = np.eye(3)[labels_of(60, classes=3)]

    with pytest.raises(ConfigError, match=r"not \[60, 3\]"):
        split_indices(one_hot, split="iid", sites=2, seed=0)
