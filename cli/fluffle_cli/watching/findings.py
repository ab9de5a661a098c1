"""What is wrong with a federation or holds it up, in sentences, and what to do about each. Pure.

Each check is a function from a view to the findings that it has; `findings_of` asks all of them, the most
urgent first. To add one, write such a function and name it in CHECKS.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from fluffle.sites import SPREAD, WORST, over_sites
from fluffle_aggregator.goal import known_direction
from fluffle_cli.watching.progress import progress_of, trend_of_metric, worse_in_words
from fluffle_cli.watching.view import FederationView
from fluffle_cli.words import MOST_NAMED, count, duration, in_a_row, number, percent

NO_SITE_OF_A_SUM: Final = "The goal is measured at the sites, and in no sum has any of them evaluated."
HOW_TO_HOLD_OUT: Final = "Start them with --local-validation 0.2, or give the task validation_data."
# Warn of a worker that has more than this many times its share of the examples as weight.
TIMES_ITS_SHARE: Final = 3.0
# With fewer updates a share of the weight says little.
FEWEST_UPDATES: Final = 10
# After this many versions without any evaluation, an evaluator is missing.
MOST_UNEVALUATED: Final = 10
# A worker is silent when nothing was heard from it for this many of its usual intervals between updates,
# and for this many seconds.
SILENT_INTERVALS: Final = 5.0
SILENT_AFTER_S: Final = 60.0
# In synchronous rounds, the slowest worker may take this many times as long as the median of the others.
SLOW: Final = 3.0
# While an aggregator is at work, at most this many updates of each worker may wait.
MOST_WAITING_EACH: Final = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know: a word for programs, a sentence of what was found, and what to do about it."""

    kind: str
    says: str
    do: str = ""


Check = Callable[[FederationView], Iterator[Finding]]


def findings_of(view: FederationView) -> list[Finding]:
    """Return what is wrong, the most urgent first; nothing when all is well."""
    return [found for check in CHECKS for found in check(view)]


def findings_beside_progress(view: FederationView) -> list[Finding]:
    """Return the same for where the sentence of `progress_of` stands already."""
    said = progress_of(view).says
    return [found for found in findings_of(view) if found.says != said]


def _no_aggregator(view: FederationView) -> Iterator[Finding]:
    if view.queues and not view.queues.aggregator_active and not view.is_over:
        messages = view.queues.updates_waiting
        waiting = f"; {count(messages, 'message')} waiting" if messages else ""
        yield Finding("no-aggregator", f"No aggregator is active{waiting}.", "Start `fluffle aggregator`.")


def _survey_open(view: FederationView) -> Iterator[Finding]:
    if (survey := view.open_survey) and not view.is_over:
        do = "Workers train when it has ended; `fluffle survey` says who has answered."
        yield Finding("survey", f"The survey is open: {survey.in_words}.", do)


def _sum_waits(view: FederationView) -> Iterator[Finding]:
    if view.sum_waits and not view.is_over:
        do = "Start the helpers that are missing, or more workers."
        yield Finding("sum-waits", f"Secure aggregation waits: {view.sum_waits}.", do)


def _helpers_absent(view: FederationView) -> Iterator[Finding]:
    if view.queues and (absent := view.queues.absent_helpers) and not view.is_over:
        is_, it = ("is", "it") if len(absent) == 1 else ("are", "them")
        yield Finding(
            "helpers-absent",
            f"{in_a_row(absent)} opened the last sum, and {is_} not connected.",
            f"Start {it} again: without enough helpers the federation waits.",
        )


def _sum_given_up(view: FederationView) -> Iterator[Finding]:
    last = view.newest.last_sum if view.newest else None
    if last and last.given_up:
        do = "Its updates are in F.rejected; the logs of the helpers say more."
        yield Finding("sum-given-up", f"The last sum was given up: {last.given_up}.", do)


def _contradicting(view: FederationView) -> Iterator[Finding]:
    if view.contradicting:
        do = "Look at their machines and logs. `fluffle keys rotate` makes new keys for the helpers."
        yield Finding("contradicting", f"Helpers answered otherwise than others: {view.contradicting}.", do)


def _suspected(view: FederationView) -> Iterator[Finding]:
    known = view.newest.contributors if view.newest else {}
    if suspected := {name: one.suspected for name, one in known.items() if one.suspected}:
        most = max(suspected.values())
        names = in_a_row(sorted(name for name, times in suspected.items() if times == most))
        do = "One of them is broken or hostile: the operator can revoke it with `fluffle keys registry`."
        yield Finding("suspected", f"Most sums that could not be used had updates of {names} ({most}).", do)


