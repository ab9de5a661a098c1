"""What the log is to say at a takeover, and after an update was folded. Pure."""

from fluffle_aggregator.accumulators import FEWEST_TO_COMPARE
from fluffle_aggregator.effects import Effect, warning
from fluffle_aggregator.gates.gate import Incoming
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.missing import in_words


def told_at_takeover(model: GlobalModel) -> list[Effect]:
    """Return the warnings of a leader that does not go on as the one before."""
    effects: list[Effect] = []
    record = model.record
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
        for worker, why in model.take_forgotten()
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
    if elements := model.take_left_out():
        line = warning(
            "the first layers did not move: too few updates of the buffer have them",
            elements=elements,
            because=f"rule {model.strategy.rule} needs {FEWEST_TO_COMPARE}: raise --buffer-size, or "
            "let more workers train the whole model",
        )
        effects.append(line)
    return effects
