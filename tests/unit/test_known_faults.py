"""Formulas that public code gets wrong: the product agrees with the paper, and not with the faulty one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from builders import SIZE, a_model, an_update, float32s
from numpy.typing import NDArray

from fluffle_aggregator.strategies.registry import STRATEGIES

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Arrival:
    """An update, and how many versions were made since its base."""

    worker: str
    value: float
    staleness: int


# Each formula turns these, one in a step, into the model's values.
COME = (
    Arrival("fast", 8.0, 0),
    Arrival("slow", -2.0, 1),
    Arrival("fast", 1.0, 0),
    Arrival("fast", 1.0, 1),
    Arrival("slow", -1.0, 3),
    *[Arrival("fast", 0.5, 0)] * 40,
)
Formula = Callable[[Sequence[Arrival]], float]


def ca2fl(come: Sequence[Arrival], *, knows_who_came: bool = True, replaces_first: bool = False) -> float:
    """CA2FL with K = 1 and eta = n, so that the step is not scaled.

    Faults: the list of those whose updates are in the buffer stays empty, so that nothing is calibrated; or
    the mean is taken after an update has taken the place of the one before.
    """
    x, last = 0.0, dict[str, float]()
    for arrival in come:
        kept = {**last, arrival.worker: arrival.value} if replaces_first else last
        mean = float(np.mean(list(kept.values()))) if kept else 0.0
        calibration = arrival.value - last.get(arrival.worker, 0.0) if knows_who_came else 0.0
        last[arrival.worker] = arrival.value
        x += (mean + calibration) / len(last)
    return x


def fadas(come: Sequence[Arrival], *, divides_by_v: bool = False, counts_after: bool = False) -> float:
    """FADAS with M = 1, eta = 0.1 and tau_c = 1.

    Faults: the step is divided by the root of v, and not of the largest v so far; or the staleness is counted
    when the step has made a version already.
    """
    x = m = v = v_hat = 0.0
    for arrival in come:
        m = 0.9 * m + 0.1 * arrival.value
        v = 0.99 * v + 0.01 * arrival.value**2
        v_hat = max(v_hat, v)
        staleness = arrival.staleness + counts_after
        rate = 0.1 / staleness if staleness > 1 else 0.1
        x += rate * m / (np.sqrt(v if divides_by_v else v_hat) + 1e-8)
    return x


def fedbuff(come: Sequence[Arrival], *, counts_after: bool = False, squares: bool = False) -> float:
    """FedBuff with K = 1 and the polynomial discount.

    Faults: the staleness is counted after the step, so that a fresh update is discounted; or the discount
    multiplies one that was discounted already.
    """
    x = 0.0
    for arrival in come:
        discount = (1.0 + arrival.staleness + counts_after) ** -0.5
        x += discount * (discount if squares else 1.0) * arrival.value
    return x


def product(settings: dict[str, object]) -> float:
    kind = STRATEGIES[str(settings["strategy"])]
    given = {name: value for name, value in settings.items() if name in kind.model_fields}
    model = a_model(kind.model_validate({"buffer_size": 1, "weigh_by": "none", **given}).make())
    for arrival in COME:
        known = model.contributors.get(arrival.worker)
        base = model.version - arrival.staleness
        update = an_update(arrival.worker, known.updates + 1 if known else 1, base_version=base)
        vector = float32s(np.full(SIZE, arrival.value, np.float32))
        model.fold(replace(update, vector=vector), now=0.0)
    return float(model.vector[0])


CA2FL: dict[str, object] = {"strategy": "ca2fl", "cache_codec": "float32"}
FADAS: dict[str, object] = {"strategy": "fadas", "server_learning_rate": 0.1}


@pytest.mark.parametrize(
    ("settings", "paper", "faulty"),
    [
        (CA2FL, ca2fl, lambda come: ca2fl(come, knows_who_came=False)),
        (CA2FL, ca2fl, lambda come: ca2fl(come, replaces_first=True)),
        (
            {"strategy": "fadas", "server_learning_rate": 0.1},
            fadas,
            lambda come: fadas(come, divides_by_v=True),
        ),
        (
            {"strategy": "fadas", "server_learning_rate": 0.1},
            fadas,
            lambda come: fadas(come, counts_after=True),
        ),
        ({"strategy": "fedbuff"}, fedbuff, lambda come: fedbuff(come, counts_after=True)),
        ({"strategy": "fedbuff"}, fedbuff, lambda come: fedbuff(come, squares=True)),
    ],
    ids=[
        "calibration that is always zero",
        "mean with the new update in it",
        "v in place of v_hat",
        "staleness counted after the step of fadas",
        "staleness counted after the step of fedbuff",
        "a discount that is applied twice",
    ],
)
def test_a_step_is_the_papers_and_not_the_one_of_faulty_code(
    settings: dict[str, object], paper: Formula, faulty: Formula
) -> None:
    found = product(settings)

    assert found == pytest.approx(paper(COME), rel=1e-5)
    assert found != pytest.approx(faulty(COME), rel=1e-2)
