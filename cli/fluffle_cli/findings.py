"""What is wrong with a federation or holds it up, in sentences, and what to do about each. Pure.

Each check is a function from a `Standing` to the findings that it has; `findings_of` asks all of them, the
most urgent first. To add one, write such a function and name it in CHECKS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from fluffle_aggregator.goal import known_direction
from fluffle_cli.standing import Standing, progress_of, trend_of_metric, worse_in_words
from fluffle_cli.words import MOST_NAMED, count, duration, in_a_row, number, percent

# Warn of a worker that has more than this many times its share of the examples as weight.
TIMES_ITS_SHARE: Final = 3.0
# With fewer updates a share of the weight says little.
FEWEST_UPDATES: Final = 10
# After so many versions without any evaluation, an evaluator is missing.
MOST_UNEVALUATED: Final = 10
# A worker is silent when nothing was heard of it for so many of its usual intervals between updates, and for
# so many seconds.
SILENT_INTERVALS: Final = 5.0
SILENT_AFTER_S: Final = 60.0
# In synchronous rounds, the slowest worker may take so many times as long as the median of the others.
SLOW: Final = 3.0
# So many updates of each worker may wait while an aggregator is at work.
MOST_WAITING_EACH: Final = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know: a word for programs, a sentence of what was found, and what to do about it."""

    kind: str
    says: str
    do: str = ""


Check = Callable[[Standing], Iterator[Finding]]


def findings_of(standing: Standing) -> list[Finding]:
    """Return what is wrong, the most urgent first; nothing when all is well."""
    return [found for check in CHECKS for found in check(standing)]


def findings_beside_progress(standing: Standing) -> list[Finding]:
    """Return the same for where the sentence of `progress_of` stands already."""
    said = progress_of(standing).says
    return [found for found in findings_of(standing) if found.says != said]


def not_led(standing: Standing) -> Iterator[Finding]:
    """Find that nobody takes in updates."""
    if standing.is_led or standing.is_over:
        return
    waiting = f"; {count(standing.updates_waiting, 'update')} waiting" if standing.updates_waiting else ""
    yield Finding("no-aggregator", f"No aggregator is active{waiting}.", "Start `fluffle aggregator`.")


def evaluations_not_finite(standing: Standing) -> Iterator[Finding]:
    """Find evaluations whose metrics are NaN or infinite."""
    seen = standing.history.evaluations or [each for each in (standing.evaluation,) if each]
    bad = [
        (each.version, name, value)
        for each in seen
        for name, value in each.metrics.items()
        if not math.isfinite(value)
    ]
    if not bad:
        return
    version, name, value = bad[-1]
    versions = len({each for each, _, _ in bad})
    are = "is" if versions == 1 else "are"
    yield Finding(
        "not-finite",
        f"{count(versions, 'evaluation')} {are} not finite: {name} of version {version} is {number(value)}.",
        "The learning rate may be too high, a site's data may hold NaN, or the loss may divide by zero or "
        "take its logarithm.",
    )


def loss_not_finite(standing: Standing) -> Iterator[Finding]:
    """Find workers whose training gives NaN, whether they send it or not."""
    losses = {name: facts.loss for name, facts in standing.workers.items()}
    losses |= {name: each.losses[-1] for name, each in standing.history.rounds.items() if each.losses}
    lost = sorted(name for name, loss in losses.items() if loss is not None and not math.isfinite(loss))
    if lost:
        yield Finding(
            "worker-not-finite",
            f"The training loss of {in_a_row(lost)} is not finite.",
            "Look at the data there (missing values?), and at the learning rate.",
        )


def only_refused(standing: Standing) -> Iterator[Finding]:
    """Find workers of which nothing is in the model."""
    found = {name: facts for name, facts in standing.workers.items() if facts.is_only_refused}
    for name, facts in list(found.items())[:MOST_NAMED]:
        all_of_it = "The only message" if facts.rejected == 1 else f"All {facts.rejected:,} messages"
        was = "was" if facts.rejected == 1 else "were"
        yield Finding(
            "only-refused",
            f"{all_of_it} of {name} {was} refused. The last reason is {facts.refusal.rstrip('.')}.",
            f"Nothing of {name} is in the model: its own log says more, and `fluffle rejected list` too.",
        )
    if (more := len(found) - MOST_NAMED) > 0:
        yield Finding("only-refused", f"Of {count(more, 'more worker')} all messages were refused.")


def sent_twice(standing: Standing) -> Iterator[Finding]:
    """Find workers whose name two processes use, or want to use."""
    twice = sorted(name for name, rounds in standing.history.rounds.items() if rounds.is_of_two)
    for name in twice[:MOST_NAMED]:
        yield Finding(
            "one-name-twice",
            f"Two processes train as {name}: their rounds take turns.",
            "Stop one of them, or give it a name, and a RabbitMQ user, of its own.",
        )
    for name, other in sorted(standing.rivals.items())[:MOST_NAMED]:
        yield Finding(
            "one-name-twice",
            f"Two processes want the name {name}: {other}, was turned away.",
            "Stop it, or give it a name, and a RabbitMQ user, of its own.",
        )


