"""A view of a federation in plain types, for `fluffle status --json` and the live page. Pure.

The keys stay: they are documented in docs/reference/state.md. What is not known is null.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from fluffle.record import Evaluation
from fluffle_cli.history import EvaluatedVersion
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.privacy import spent_privacy
from fluffle_cli.watching.progress import progress_of
from fluffle_cli.watching.sealed import sealed_model
from fluffle_cli.watching.sites import sites_of
from fluffle_cli.watching.view import USUAL_METRICS, FederationView, QueueStates, Version

# Of an evaluation with more metrics, the page draws the first ones.
MOST_METRICS: Final = 4
OF_THE_VIEW: Final = (
    *("federation", "taken_at", "trouble", "updates_per_s", "leader", "standbys", "knows_standbys"),
    *("parts", "helpers"),
    *("metric", "commit_s", "sent_bytes", "plain_bytes", "staleness", "reasons", "after_the_end"),
)
OF_THE_RECORD: Final = (
    *("closing", "finished", "strategy", "parameters", "updates", "rejected", "best_by", "target_held"),
    *("elapsed_s", "training_s", "average_decay"),
)


def as_json(view: FederationView) -> dict[str, object]:
    """Return all but the workers, of which there may be thousands."""
    newest = view.newest or Version(federation=view.federation, version=-1, term=0)
    metrics, faults = metric_names(view.evaluations, view.metric), view.policy_faults
    known: dict[str, object] = {name: getattr(view, name) for name in OF_THE_VIEW}
    known |= {name: getattr(newest, name) for name in OF_THE_RECORD}
    return known | {
        "version": newest.version if view.newest else None,
        "term": newest.term if view.newest else None,
        "plan": asdict(newest.plan) if view.newest else None,
        "evaluation": _evaluation(newest.deciding_evaluation, view.evaluation, view.federation),
        "best": _evaluation(newest.best, view.best, view.federation),
        "progress": asdict(progress_of(view)),
        "findings": [asdict(found) for found in findings_of(view)],
        "queues": asdict(view.queues or QueueStates()),
        "policy_faults": None if faults is None else [fault.as_json() for fault in faults],
        "workers_in_model": sum(1 for each in view.workers.values() if each.updates),
        "first_term": newest.terms[0].term if newest.terms else None,
        "survey": asdict(view.open_survey or newest.survey) if newest.survey else None,
        "last_sum": asdict(newest.last_sum) if newest.last_sum else None,
        "privacy": asdict(privacy) if (privacy := spent_privacy(view.newest)) else None,
        "sealed": asdict(sealed) if (sealed := sealed_model(view.newest)) else None,
        "terms": [asdict(each) for each in view.terms],
        "metrics": metrics,
        "evaluations": [
            [each.version, each.seconds, *(each.metrics.get(name) for name in metrics)]
            for each in view.evaluations
        ],
        "activity": [
            [each.at, each.updates / each.seconds if each.seconds else 0.0, each.waiting, each.commit_s]
            for each in view.activity
        ],
        "refusals": [asdict(each) for each in view.refusals],
        "sites": sites_of(view),
    }


def with_workers(view: FederationView) -> dict[str, object]:
    """Return the same with `workers`, an object for each by its name."""
    return as_json(view) | {"workers": {name: asdict(each) for name, each in view.workers.items()}}


def metric_names(evaluations: Sequence[EvaluatedVersion], shown: str | None = None) -> list[str]:
    """Return the metrics that are drawn: the one that is shown, the usual ones, and at most MOST_METRICS."""
    seen = dict.fromkeys(name for each in evaluations for name in each.metrics)
    first = [*([shown] if shown else []), *USUAL_METRICS]
    return sorted(seen, key=lambda name: [*first, name].index(name))[:MOST_METRICS]


def _evaluation(
    recorded: Evaluation | None, seen: EvaluatedVersion | None, federation: str
) -> dict[str, object] | None:
    """Return an evaluation, and after how many seconds of training its version was there.

    One that no record has yet is known from an event, which does not say whose it is.
    """
    if seen is None:
        return None
    if recorded and recorded.version == seen.version:
        return asdict(recorded) | {"seconds": seen.seconds}
    return {"federation": federation, "evaluator": None, "evaluate_s": None} | asdict(seen)
