"""What sites measure of a version on data that they hold out, and what that is over all sites. Pure.

A metric that is a mean travels as a total and a count, so that the mean over all sites is that of their data
in one place. What cannot be added up, such as an AUC, travels as the site's value times its examples: then
the result is the mean of the sites' values, and is marked as that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fluffle.fields import (
    MAX_METRIC_NAME_LENGTH,
    AnyNumber,
    Count,
    FieldError,
    Magnitude,
    MetricName,
    Name,
    Positive,
    ShortText,
    at_most,
    must,
)

MAX_SITE_METRICS: Final = 64
# Who reports for all sites, in the record.
SITES: Final = "sites"
# What stands before a metric's name where it is one of all sites: their mean, the worst of them, and the
# standard deviation of their values.
MEAN: Final = "sites."
WORST: Final = "worst."
SPREAD: Final = "spread."
MAX_SITE_METRIC_NAME_LENGTH: Final = MAX_METRIC_NAME_LENGTH - len(SPREAD)
# The record of each version holds a report of each site. So many items of its lists and maps they may be.
MAX_REPORT_ITEMS: Final = 60_000
_ITEMS_OF_REPORT, _ITEMS_OF_METRIC, _ITEMS_OF_GAIN = 24, 5, 4

Pooling = Literal["mean", "root_mean", "site_mean"]
SiteMetricName = Annotated[
    MetricName,
    must(
        lambda name: len(name) <= MAX_SITE_METRIC_NAME_LENGTH,
        f"{{}} has more than {MAX_SITE_METRIC_NAME_LENGTH} characters",
    ),
]


@dataclass(frozen=True, slots=True)
class SiteMetric:
    """One metric at one site: its value is `total / count`, or the square root of that.

    `pooling` is "mean" or "root_mean" where the totals and counts of all sites may be added up. With
    "site_mean" they may not: `count` is the number of examples, and `total` the value times that. A `count`
    of 0 means that the site cannot tell, such as the recall of a class that it does not have.
    """

    name: SiteMetricName
    pooling: Pooling
    total: AnyNumber
    count: Magnitude

    @property
    def value(self) -> float:
        """The value at this site; NaN without a count."""
        return value_of(self.pooling, self.total, self.count)


def value_of(pooling: Pooling, total: float, count: float) -> float:
    """Return `total / count`, or its square root; NaN without a count, and for the root of less than 0."""
    if not count:
        return math.nan
    value = total / count
    if pooling != "root_mean":
        return value
    return math.sqrt(value) if value >= 0 else math.nan


def _require_names(metrics: tuple[SiteMetric, ...]) -> None:
    names = [metric.name for metric in metrics]
    if not names:
        raise FieldError("expected one metric or more")
    if len(set(names)) != len(names):
        raise FieldError("a metric stands there twice")


def _require_names_if_any(metrics: tuple[SiteMetric, ...]) -> None:
    if metrics:
        _require_names(metrics)


@dataclass(frozen=True, slots=True)
class SiteEvaluation:
    """A worker's metrics of one version on the `examples` that its site holds out.

    A worker evaluates a version once, so `worker`, `term` and `version` together are the id of the message:
    whoever has taken one in needs no other of the same id. `tuned` are the metrics of the same examples after
    the worker's own round of training from that version; empty until it has trained. The message with them
    counts as newer than the one without.
    """

    federation: ShortText
    worker: Name
    term: Positive
    version: Count
    examples: Positive
    metrics: Annotated[tuple[SiteMetric, ...], at_most(MAX_SITE_METRICS), _require_names]
    evaluate_s: float = 0.0
    tuned: Annotated[tuple[SiteMetric, ...], at_most(MAX_SITE_METRICS), _require_names_if_any] = ()

    @property
    def id(self) -> str:
        """The id of the message, as text."""
        return f"{self.worker}/{self.term}/{self.version}{'/tuned' if self.tuned else ''}"


@dataclass(frozen=True, slots=True)
class Gain:
    """A metric of a version at a site, before and after the site's own round of training from it."""

    name: SiteMetricName
    before: AnyNumber
    after: AnyNumber