def above_share(standing: Standing) -> Iterator[Finding]:
    """Find workers with far more weight than their examples would give them."""
    if standing.updates < FEWEST_UPDATES:
        return
    found = [each for each in standing.workers.items() if each[1].times_its_share > TIMES_ITS_SHARE]
    found.sort(key=lambda each: -each[1].weight_share)
    for name, facts in found[:MOST_NAMED]:
        yield Finding(
            "above-share",
            f"{name} has {percent(facts.weight_share)} of the weight, but {percent(facts.example_share)} of "
            f"the examples ({facts.examples:,}).",
            "The model learns more from it than its data are worth. Start the aggregators with "
            "--limit-share or --min-examples, and without --weigh-by none.",
        )
    if (more := len(found) - MOST_NAMED) > 0:
        said = f"{count(more, 'more worker')} with over {TIMES_ITS_SHARE:g} times their share as weight."
        yield Finding("above-share", said)


def silent(standing: Standing) -> Iterator[Finding]:
    """Find workers that gave updates, and of which nothing is heard any more."""
    if standing.is_over:
        return
    found = sorted(
        (
            (silent_s, name)
            for name, silent_s in standing.silent_s.items()
            if silent_s > max(SILENT_AFTER_S, SILENT_INTERVALS * _usual_interval_s(standing, name))
        ),
        reverse=True,
    )
    if found:
        waits = "Each version waits for it. " if standing.takes_rounds else ""
        yield Finding(
            "silent",
            f"Nothing was heard of {in_a_row([name for _, name in found])} for {duration(found[0][0])}.",
            f"{waits}Is it at work and connected? Its own log tells.",
        )


def slow(standing: Standing) -> Iterator[Finding]:
    """Find the worker that all others wait for in synchronous rounds."""
    rounds = {name: each.seconds for name, each in standing.history.rounds.items() if each.seconds}
    if standing.is_over or not standing.takes_rounds or len(rounds) < 2:
        return
    slowest = max(rounds, key=lambda name: rounds[name])
    usual_s = median(seconds for name, seconds in rounds.items() if name != slowest)
    if rounds[slowest] > SLOW * usual_s:
        yield Finding(
            "slow-worker",
            f"Each version waits for {slowest}: its round took {duration(rounds[slowest])}, and that of "
            f"others {duration(usual_s)}.",
            "--strategy fedbuff waits for nobody.",
        )


def queue_grows(standing: Standing) -> Iterator[Finding]:
    """Find that the leader cannot keep up."""
    if standing.is_over:
        return
    at_work = sum(1 for facts in standing.workers.values() if facts.updates)
    if standing.is_led and standing.updates_waiting > MOST_WAITING_EACH * max(5, at_work):
        yield Finding(
            "queue-grows",
            f"{count(standing.updates_waiting, 'update')} wait for the aggregator.",
            "It may be too slow: a faster machine, larger buffers, or fewer commits (--commit-every).",
        )


def getting_worse(standing: Standing) -> Iterator[Finding]:
    """Find metrics that have got worse for long: the one that says what is best, and every loss."""
    names = standing.evaluation.metrics if standing.evaluation else {}
    metrics = {name: False for name in names if known_direction(name) is False}
    if standing.yardstick:
        metrics = {standing.yardstick.metric: standing.yardstick.higher_is_better} | metrics
    for metric, higher_is_better in metrics.items():
        found = trend_of_metric(standing, metric, higher_is_better=higher_is_better)
        if found and found[0].course == "worse":
            yield Finding(
                "getting-worse",
                worse_in_words(metric, *found, higher_is_better=higher_is_better),
                "`fluffle model export --version best` has the best version. A lower learning rate, fewer "
                "local epochs or --learning-rate-schedule plateau may help.",
            )


def flat(standing: Standing) -> Iterator[Finding]:
    """Find that the metric that says what is best does not improve any more."""
    progress = progress_of(standing)
    if progress.state == "flat" and not standing.is_over:
        yield Finding(
            "flat", progress.says, "More training of this kind may not help: end it, or change the plan."
        )


def not_evaluated(standing: Standing) -> Iterator[Finding]:
    """Find that nobody measures the versions, or that nobody knows what is better."""
    newest = standing.evaluation
    if newest is None:
        if standing.version >= MOST_UNEVALUATED:
            yield Finding(
                "not-evaluated",
                f"None of {standing.version} versions is evaluated: nobody knows how good the model is.",
                "Start `fluffle evaluator` with held-out data.",
            )
    elif not standing.best_by:
        name = next(iter(newest.metrics), "NAME")
        yield Finding(
            "no-best",
            f"No version is called best: nothing says whether more or less {name} is better.",
            f'Start the aggregators with --best "{name}:max" or --best "{name}:min".',
        )


CHECKS: Final[Sequence[Check]] = (
    *(not_led, evaluations_not_finite, loss_not_finite, only_refused, sent_twice, above_share),
    *(silent, slow, queue_grows, getting_worse, flat, not_evaluated),
)


def _usual_interval_s(standing: Standing, name: str) -> float:
    facts = standing.workers.get(name)
    return standing.training_s / facts.updates if facts and facts.updates else 0.0
