"""Whether what a worker reports of its site can count. Pure."""

import math

from fluffle.broker import Delivery
from fluffle.record import Rank, is_in_history
from fluffle.sites import SiteEvaluation, SiteMetric
from fluffle.topology import Topology
from fluffle_aggregator.gates.fitting import WRONG_CONTENT, of_another_federation
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.history import UNKNOWN_BASE, of_a_version_to_come
from fluffle_aggregator.gates.sender import foreign_sender
from fluffle_aggregator.gates.values import BAD_EXAMPLES, TOO_LARGE, ExampleLimits
from fluffle_aggregator.global_model import GlobalModel

# The totals of thousands of sites, and their squares, are still finite.
MAX_TOTAL = 1e100


def site_refusal(
    delivery: Delivery, found: SiteEvaluation, model: GlobalModel, topology: Topology, limits: ExampleLimits
) -> Refusal | None:
    """Return why a site's evaluation does not count, or None when it does."""
    if refused := (
        foreign_sender(found.worker, delivery, topology.updates_in)
        or of_another_federation("the site's evaluation", found.federation, model)
        or of_a_version_to_come(found.version, model)
    ):
        return refused
    if model.secure:
        detail = "the site's evaluation is not masked: it was measured for a plan that is no longer in force"
        return Refusal(WRONG_CONTENT, detail)
    if model.private:
        detail = "with differential privacy no site reports what it measures: only noisy sums are shown"
        return Refusal(WRONG_CONTENT, detail)
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