@dataclass(frozen=True, slots=True)
class SiteReport:
    """The newest evaluation of one site, as the record of a version keeps it.

    `heard_s` is the record's `elapsed_s` when the worker last sent an evaluation or an update, and `counted`
    is in how many evaluations by all sites this report has counted. `gains` are those of the last version
    after which the site has evaluated its own round, `gains_version`.

    `best` is the metric that says which version is best, as it was here in the best evaluation by all sites,
    and `reference` as it was in the last one that gained enough not to lose patience.
    """

    term: Positive
    version: Count
    examples: Positive
    metrics: Annotated[tuple[SiteMetric, ...], at_most(MAX_SITE_METRICS), _require_names]
    evaluate_s: float = 0.0
    heard_s: float = 0.0
    counted: Count = 0
    gains_version: Count = 0
    gains: Annotated[tuple[Gain, ...], at_most(MAX_SITE_METRICS)] = ()
    best: SiteMetric | None = None
    reference: SiteMetric | None = None

    @property
    def items(self) -> int:
        """How many items of a record's lists and maps it is."""
        return _ITEMS_OF_REPORT + _ITEMS_OF_METRIC * len(self.metrics) + _ITEMS_OF_GAIN * len(self.gains)

    def metric(self, name: str) -> SiteMetric | None:
        """Return a metric of this site; None where it has none."""
        return next((each for each in self.metrics if each.name == name), None)


@dataclass(frozen=True, slots=True)
class OverSites:
    """One metric over all sites.

    `mean` is that of the data of all sites in one place, unless `pooling` is "site_mean": then it is the mean
    of their values, weighted by examples. `spread` is the standard deviation of the sites' values. These, and
    the lowest and highest value with their sites, are over the `sites` whose value is finite; they are NaN
    where there is none. `not_finite` are the others.
    """

    name: str
    pooling: Pooling
    mean: float
    spread: float
    lowest: float
    lowest_site: str
    highest: float
    highest_site: str
    sites: int
    not_finite: tuple[str, ...]


def over_sites(reports: Mapping[str, SiteReport]) -> dict[str, OverSites]:
    """Return each metric over the sites that have it, in the order in which they name them."""
    found: dict[str, dict[str, SiteMetric]] = {}
    for site, report in reports.items():
        for metric in report.metrics:
            found.setdefault(metric.name, {})[site] = metric
    examples = {site: report.examples for site, report in reports.items()}
    return {name: metric_over_sites(name, metrics, examples) for name, metrics in found.items()}


def metric_over_sites(name: str, metrics: Mapping[str, SiteMetric], examples: Mapping[str, int]) -> OverSites:
    """Return one metric over the sites that have it."""
    # A site without a count cannot tell: it neither counts nor misses anything.
    values = {site: metric.value for site, metric in metrics.items() if metric.count}
    finite = {site: value for site, value in values.items() if math.isfinite(value)}
    poolings = {metrics[site].pooling for site in finite or metrics}
    pooling: Pooling = poolings.pop() if len(poolings) == 1 else "site_mean"
    if pooling == "site_mean":
        total = math.fsum(value * examples[site] for site, value in finite.items())
        count = math.fsum(examples[site] for site in finite)
    else:
        total = math.fsum(metrics[site].total for site in finite)
        count = math.fsum(metrics[site].count for site in finite)
    # By the name too, so that the order of the sites changes nothing.
    by_value = sorted((value, site) for site, value in finite.items())
    lowest, highest = (by_value[0], by_value[-1]) if by_value else ((math.nan, ""), (math.nan, ""))
    return OverSites(
        name,
        pooling,
        mean=value_of(pooling, total, count),
        spread=_standard_deviation(list(finite.values())),
        lowest=lowest[0],
        lowest_site=lowest[1],
        highest=highest[0],
        highest_site=highest[1],
        sites=len(finite),
        not_finite=tuple(sorted(values.keys() - finite.keys())),
    )


def _standard_deviation(values: Sequence[float]) -> float:
    if not values:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) * (value - mean) for value in values) / len(values))


def is_of_sites(metric: str) -> bool:
    """Tell whether this is the name of a metric over all sites, such as sites.accuracy or worst.loss."""
    return metric.startswith((MEAN, WORST, SPREAD))


def site_metric_in(metric: str) -> str:
    """Return the name that a metric over all sites has at each site: accuracy for worst.accuracy."""
    return metric.partition(".")[2] if is_of_sites(metric) else metric


def within_room(reports: Mapping[str, SiteReport]) -> tuple[dict[str, SiteReport], list[str]]:
    """Return the newest reports that a record has room for, and the sites of the others."""
    items = sum(report.items for report in reports.values())
    left = dict(reports)
    dropped: list[str] = []
    for site in _oldest_first(reports):
        if items <= MAX_REPORT_ITEMS:
            break
        items -= left.pop(site).items
        dropped.append(site)
    return left, dropped


def _oldest_first(reports: Mapping[str, SiteReport]) -> list[str]:
    return sorted(reports, key=lambda site: (reports[site].term, reports[site].version, site))
