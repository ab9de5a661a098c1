"""How many updates a worker may have sent that no version contains yet. Pure.

While there is no aggregator, workers that keep training from one version repeat themselves, and the sum of
their updates goes much too far. docs/decisions/0016 has the measurements.
"""

import math

from fluffle.record import ModelVersion

# How many times its own part of one version's updates a worker may have under way.
TIMES_OWN_PART = 2.0


def most_in_flight(newest: ModelVersion, worker: str) -> int:
    """Return how many updates a worker may have sent that the newest version does not contain.

    It is twice the worker's usual part of a version, and one more, so that a version always fills: 2 K / n +
    1 with K updates in a version and n equal workers, and K + 1 for a single worker.
    """
    per_version = newest.plan.updates_per_version
    given = {name: one.updates for name, one in newest.contributors.items() if one.updates}
    if len(given) < 2:
        return per_version + 1
    share = max(given.get(worker, 0) / sum(given.values()), 1 / len(given))
    return min(per_version, math.ceil(TIMES_OWN_PART * share * per_version)) + 1