def _evaluations_not_finite(view: FederationView) -> Iterator[Finding]:
    seen = view.evaluations or [each for each in (view.evaluation,) if each]
    bad = [
        (each.version, name, value)
        for each in seen
        for name, value in each.metrics.items()
        # Of the sites that are not finite, the next finding has the names.
        if not math.isfinite(value) and not name.startswith((WORST, SPREAD))
    ]
    if bad:
        version, name, value = bad[-1]
        are = count(len({each for each, *_ in bad}), "evaluation is", "evaluations are")
        yield Finding(
            "not-finite",
            f"{are} not finite: {name} of version {version} is {number(value)}.",
            "The learning rate may be too high, a site's data may hold NaN, or the loss may divide by zero "
            "or take its logarithm.",
        )


def _sites_not_finite(view: FederationView) -> Iterator[Finding]:
    found = over_sites(view.newest.sites) if view.newest else {}
    for each in found.values():
        if each.not_finite:
            yield Finding(
                "site-not-finite",
                f"{each.name} is not finite at {in_a_row(each.not_finite)}: a target of it counts as missed.",
                "It is in no mean. Look at the data that the site holds out: missing values?",
            )


def _sites_that_hold_out_nothing(view: FederationView) -> Iterator[Finding]:
    if view.newest is None or not view.newest.plan.sites_decide or view.is_over:
        return
    if view.newest.plan.secure:
        # Nobody knows which sites hold out data, only whether any of a sum does.
        updates = sum(each.updates for each in view.workers.values())
        if view.newest.site_evaluation is None and updates >= FEWEST_UPDATES:
            yield Finding("site-not-evaluated", NO_SITE_OF_A_SUM, HOW_TO_HOLD_OUT)
        return
    sites = view.newest.sites
    without = [each.name for each in view.workers.values() if each.updates and each.name not in sites]
    without = [name for name in without if not view.workers[name].state.startswith("left")]
    if without and (sites or sum(each.updates for each in view.workers.values()) >= FEWEST_UPDATES):
        of = f"{len(without)} of {count(len(without) + len(sites), 'worker')}"
        yield Finding(
            "site-not-evaluated",
            f"The goal is measured at the sites, and {of} evaluate nothing: {in_a_row(without)}.",
            HOW_TO_HOLD_OUT,
        )


def _loss_not_finite(view: FederationView) -> Iterator[Finding]:
    losses = ((each.name, each.loss) for each in view.workers.values() if each.loss is not None)
    if lost := [name for name, loss in losses if not math.isfinite(loss)]:
        yield Finding(
            "worker-not-finite",
            f"The training loss of {in_a_row(lost)} is not finite.",
            "Look at the data there (missing values?), and at the learning rate.",
        )


def _only_refused(view: FederationView) -> Iterator[Finding]:
    found = [each for each in view.workers.values() if each.rejected and not each.updates]
    for each in found[:MOST_NAMED]:
        name = each.name
        said = f"All {each.rejected:,} messages of {name} were" if each.rejected > 1 else ""
        yield Finding(
            "only-refused",
            f"{said or f'The only message of {name} was'} refused. "
            f"The last reason is {each.refusal.rstrip('.')}.",
            f"Nothing of {name} is in the model: see its log, and `fluffle rejected list`.",
        )
    if (more := len(found) - MOST_NAMED) > 0:
        yield Finding("only-refused", f"All messages of {count(more, 'more worker')} were refused.")


def _one_name_twice(view: FederationView) -> Iterator[Finding]:
    twice = [
        f"Two processes train as {each.name}: their rounds take turns."
        for each in view.workers.values()
        if each.is_of_two
    ]
    rivals = [
        f"Two processes want the name {each.name}: {each.rival}, was turned away."
        for each in view.workers.values()
        if each.rival
    ]
    for said in (*twice[:MOST_NAMED], *rivals[:MOST_NAMED]):
        do = "Stop one of them, or give it a name, and a RabbitMQ user, of its own."
        yield Finding("one-name-twice", said, do)


def _above_share(view: FederationView) -> Iterator[Finding]:
    if view.newest is None or view.newest.updates < FEWEST_UPDATES:
        return
    found = [
        (each, share)
        for each in view.workers.values()
        if (share := each.example_share) and each.weight_share / share > TIMES_ITS_SHARE
    ]
    found.sort(key=lambda pair: -pair[0].weight_share)
    for each, share in found[:MOST_NAMED]:
        yield Finding(
            "above-share",
            f"{each.name} has {percent(each.weight_share)} of the weight, but {percent(share)} "
            f"of the examples ({each.examples or 0:,}).",
            "The model learns more from it than its data are worth. Start the aggregators with "
            "--limit-share or --min-examples, and without --weigh-by none.",
        )
    if (more := len(found) - MOST_NAMED) > 0:
        said = f"{count(more, 'more worker')} with over {TIMES_ITS_SHARE:g} times their share as weight."
        yield Finding("above-share", said)


def _parts_alone(view: FederationView) -> Iterator[Finding]:
    shares = [each.model_share for each in view.workers.values() if each.updates]
    if shares and max(shares) < 1 and not view.is_over:
        yield Finding(
            "parts-alone",
            f"All workers train the last layers alone, at most {percent(max(shares))} of the model: the "
            "layers before them do not change.",
            "Start a worker without --train-share.",
        )


