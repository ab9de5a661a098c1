"""Weights of rows and offsets of logits from the classes at one site. Pure.

Nearly everything is computed from the class counts of this site's training rows, n_y for class y; only
`logit_adjustment` takes the class prior of the whole federation. A class that the site does not have gets no
weight, and its logit the offset of a class of one row: no logarithm is taken of 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.choices import Choice
from fluffle_worker.data.rows import Indices, Labels

Vector = NDArray[np.float64]
# No row weighs more, in times the mean: a single row of a class would make a step that ruins the model.
MOST_WEIGHT = 10.0
# Added to the logit of a class that is masked: its probability is 0 in float32, and every gradient finite.
MASKED = -1e9


@dataclass(frozen=True, slots=True, eq=False)
class LossRemedy:
    """How the loss of the training step is changed: offsets of the logits [classes], and focal loss's gamma.

    `offsets` are None, and `gamma` is 0, for what stays as it is. `of_absent` is the offset of classes behind
    the last one that this site has. `lacks_prior` says that the class prior of the federation is not known
    yet.
    """

    name: str
    offsets: Vector | None = None
    of_absent: float = 0.0
    gamma: float = 0.0
    lacks_prior: bool = False


def row_weights(labels: Labels, choice: Choice) -> Vector:
    """Return a weight for each row [rows] by its class, at most 10; they sum to the number of rows.

    `weights`: 1 / n_y, so that all classes weigh the same, but for those with very few rows.
    `class_balanced`: 1 / effective number, (1 - beta) / (1 - beta^n_y). Source: Cui et al., "Class-Balanced
    Loss Based on Effective Number of Samples" (2019), equation 5.
    """
    return class_weights(labels.counts, choice)[labels.of_rows]


def class_weights(counts: Indices, choice: Choice) -> Vector:
    """Return the weight of each class [classes], 0 for one without rows; see `row_weights`."""
    present = np.flatnonzero(counts)
    of_present = counts[present].astype(np.float64)
    weights = np.zeros(counts.size)
    if choice.name == "class_balanced":
        # 1 - beta^n without the loss of digits that a beta near 1 would bring.
        weights[present] = (1 - choice.number) / -np.expm1(of_present * np.log(choice.number))
    else:
        weights[present] = 1 / of_present
    return _limited(weights, counts)


def _limited(weights: Vector, counts: Indices) -> Vector:
    """Scale the weights of classes until they sum to the number of rows, and none is above `MOST_WEIGHT`."""
    is_most = np.zeros(counts.size, bool)
    while True:
        left = counts.sum() - MOST_WEIGHT * counts[is_most].sum()
        scaled = weights * (left / (weights[~is_most] @ counts[~is_most]))
        above = ~is_most & (scaled > MOST_WEIGHT)
        if not above.any():
            return np.where(is_most, MOST_WEIGHT, scaled)
        is_most |= above


def loss_remedy(counts: Indices, choice: Choice, prior: Vector | None = None) -> LossRemedy:
    """Return the change of the loss for the class counts of a site [classes].

    `prior` is the share of each class in the rows of all sites, None while nobody knows it.

    `balanced_softmax` adds tau * log(n_y / n) to the logits: Ren et al., "Balanced Meta-Softmax" (2020), and
    with tau Menon et al., "Long-tail learning via logit adjustment" (2021), equation 10. `fedlc` subtracts
    tau * n_y^(-1/4): Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration"
    (2022), equation 6. `logit_adjustment` adds tau * log(prior_y), Menon et al. again. `focal` multiplies the
    loss by (1 - p_y)^gamma: Lin et al., "Focal Loss" (2017), equation 4.
    """
    if choice.name == "focal":
        return LossRemedy(str(choice), gamma=choice.number)
    if choice.name == "logit_adjustment":
        return _adjusted(counts, choice, prior)
    # Masked altogether, such a class would never be told apart from those of this site, and all sites would
    # differ in how they see it: with one row the federation's model recalls more (docs/results/uneven.md).
    rows = np.maximum(counts, 1).astype(np.float64)
    if choice.name == "balanced_softmax":
        log_of_all = np.log(counts.sum())
        return LossRemedy(
            str(choice),
            offsets=choice.number * (np.log(rows) - log_of_all),
            of_absent=-choice.number * log_of_all,
        )
    return LossRemedy(str(choice), offsets=-choice.number * rows**-0.25, of_absent=-choice.number)


def _adjusted(counts: Indices, choice: Choice, prior: Vector | None) -> LossRemedy:
    """Return the offsets by the prior of all sites, which masks a class that no site has."""
    if prior is None or not prior.any():
        return LossRemedy(str(choice), lacks_prior=True)
    shares = np.zeros(max(prior.size, counts.size))
    shares[: prior.size] = prior
    # A site that came after the survey may have a class that no other has.
    own = np.flatnonzero(counts)
    shares[own] = np.maximum(shares[own], prior[prior > 0].min())
    offsets = np.full(shares.size, MASKED)
    there = np.flatnonzero(shares)
    offsets[there] = choice.number * np.log(shares[there])
    return LossRemedy(str(choice), offsets=offsets, of_absent=MASKED)
