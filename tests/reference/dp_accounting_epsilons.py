"""Make dp_accounting_epsilons.json: what another library makes of the divergences of Skellam noise.

dp-accounting cannot be installed beside Fluffle, since it needs an attrs below 24. So in an environment of
its own, in which dp-accounting 0.6.0 is installed:

    python tests/reference/dp_accounting_epsilons.py

The bound is written down here once more from Theorem 3.5 of arXiv 2110.04995, without Fluffle.
"""

import importlib
import json
from pathlib import Path
from typing import Any

ORDERS = [*range(2, 512), *range(512, 8192, 16)]


def divergence(order: int, l2: float, l1: float, variance: float) -> float:
    """Return the bound on the Renyi divergence of one sum."""
    first = order * l2**2 / (2 * variance)
    second = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return first + min(second, 3 * l1 / (2 * variance))


def rows(accountant: Any) -> list[dict[str, float]]:
    """Return a table over multipliers, numbers of levels, sizes, updates and deltas."""
    found = []
    for multiplier in (0.7, 1.5, 4.0, 12.0):
        for l2, size in ((40.0, 10), (1023.5, 1000), (32768.0, 1_000_000)):
            for updates, delta in ((1, 1e-5), (8, 1e-6), (50, 1e-9)):
                l1 = l2 * min(size**0.5, l2)
                variance = (multiplier * l2) ** 2
                divergences = [updates * divergence(order, l2, l1, variance) for order in ORDERS]
                epsilon, _ = accountant.compute_epsilon(ORDERS, divergences, delta)
                found.append(
                    {
                        "l2": l2,
                        "l1": l1,
                        "variance": variance,
                        "updates": updates,
                        "delta": delta,
                        "epsilon": float(epsilon),
                    }
                )
    return found


if __name__ == "__main__":
    table = rows(importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant"))
    Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1), encoding="utf-8")