def _silent(view: FederationView) -> Iterator[Finding]:
    if view.newest is None or view.is_over:
        return
    training_s = view.newest.training_s
    found = [
        (each.seen_s, each.name)
        for each in view.workers.values()
        if each.updates and each.seen_s is not None and not each.state.startswith("left")
        if each.seen_s > max(SILENT_AFTER_S, SILENT_INTERVALS * training_s / each.updates)
    ]
    if found:
        found.sort(reverse=True)
        if len(found) == 1:
            has, it, ask = "has", "it", "Is it at work and connected? Its own log says so."
        else:
            has, it, ask = "have", "them", "Are they at work and connected? Their own logs say so."
        waits = f"Each version waits for {it}. " if view.waits_for_all else ""
        yield Finding(
            "silent",
            f"{in_a_row([name for _, name in found])} {has} been silent for {duration(found[0][0])}.",
            f"{waits}{ask}",
        )


def _slow_worker(view: FederationView) -> Iterator[Finding]:
    rounds = sorted((each.round_s, each.name) for each in view.workers.values() if each.round_s)
    if view.is_over or not view.waits_for_all or len(rounds) < 2:
        return
    slowest_s, slowest = rounds.pop()
    usual_s = median(seconds for seconds, _ in rounds)
    if slowest_s > SLOW * usual_s:
        yield Finding(
            "slow-worker",
            f"Each version waits for {slowest}: its round took {duration(slowest_s)}, and that of others "
            f"{duration(usual_s)}.",
            "--strategy fedbuff waits for nobody.",
        )


def _queue_grows(view: FederationView) -> Iterator[Finding]:
    if view.queues is None or not view.queues.aggregator_active or view.is_over:
        return
    at_work = sum(1 for each in view.workers.values() if each.updates)
    if view.queues.updates_waiting > MOST_WAITING_EACH * max(5, at_work):
        yield Finding(
            "queue-grows",
            f"{count(view.queues.updates_waiting, 'message')} wait for the aggregator.",
            "It may be too slow: a faster machine, larger buffers, or fewer commits (--commit-every).",
        )


def _getting_worse(view: FederationView) -> Iterator[Finding]:
    """Look at the metric that says what is best, and at every loss."""
    names = view.evaluation.metrics if view.evaluation else {}
    losses = [name for name in names if known_direction(name) is False and not name.startswith(SPREAD)]
    metrics = dict.fromkeys(losses, False)
    if view.yardstick:
        metrics = {view.yardstick.metric: view.yardstick.higher_is_better} | metrics
    for metric, higher_is_better in metrics.items():
        found = trend_of_metric(view, metric, higher_is_better=higher_is_better)
        if found and found[0].course == "worse":
            advice = "A lower learning rate, fewer local epochs or --learning-rate-schedule plateau may help."
            if view.newest and view.newest.plan.privacy:
                advice = (
                    "The noise of differential privacy adds up in the model: a larger --buffer-size or lower "
                    "--server-learning-rate lets less of it in, see `fluffle privacy plan`."
                )
            yield Finding(
                "getting-worse",
                worse_in_words(metric, higher_is_better, *found),
                f"`fluffle model export --version best` has the best version. {advice}",
            )


def _flat(view: FederationView) -> Iterator[Finding]:
    progress = progress_of(view)
    if progress.state == "flat" and not view.is_over:
        do = "More training of this kind may not help: end it, or change the plan."
        yield Finding("flat", progress.says, do)


def _not_evaluated(view: FederationView) -> Iterator[Finding]:
    if view.newest is None:
        return
    if view.evaluation is None:
        if view.newest.version >= MOST_UNEVALUATED:
            yield Finding(
                "not-evaluated",
                f"None of {view.newest.version} versions is evaluated: nobody knows how good the model is.",
                "Start `fluffle evaluator` with held-out data, or workers with --local-validation.",
            )
    elif not view.newest.best_by:
        name = next(iter(view.evaluation.metrics), "NAME")
        yield Finding(
            "no-best",
            f"No version is called best: nothing says whether more or less {name} is better.",
            f'Start the aggregators with --best "{name}:max" or --best "{name}:min".',
        )
    elif view.yardstick and view.yardstick.metric not in view.evaluation.metrics:
        yield Finding(
            "no-metric",
            f"The evaluations have no {view.yardstick.metric}, by which versions are compared: they have "
            f"{in_a_row(sorted(view.evaluation.metrics))}.",
            "Start the aggregators with a --target or --best that names one of these.",
        )


CHECKS: Final[Sequence[Check]] = (
    *(_no_aggregator, _survey_open),
    *(_sum_waits, _helpers_absent, _sum_given_up, _contradicting, _suspected),
    *(_evaluations_not_finite, _sites_not_finite, _sites_that_hold_out_nothing),
    *(_loss_not_finite, _only_refused, _one_name_twice),
    *(_above_share, _parts_alone, _silent, _slow_worker, _queue_grows, _getting_worse, _flat, _not_evaluated),
)
