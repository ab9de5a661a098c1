"""What came out of the federations of a run, in words: by strategy over all seeds, and seed by seed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from fluffle_aggregator.goal import Target
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.over_seeds import Spread, band, median_speedup, worst_speedup
from fluffle_cli.report.run import FederationRun, Run
from fluffle_cli.words import count, number

UNKNOWN: Final = "unknown"
Curve = list[tuple[float, ...]]


def results(runs: Sequence[FederationRun], metric: str, goal: Target | None) -> dict[str, str]:
    """Return what came out of runs of one strategy, in words: of several, the median with the range.

    By this metric, and with the seconds until this goal held if there is one.
    """
    held = Spread.of([each.held_s(goal) for each in runs]) if goal else None
    best = [each.last.best.metrics.get(metric, math.nan) if each.last.best else math.nan for each in runs]
    version = f" (version {runs[0].last.best.version})" if len(runs) == 1 and runs[0].last.best else ""
    said_best = _said(best, number)
    late = [[one.staleness for each in run.versions for one in each.folded] for run in runs]
    return {
        f"final {metric}": _said(map(_final(metric), runs), number) or UNKNOWN,
        "best": said_best and said_best + version,
        **({f"{goal} held from": held.in_words(_seconds, never=never(runs))} if held else {}),
        "training took": _said((each.seconds for each in runs), _seconds),
        "versions": _said((each.last.version for each in runs), _whole),
        "updates": _said((each.last.updates for each in runs), _whole),
        "mean staleness": _said((sum(each) / len(each) if each else math.nan for each in late), _two_digits),
        "refused": _said((each.last.rejected for each in runs), _whole),
    }


def never(runs: Iterable[FederationRun]) -> str:
    """Return what is said of runs whose target never held."""
    return f"not within {max(each.seconds for each in runs):.0f} s"


def curve(runs: Sequence[FederationRun], metric: str) -> Curve:
    """Return (seconds, value) of one run; of several (seconds, median, least, largest), as `band` does."""
    curves = [each.curve(metric) for each in runs]
    return list(curves[0]) if len(curves) == 1 else list(band(curves))


def central(run: Run) -> str:
    """Return the final metric of the model that was trained in one place; empty if that is unknown."""
    found = run.about.central.get(run.metric)
    return "" if found is None else number(found)


def verdict(run: Run) -> str:
    """Say which of two groups is the faster one; empty for a run that is no comparison."""
    names = list(run.groups)
    if len(names) != 2:
        return ""
    is_synchronous = names[0] in STRATEGIES and STRATEGIES[names[0]].is_synchronous
    first = f"synchronous {names[0]}" if is_synchronous else names[0]
    second, target = names[1], run.about.target
    found = list(run.speedups.values())
    if not found:
        return f"{second} and {first}"
    middle, worst, seeds = median_speedup(found), worst_speedup(found), count(len(found), "seed")
    reached = sum(1 for each in found if each.times)
    if not middle.times:
        missed_by = f" with {len(found) - reached} of {seeds}" if len(found) > 1 else ""
        return f"{second} does not reach {target}{missed_by}"
    if len(found) == 1 and middle.times < 1:
        return f"{first} reaches {target} {1 / middle.times:.1f} times as fast as {second}"
    said = f"{second} reaches {target} {middle} times as fast as {first}"
    if len(found) == 1:
        return said
    least = f"{worst} times in the worst" if worst.times else f"it reaches it with {reached} of them"
    return f"{said} in the median of {seeds}, and {least}"


def seeds_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of what each seed gave; no rows when there is one seed, or no target."""
    goal, groups = run.goal, run.groups
    seeds = list(dict.fromkeys(seed for group in groups.values() for seed in group))
    if goal is None or len(seeds) < 2:
        return [], []
    found = run.speedups
    heads = ["seed", *(f"{name} held from" for name in groups), *(["times as fast"] if found else [])]
    rows = [
        [
            str(seed),
            *(_held_from(group, seed, goal) for group in groups.values()),
            *([str(found.get(seed, ""))] if found else []),
        ]
        for seed in seeds
    ]
    return heads, rows


def missed(run: Run) -> list[FederationRun]:
    """Return the federations that ended without holding the run's target."""
    return [each for each in run.federations if each.seconds_to(run.goal) is None]


def name_of(one: FederationRun, run: Run) -> str:
    """Return a name for one federation of a run, with its seed if there are several."""
    several = len({each.about.seed for each in run.federations}) > 1
    return f"{one.name}, seed {one.about.seed}" if several else one.name


def _held_from(group: Mapping[int | None, FederationRun], seed: int | None, goal: Target) -> str:
    if seed not in group:
        return ""
    seconds = group[seed].seconds_to(goal)
    return never([group[seed]]) if seconds is None else _seconds(seconds)


def _final(metric: str) -> Callable[[FederationRun], float]:
    return lambda run: (run.curve(metric) or [(0.0, math.nan)])[-1][1]


def _said(values: Iterable[float], say: Callable[[float], str]) -> str:
    spread = Spread.of(list(values))
    return spread.in_words(say) if spread else ""


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}"
