"""How many updates a worker may have under way that no version contains yet. Pure.

While the aggregator is away, workers that train on from one version repeat themselves: the sum of what they
send points far beyond what any of them has seen. docs/decisions/0016 has the measurements.
"""

from __future__ import annotations

import math

from fluffle.record import ModelVersion

# Of the updates that make one version, so many times a worker's own part of them may be under way.
TIMES_OWN_PART = 2.0


def most_in_flight(newest: ModelVersion, worker: str) -> int:
    """Return how many updates a worker may have sent that the newest version does not contain.

    It is twice the worker's usual part of a version, and one more, so that a version always fills: with K
    updates in each version and n equal workers, 2 K / n + 1. A worker that alone makes a version may have K +
    1.
    """
    per_version = newest.plan.updates_per_version
    given = {name: one.updates for name, one in newest.contributors.items() if one.updates}
    if len(given) < 2:
        return per_version + 1
    share = max(given.get(worker, 0) / sum(given.values()), 1 / len(given))
    return min(per_version, math.ceil(TIMES_OWN_PART * share * per_version)) + 1
