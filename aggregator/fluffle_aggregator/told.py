"""What the log is to say at a takeover, after an update was folded, and after a commit. Pure."""

from fluffle.events import Committed, Spent, SumSealed, TookOver
from fluffle.record import ModelVersion
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle_aggregator.accumulators import FEWEST_TO_COMPARE
from fluffle_aggregator.effects import Effect, Tell, info, warning
from fluffle_aggregator.gates.gate import Incoming
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.missing import in_words
from fluffle_aggregator.rules import Rule

# A line about a version names its updates if there are no more; `fluffle trace` knows the others too.
MOST_NAMED = 8


def told_at_takeover(model: GlobalModel) -> list[Effect]:
    """Tell of a leader that begins, and warn where it does not go on as the one before."""
    record = model.record
    effects: list[Effect] = [
        info("leading", version=record.version, term=model.term),
        Tell(TookOver(model.term, record.version)),
    ]
    if model.begins_anew:
        line = (
            "the strategy begins anew: what lies beside the newest version (moments, or workers' last "
            "updates) is of another strategy, optimizer or cache_codec"
        )
        effects.append(warning(line, before=record.strategy, now=str(model.strategy)))
    if record.average_decay not in {0.0, model.draft.average_decay}:
        line = "the decay of the versions' average changes with the next version (0: there will be none)"
        decays = {"before": record.average_decay, "now": model.draft.average_decay}
        effects.append(warning(line, **decays))
    return effects


def told_of(incoming: Incoming, model: GlobalModel, skipped: list[range]) -> list[Effect]:
    """Return the warnings that follow from an update; `skipped` are earlier numbers of its run."""
    effects: list[Effect] = []
    name = str(incoming.update.id)
    if skipped:
        line = warning(
            "earlier updates of this worker never came",
            update=name,
            missing=in_words(skipped),
            because="another leader refused them (`fluffle rejected list`), the worker dropped them from "
            "a full spool, or a policy or somebody took them from the queue (`fluffle status`)",
        )
        effects.append(line)
    if incoming.norm_before is not None:
        effects.append(warning("clipped", update=name, norm=incoming.norm_before, to=incoming.norm))
    effects += [
        warning("forgotten: its last update no longer counts", worker=worker, because=why)
        for worker, why in model.forgotten.take(model.cache, model.contributors)
    ]
    effects += [
        warning(
            "the model stands still: its round waits for a worker",
            worker=worker,
            updates_of_others=others,
            because="it has left, or is very slow: start it again, or lower --forget-after",
        )
        for worker, others in (model.cache.take_waits() if model.cache else ())
    ]
    if elements := model.left_out.take():
        line = warning(
            "the first layers did not move: too few updates of the buffer have them",
            elements=elements,
            because=f"rule {model.strategy.rule} needs {FEWEST_TO_COMPARE}: raise --buffer-size, or "
            "let more workers train the whole model",
        )
        effects.append(line)
    return effects


def told_of_commit(record: ModelVersion, took_s: float) -> list[Effect]:
    """Tell of a version that is published."""
    named = record.folded if len(record.folded) <= MOST_NAMED else ()
    staleness = sum(one.staleness for one in record.folded) / max(1, len(record.folded))
    best_version = record.best.version if record.best else -1
    effects: list[Effect] = [
        Tell(
            Committed(
                record.version, record.term, took_s, record.training_s, record.target_held, best_version
            )
        ),
        info(
            "version committed",
            version=record.version,
            term=record.term,
            updates=len(record.folded),
            applied=[str(one.id) for one in named],
            mean_staleness=round(staleness, 2),
        ),
    ]
    if record.plan.privacy and record.privacy:
        updates, steps = record.privacy.most_updates, record.privacy.steps
        promised = record.plan.privacy
        effects.append(Tell(Spent(promised.epsilon_after(updates), updates, steps, promised.mechanism)))
    if record.plan.sealed and record.sealed:
        used = record.sealed.bound(record.plan.sealed) / LARGEST_VALUE
        effects.append(Tell(SumSealed(used, len(record.sealed_sum), record.sealed.refreshes)))
    if record.finished:
        best = {"best_version": best_version, "best_by": record.best_by} if record.best else {}
        line = "the federation has finished"
        effects.append(info(line, because=record.finished, version=record.version, **best))
    return effects


def told_of_few(rule: Rule, updates: int) -> list[Effect]:
    """Warn of a step of so many updates, if the rule needs more to tell an outlier."""
    if not rule.holds_vectors or updates == 0 or updates >= FEWEST_TO_COMPARE:
        return []
    line = f"rule {rule} tells no outlier from fewer than {FEWEST_TO_COMPARE} updates: averaging them"
    return [warning(line, updates=updates)]
