"""How much an update still counts when it is late: discounts by staleness. Pure.

Staleness is the version now minus the version that the worker started from, so a fresh update has 0 and every
discount gives it exactly 1. Take `constant` when the workers are about equally fast, `polynomial` to count an
update less with each version, `hinge` or `adaptive` when some versions of delay are normal and more are not:
`hinge` then drops at once, `adaptive` in proportion.

Source of the first three: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization" (2019, arXiv
1903.03934), section 5.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fluffle_aggregator.choices import Choice, parse_choice


def constant(_staleness: int) -> float:
    """Count every update in full, however late it is: always 1."""
    return 1.0


def polynomial(staleness: int, *, exponent: float = 0.5) -> float:
    """Discount an update by how late it is: (1 + staleness) ** -exponent, in (0, 1].

    With exponent 0.5 it is also the 1 / sqrt(1 + staleness) of FedBuff (Nguyen et al. 2022, arXiv
    2106.06639).
    """
    return float((1.0 + staleness) ** -exponent)


def hinge(staleness: int, *, a: float = 10.0, b: int = 4) -> float:
    """Count an update in full up to staleness b, then as 1 / (a * (staleness - b) + 1), in (0, 1].

    The defaults are those of the paper's experiments.
    """
    return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)


def adaptive(staleness: int, *, tau_c: int = 4) -> float:
    """Count an update in full up to staleness tau_c, then as tau_c / staleness, in (0, 1].

    With a server learning rate of eta this is the delay-adaptive step min(eta, c / staleness) with
    c = eta * tau_c. Source: Koloskova, Stich and Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD
    for Distributed and Federated Learning" (2022, arXiv 2206.08307): a step of eta up to a delay tau_C, and
    at most min(eta, 1 / (4 * L * delay)) beyond, where L is the unknown smoothness that tau_c stands for.
    Mishchenko et al. (2022, arXiv 2206.07638) take min(eta, c / delay) for every delay, without tau_C. Of
    the first paper the abstract was looked up, of the second one nothing; the formulas are from memory.

    With tau_c 0, as with 1, an update of staleness 1 counts in full.
    """
    return 1.0 if staleness <= tau_c else max(tau_c, 1) / staleness


DISCOUNTS: Mapping[str, Callable[..., float]] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
    "adaptive": adaptive,
}


@dataclass(frozen=True, slots=True)
class Discount(Choice):
    """One of the discounts with its parameters: called with a staleness, it returns a number in (0, 1]."""

    def __call__(self, staleness: int) -> float:
        """Return how much an update counts; raises ValueError when the staleness is negative."""
        if staleness < 0:
            raise ValueError(
                f"staleness must be at least 0, not {staleness}: no update is newer than the model"
            )
        return DISCOUNTS[self.name](staleness, **dict(self.parameters))


def parse_discount(text: str) -> Discount:
    """Read "constant", "polynomial", "polynomial:0.5", "hinge:10:4" or "adaptive:4".

    ValueError says what is known.

    Parameters that are left out have their defaults.
    """
    return Discount(*parse_choice(text, DISCOUNTS))
