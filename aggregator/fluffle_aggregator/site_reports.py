"""The newest evaluation of each site, and when all of them together make one of the model. Pure.

docs/decisions/0026 says why it is as it is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from fluffle.record import EarlyStopState, Evaluation, ModelVersion
from fluffle.sites import (
    SITES,
    SPREAD,
    WORST,
    Gain,
    SiteEvaluation,
    SiteMetric,
    SiteReport,
    metric_over_sites,
    over_sites,
    site_metric_in,
    within_room,
)
from fluffle_aggregator.goal import Goal, Yardstick
from fluffle_aggregator.judging import Comparison, metrics_over_sites, worst_of

# In so many evaluations a report counts at most: a worker that takes more than so many times as long as the
# others no longer holds the mean to what it once measured.
MOST_COUNTED = 50


class SiteReports:
    """What sites have reported, as it goes into the next record.

    `fresh` counts the reports since the last evaluation by all sites. `dropped` are the sites for whose
    reports a record has no room.
    """

    def __init__(self, record: ModelVersion) -> None:
        """Go on from a record."""
        self.reports = dict(record.sites)
        self.fresh = record.site_reports
        self.dropped: list[str] = []
        # Also of sites that no longer count: none of them comes back with something older.
        self._last = {site: (report.term, report.version) for site, report in record.sites.items()}

    def take_in(self, found: SiteEvaluation, *, elapsed_s: float) -> bool:
        """Take in an evaluation, and return whether it is new; one that is not newer changes nothing."""
        known = self.reports.get(found.worker)
        rank = found.term, found.version
        last = self._last.get(found.worker)
        is_newer = last is None or rank > last or (known is None and rank == last)
        is_tuned = bool(found.tuned) and (
            is_newer or (known is not None and rank == last and not _has_gains(known))
        )
        if not is_newer and not is_tuned:
            return False
        report = (
            SiteReport(found.term, found.version, found.examples, found.metrics, found.evaluate_s)
            if is_newer or known is None
            else known
        )
        if is_tuned:
            report = replace(report, gains_version=found.version, gains=_gains(found))
        elif known is not None:
            report = replace(report, gains_version=known.gains_version, gains=known.gains)
        if known is not None:
            report = replace(report, best=known.best, reference=known.reference)
        self.reports[found.worker] = replace(report, heard_s=elapsed_s)
        self._last[found.worker] = rank
        self.fresh += is_newer
        self.reports, self.dropped = within_room(self.reports)
        return True

    def note_heard(self, worker: str, *, elapsed_s: float) -> None:
        """Note that a worker has sent something else."""
        if report := self.reports.get(worker):
            self.reports[worker] = replace(report, heard_s=elapsed_s)

    def silent(self, *, elapsed_s: float, for_s: float) -> list[str]:
        """Return the sites from which nothing has come for so long."""
        return [site for site, report in self.reports.items() if elapsed_s - report.heard_s >= for_s]

    def forget(self, sites: Iterable[str]) -> None:
        """Let sites no longer count, since their workers have left."""
        for site in sites:
            self.reports.pop(site, None)

    def evaluation(self, draft: ModelVersion, goal: Goal) -> Evaluation | None:
        """Return the evaluation by all sites if it is time for one, else None.

        That is when as many reports have come as there are sites, and the sites with half of the examples
        have evaluated a newer version than at the last one. Version 0 does not count: nobody has trained it,
        and the first site to report it may be alone.
        """
        before = draft.site_evaluation
        if not self.reports or self.fresh < len(self.reports):
            return None
        version = median_version(self.reports.values())
        if version <= (before.version if before else 0):
            return None
        found = self._evaluation(draft, goal, self.reports, version)
        self.fresh = 0
        counted = {site: replace(each, counted=each.counted + 1) for site, each in self.reports.items()}
        self.reports = {site: each for site, each in counted.items() if each.counted < MOST_COUNTED}
        return found

    def last_evaluation(self, draft: ModelVersion, goal: Goal, version: int) -> Evaluation | None:
        """Return the evaluation of the last version by the sites that have reported it, None without any."""
        reports = {site: each for site, each in self.reports.items() if each.version >= version}
        return self._evaluation(draft, goal, reports, version) if reports else None

    def compare(
        self, draft: ModelVersion, evaluation: Evaluation, goal: Goal, *, least_version: int
    ) -> Comparison:
        """Compare an evaluation with the best one, over the sites that have evaluated both versions.

        Sites come and go: with others, a mean may change though the model is the same. Sites whose report is
        of an earlier version than `least_version` are left out.
        """
        yardstick = goal.yardstick(evaluation.metrics)
        if yardstick is None:
            return Comparison(is_better=False, early_stop=draft.early_stop)
        name = site_metric_in(yardstick.metric)
        now = {
            site: metric
            for site, report in self.reports.items()
            if report.version >= least_version and (metric := report.metric(name)) and metric.count
        }
        gain = self._gain(yardstick, now, {site: self.reports[site].best for site in now})
        is_better = gain > 0
        early_stop, is_reference = draft.early_stop, False
        if goal.patience is not None:
            gain = self._gain(yardstick, now, {site: self.reports[site].reference for site in now})
            is_reference = gain > goal.min_delta
            # Without a site in common nothing is known of a gain, nor of its lack.
            misses = 0 if is_reference and gain < math.inf else early_stop.misses + (not is_reference)
            early_stop = EarlyStopState(None, misses)
        for site, metric in now.items():
            report = self.reports[site]
            # A site that is new is compared with what it had when it came.
            is_best = is_better or not _is_of(report.best, name)
            is_kept = goal.patience is not None and (is_reference or not _is_of(report.reference, name))
            self.reports[site] = replace(
                report,
                best=metric if is_best else report.best,
                reference=metric if is_kept else report.reference,
            )
        return Comparison(is_better=is_better, early_stop=early_stop)

    def _gain(
        self, yardstick: Yardstick, now: Mapping[str, SiteMetric], before: Mapping[str, SiteMetric | None]
    ) -> float:
        """Return by how much a metric is better.

        That is infinite where no site has both values, and minus infinity where the new one is not finite.
        """
        both = {
            site: (metric, earlier)
            for site, metric in now.items()
            if (earlier := before[site]) and _is_of(earlier, metric.name)
        }
        examples = {site: self.reports[site].examples for site in now}
        if not both:
            value = _value(yardstick, now, examples)
            return math.inf if math.isfinite(value) else -math.inf
        if not yardstick.metric.startswith(WORST):
            both = {
                site: each
                for site, each in both.items()
                if all(math.isfinite(metric.value) for metric in each)
            }
        values = [
            _value(yardstick, {site: each[which] for site, each in both.items()}, examples)
            for which in (0, 1)
        ]
        if not math.isfinite(values[0]):
            return -math.inf
        gain = values[0] - values[1] if yardstick.higher_is_better else values[1] - values[0]
        return gain if math.isfinite(gain) else math.inf

    def missing(self, version: int) -> list[str]:
        """Return the sites that have not evaluated a version, nor a later one."""
        return sorted(site for site, each in self.reports.items() if each.version < version)

    def without(self, metric: str) -> list[str]:
        """Return the sites that do not say what a metric is there, and those where it is not finite."""
        name = site_metric_in(metric)
        found = []
        for site, report in self.reports.items():
            here = [each for each in report.metrics if each.name == name]
            if not here or (here[0].count and not math.isfinite(here[0].value)):
                found.append(site)
        return sorted(found)

    def _evaluation(
        self, draft: ModelVersion, goal: Goal, reports: dict[str, SiteReport], version: int
    ) -> Evaluation:
        longest_s = max(each.evaluate_s for each in reports.values())
        metrics = metrics_over_sites(over_sites(reports), goal)
        return Evaluation(draft.federation, SITES, version, metrics, longest_s)


def _is_of(kept: SiteMetric | None, name: str) -> bool:
    return kept is not None and kept.name == name


def _value(yardstick: Yardstick, metrics: Mapping[str, SiteMetric], examples: Mapping[str, int]) -> float:
    found = metric_over_sites(site_metric_in(yardstick.metric), metrics, examples)
    if yardstick.metric.startswith(WORST):
        return worst_of(found, higher_is_better=yardstick.higher_is_better)
    return found.spread if yardstick.metric.startswith(SPREAD) else found.mean


def median_version(reports: Iterable[SiteReport]) -> int:
    """Return the version such that sites with half of the examples have evaluated it, or a later one."""
    by_version = sorted((each.version, each.examples) for each in reports)
    half, passed = sum(examples for _, examples in by_version) / 2, 0
    for version, examples in by_version:
        passed += examples
        if passed >= half:
            return version
    return 0


def _has_gains(report: SiteReport) -> bool:
    return bool(report.gains) and report.gains_version == report.version


def _gains(found: SiteEvaluation) -> tuple[Gain, ...]:
    before = {each.name: each.value for each in found.metrics}
    return tuple(
        Gain(each.name, before[each.name], each.value) for each in found.tuned if each.name in before
    )
