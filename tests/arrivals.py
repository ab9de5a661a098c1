"""Updates that arrive one after the other at strategies that keep them, and a leader that takes over."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from builders import an_update, float32s

from fluffle.model import Vector
from fluffle.record import MomentsRecord, Rank
from fluffle.record_wire import decode_record, moments_pieces
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.sections import NOTHING, Section
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_aggregator.strategies.strategy import Strategy
from fluffle_aggregator.update_cache import UpdateCache


@dataclass(frozen=True)
class Arrival:
    """One update, by a worker."""

    worker: str
    values: Vector
    examples: int = 1


def strategy_of(name: str, *, buffer_size: int = 1, codec: str = "float32", **settings: object) -> Strategy:
    given = {"buffer_size": buffer_size, "cache_codec": codec, "weigh_by": "none", **settings}
    return STRATEGIES[name].model_validate(given).make()


def fold(model: GlobalModel, come: Sequence[Arrival]) -> None:
    """Fold updates, each of which started from the newest version."""
    for arrival in come:
        known = model.contributors.get(arrival.worker)
        sequence = known.updates + 1 if known else 1
        update = an_update(arrival.worker, sequence, base_version=model.version, examples=arrival.examples)
        model.fold(replace(update, vector=float32s(arrival.values)), now=0.0)


def taken_over(model: GlobalModel, strategy: Strategy | None = None) -> GlobalModel:
    """Return the model of the next leader, which reads what this one has published."""
    moments = decode_record(bytes(moments_pieces(model.moments_at(Rank(1, model.version)))))
    assert isinstance(moments, MomentsRecord)
    record = model.next_record(now=0.0)
    return GlobalModel(
        replace(record, vector=record.vector.copy()),
        moments,
        strategy=strategy or model.strategy,
        plan=model.plan,
        goal=Goal(),
        term=1,
    )


def mean_of(cache: UpdateCache) -> Vector:
    """Return the mean of what is kept, as the next step would take it."""
    return cache.mean([Section(0, cache.size, NOTHING)])


def moments_of(model: GlobalModel) -> bytes:
    return bytes(moments_pieces(model.moments_at(Rank(1, 0))))
