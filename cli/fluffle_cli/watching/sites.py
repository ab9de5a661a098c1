"""What each site has measured of the versions that it received, and what that is over all of them. Pure."""

import math
from dataclasses import asdict, dataclass
from typing import Final

from fluffle.sites import SPREAD, OverSites, SiteReport, over_sites, site_metric_in
from fluffle_aggregator.goal import known_direction
from fluffle_cli.watching.view import USUAL_METRICS, FederationView

# So many sites are shown one by one, the worst first.
MOST_SITES: Final = 50
MOST_SITE_METRICS: Final = 6


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site: the version that it has evaluated, how many versions ago that is, and its metrics.

    `before` and `after` are the values of the metric that is shown, of the last version after which the site
    has evaluated what its own round made of it; None where it has not.
    """

    name: str
    version: int
    age: int
    examples: int
    evaluate_s: float
    metrics: dict[str, float]
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class SitesTable:
    """All sites: each metric over them, the one that is shown first, and the rows of the worst ones.

    `gain` is by how much the sites' own rounds change the metric that is shown, in the mean over examples.
    """

    shown: str
    over: list[OverSites]
    rows: list[SiteRow]
    sites: int
    gain: float | None


def sites_table(view: FederationView) -> SitesTable | None:
    """Return what the newest record knows of the sites; None when none has reported."""
    newest = view.newest
    if newest is None or not newest.sites:
        return None
    over = over_sites(newest.sites)
    shown = metric_of_sites(view, list(over))
    names = sorted(over, key=lambda name: [shown, *USUAL_METRICS, name].index(name))
    higher_is_better = direction_of(view, shown)

    def badness(item: tuple[str, SiteReport]) -> tuple[bool, float, str]:
        value = _value(item[1], shown)
        is_known = math.isfinite(value)
        return is_known, (value if higher_is_better else -value) if is_known else 0.0, item[0]

    worst_first = sorted(newest.sites.items(), key=badness)
    rows = [_row(name, report, shown, names, newest.version) for name, report in worst_first]
    gains = [
        (each.after - each.before, each.examples)
        for each in rows
        if each.before is not None and each.after is not None and math.isfinite(each.after - each.before)
    ]
    examples = sum(count for _, count in gains)
    gain = sum(change * count for change, count in gains) / examples if examples else None
    shown_over = [over[name] for name in names[:MOST_SITE_METRICS]]
    return SitesTable(shown, shown_over, rows[:MOST_SITES], len(rows), gain)


def metric_of_sites(view: FederationView, names: list[str]) -> str:
    """Return which of the sites' metrics is shown: the one that counts, a usual one, or the first."""
    counts = site_metric_in(view.metric) if view.metric else ""
    return next((name for name in (counts, *USUAL_METRICS) if name in names), names[0])


def direction_of(view: FederationView, metric: str) -> bool:
    """Return whether more of a metric of the sites is better; more, if nothing says it."""
    by = view.yardstick
    if by and site_metric_in(by.metric) == metric and not by.metric.startswith(SPREAD):
        return by.higher_is_better
    return known_direction(metric) is not False


def sites_of(view: FederationView) -> dict[str, object] | None:
    """Return the same for programs: null before any site has reported."""
    table = sites_table(view)
    if table is None:
        return None
    return {
        "metric": table.shown,
        "sites": table.sites,
        "gain": table.gain,
        "over": [asdict(each) for each in table.over],
        "rows": [asdict(each) for each in table.rows],
    }


def _row(name: str, report: SiteReport, shown: str, names: list[str], newest: int) -> SiteRow:
    gain = next((each for each in report.gains if each.name == shown), None)
    return SiteRow(
        name,
        report.version,
        max(0, newest - report.version),
        report.examples,
        report.evaluate_s,
        {metric: _value(report, metric) for metric in names[:MOST_SITE_METRICS]},
        gain.before if gain else None,
        gain.after if gain else None,
    )


def _value(report: SiteReport, name: str) -> float:
    found = report.metric(name)
    return found.value if found else math.nan
