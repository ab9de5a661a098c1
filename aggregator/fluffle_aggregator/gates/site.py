"""Whether what a worker reports of its site can count. Pure."""

import math

from fluffle.broker import Delivery
from fluffle.record import Rank, is_in_history
from fluffle.sites import SiteEvaluation, SiteMetric
from fluffle.topology import Topology
from fluffle_aggregator.gates.fitting import WRONG_FEDERATION
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.history import FUTURE_VERSION, UNKNOWN_BASE
from fluffle_aggregator.gates.sender import foreign_sender
from fluffle_aggregator.gates.values import BAD_EXAMPLES, TOO_LARGE, ExampleLimits
from fluffle_aggregator.global_model import GlobalModel

# The totals of thousands of sites, and their squares, are still finite.
MAX_TOTAL = 1e100


def site_refusal(
    delivery: Delivery, found: SiteEvaluation, model: GlobalModel, topology: Topology, limits: ExampleLimits
) -> Refusal | None:
    """Return why a site's evaluation does not count, or None when it does."""
    if foreign := foreign_sender(found.worker, delivery, topology.updates_in):
        return foreign
    if found.federation != model.record.federation:
        return Refusal(WRONG_FEDERATION, f"the site's evaluation is for {found.federation!r}")
    if found.version > model.version:
        return Refusal(
            FUTURE_VERSION, f"version {found.version} is not made yet: the newest is {model.version}"
        )
    rank = Rank(found.term, found.version)
    if not is_in_history(rank, model.terms, model.version):
        return Refusal(
            UNKNOWN_BASE,
            f"the site evaluated version {rank}, which is not in the history of this model: the aggregator "
            "that published it had lost the lead",
        )
    most = limits.limit_examples
    counts = [found.examples, *(each.count for each in (*found.metrics, *found.tuned))]
    if max(counts) > most:
        return Refusal(
            BAD_EXAMPLES,
            f"the site claims a metric of {max(counts):g} examples; expected at most {most} (limit_examples)",
        )
    if too_large := [each.name for each in (*found.metrics, *found.tuned) if _is_too_large(each)]:
        return Refusal(
            TOO_LARGE,
            f"the site's {too_large[0]} is above {MAX_TOTAL:g}, which nobody can add up: report it as NaN "
            "if it has overflowed",
        )
    return None


def _is_too_large(metric: SiteMetric) -> bool:
    return any(math.isfinite(each) and abs(each) > MAX_TOTAL for each in (metric.total, metric.value))
