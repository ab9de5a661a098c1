"""Weights of rows and offsets of logits from class counts: what must hold for any counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle_worker.data.choices import Choice
from fluffle_worker.data.rows import Labels
from fluffle_worker.data.weights import MOST_WEIGHT, loss_remedy, row_weights

counts = st.lists(st.integers(0, 300), min_size=2, max_size=12).filter(any)
ways = st.sampled_from([Choice("weights"), Choice("class_balanced", 0.999), Choice("class_balanced", 0.5)])


def labels_with(of_classes: list[int]) -> Labels:
    return Labels(np.repeat(np.arange(len(of_classes)), of_classes), np.array(of_classes))


@given(counts, ways)
def test_weights_of_rows_sum_to_the_number_of_rows_and_a_rarer_class_never_weighs_less(
    of_classes: list[int], way: Choice
) -> None:
    labels = labels_with(of_classes)

    weights = row_weights(labels, way)

    assert weights.sum() == pytest.approx(labels.of_rows.size)
    assert (weights > 0).all()
    assert weights.max() <= MOST_WEIGHT
    by_class = {n: weights[labels.of_rows == label][0] for label, n in enumerate(of_classes) if n}
    in_order = [by_class[n] for n in sorted(by_class)]
    assert in_order == pytest.approx(sorted(in_order, reverse=True))


@given(counts)
def test_with_weights_all_classes_that_are_there_weigh_the_same_unless_a_row_weighs_ten(
    of_classes: list[int],
) -> None:
    labels = labels_with(of_classes)

    weights = row_weights(labels, Choice("weights"))

    is_most = weights == MOST_WEIGHT
    sums = np.bincount(labels.of_rows[~is_most], weights[~is_most])
    sums = sums[sums > 0]
    assert sums == pytest.approx(np.full(sums.size, sums[0]))
    assert (np.bincount(labels.of_rows[is_most]) * MOST_WEIGHT <= sums[0] + 1e-6).all()


@given(counts, st.floats(0.1, 5))
def test_balanced_softmax_adds_the_logarithm_of_the_prior_and_an_absent_class_counts_as_one_row(
    of_classes: list[int], tau: float
) -> None:
    remedy = loss_remedy(np.array(of_classes), Choice("balanced_softmax", tau))

    rows = [max(1, each) for each in of_classes]
    assert remedy.offsets == pytest.approx([tau * np.log(each / sum(of_classes)) for each in rows])
    assert remedy.of_absent == pytest.approx(tau * np.log(1 / sum(of_classes)))


@given(counts, st.floats(0.1, 5))
def test_fedlc_lowers_the_logit_of_a_rarer_class_more_and_an_absent_class_counts_as_one_row(
    of_classes: list[int], tau: float
) -> None:
    remedy = loss_remedy(np.array(of_classes), Choice("fedlc", tau))

    assert remedy.offsets == pytest.approx([-tau * max(1, each) ** -0.25 for each in of_classes])
    assert remedy.of_absent == pytest.approx(-tau)
