"""Updates that hold the last tensors of a model alone, and a model that takes them in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from builders import (
    FEDERATION,
    a_model,
    a_vector,
    a_version,
    an_update,
    float32s,
)
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluffle.broker import Delivery
from fluffle.codecs.tail import tail_of
from fluffle.compression import CompressedVector
from fluffle.model import Layout, TensorSpec, Vector
from fluffle.plan import Sends
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_record, encode_version
from fluffle.topology import topology_of
from fluffle.update import WeightUpdate
from fluffle.wire import encode_update
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.intake import TakenIn, take_in
from fluffle_aggregator.sections import Weight
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts

# Two trained tensors, each with statistics behind it.
LAYOUT = Layout(
    (
        TensorSpec("conv/kernel", (2, 2), "float32"),
        TensorSpec("norm/mean", (2,), "float32", "statistic"),
        TensorSpec("norm/count", (), "int32", "statistic"),
        TensorSpec("dense/kernel", (3,), "float32"),
        TensorSpec("last/mean", (1,), "float32", "statistic"),
        TensorSpec("last/count", (), "int32", "statistic"),
    )
)
FIRST = 3
EARLY, LATE = slice(0, 4), slice(4, 7)
WORKERS = ("a", "b", "c")
TOPOLOGY = topology_of(FEDERATION)

vectors = arrays(np.float32, LAYOUT.size, elements=st.floats(-8.0, 8.0, width=32))


@dataclass(frozen=True)
class Arrival:
    """One update, by a worker; `is_part` says that it has no more than the last tensors."""

    worker: str
    values: Vector
    is_part: bool
    examples: int = 1
    late: int = 0


arrivals = st.lists(
    st.builds(
        Arrival, st.sampled_from(WORKERS), vectors, st.booleans(), st.integers(1, 100), st.integers(0, 3)
    ),
    min_size=1,
    max_size=12,
)


def an_arrived(one: Arrival, sequence: int, base_version: int, sends: Sends = "delta") -> WeightUpdate:
    """Return the update of an arrival, as it is on the wire."""
    part = LAYOUT.tail(FIRST if one.is_part else 0)
    statistics = np.array([sequence, 2 * sequence, 3 * sequence], np.float32)
    integers = np.array([sequence, -sequence], "<i4")
    update = an_update(one.worker, sequence, base_version=base_version, examples=one.examples, layout=LAYOUT)
    return replace(
        update,
        base_term=1,
        sends=sends,
        first_tensor=FIRST if one.is_part else 0,
        vector=float32s(one.values[LAYOUT.size - part.size :]),
        statistics=statistics[3 - part.statistics_size :],
        integers=integers.tobytes()[8 - part.integers_size_bytes :],
    )


def a_model_of(strategy: Strategy, values: Sequence[float] = (0.0,) * 7) -> GlobalModel:
    """Return a model of this layout."""
    record = replace(
        a_version(layout=LAYOUT, values=values), statistics=a_vector(7.0, 8.0, 9.0), integers=bytes(8)
    )
    return a_model(strategy, record=record)


def taken_in(model: GlobalModel, come: Sequence[Arrival]) -> None:
    """Pass updates through the gates of a model, and fold them."""
    gates = gates_of(Limits(), model.strategy, TOPOLOGY)
    for sequence, one in enumerate(come, start=model.updates + 1):
        # In synchronous rounds each worker gives one update, and none is late.
        is_synchronous = model.strategy.one_update_per_version
        by = replace(one, worker=f"w{sequence}", late=0) if is_synchronous else one
        update = an_arrived(by, sequence, max(0, model.version - by.late), model.strategy.sends)
        way_in = TOPOLOGY.updates_in.name
        delivery = Delivery(1, encode_update(update), user=by.worker, exchange=way_in)
        taken = take_in(delivery, model, gates, now=0.0)
        assert isinstance(taken, TakenIn), taken


def sent(one: Arrival) -> CompressedVector:
    """Return the vector of an arrival as it comes out of the gates."""
    return tail_of(LAYOUT.size, float32s(one.values[LATE] if one.is_part else one.values))


def weight_of(strategy: Strategy, one: Arrival) -> Weight:
    """Return what an arrival counts in a buffer."""
    weight = strategy.weigh(UpdateFacts(one.late, one.examples, mean_examples=50.0))
    return replace(weight, scale=1 / (one.late + 1)) if strategy.normalizes_steps else weight


def published(model: GlobalModel) -> ModelVersion:
    """Return what a reader of the next record reads."""
    record = decode_record(encode_version(model.next_record(now=0.0)))
    assert isinstance(record, ModelVersion)
    return record
