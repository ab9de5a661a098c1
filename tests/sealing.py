"""What tests of sealed federations are made of: an encryption that everybody sees through.

It is as additive as the real one: a value is a number modulo the prime, cut into two random parts. So what an
aggregator does with ciphertexts is tested exactly, and without the library that encrypts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from builders import a_config, a_layout, a_strategy, a_vector, a_version, an_update
from numpy.typing import NDArray

from fluffle.codecs.sealed import SealedVector
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.record import ModelVersion
from fluffle.sealed.parameters import PRIME, SCALE, SLOTS
from fluffle.sealed.part import sealed_part
from fluffle.sealed.plan import SEALED, SealedPlan, SealedRefresh, SealedState
from fluffle.sealed.residues import Residues, add_weighted, negated, pack, unpack, zeros
from fluffle.update import WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.sealed.sealed_model import SealedModel
from fluffle_aggregator.sealed.settings import sealed
from fluffle_aggregator.strategies.strategy import Strategy

KEY = "0123456789abcdef" * 2
OTHER_KEY = "fedcba9876543210" * 2


def encrypted(values: Sequence[float] | NDArray[np.floating], seed: int = 0) -> Residues:
    """Return values in two random parts that come to them."""
    random, residues = np.random.default_rng(seed), zeros(len(values))
    wholes = np.zeros(len(residues) * SLOTS, np.int64)
    wholes[: len(values)] = np.rint(np.asarray(values, np.float64) * SCALE)
    numbers = np.mod(wholes, PRIME).astype(np.uint64).reshape(-1, SLOTS)
    hidden = random.integers(0, PRIME, numbers.shape, np.uint64)
    residues[:, 0, :SLOTS] = hidden
    residues[:, 1, :SLOTS] = (numbers + np.uint64(PRIME) - hidden) % np.uint64(PRIME)
    return residues


def decrypted(residues: Residues, size: int) -> NDArray[np.float64]:
    """Return the values, float64."""
    numbers = (residues[:, 0, :SLOTS] + residues[:, 1, :SLOTS]) % np.uint64(PRIME)
    signed = numbers.astype(np.int64).reshape(-1)[:size]
    signed[signed > PRIME // 2] -= PRIME
    return signed / SCALE


def a_sealed_plan(
    *, clip: float = 4.0, greatest: int = 64, buffer_size: int = 2, only: tuple[str, ...] = ()
) -> SealedPlan:
    """Return the plan of a sealed federation."""
    return SealedPlan(key=KEY, clip=clip, greatest=greatest, buffer_size=buffer_size, only=only)


def a_sealed_update(
    worker: str = "w1",
    sequence: int = 1,
    *,
    base_version: int = 0,
    values: Sequence[float] = (1.0,) * 4,
    key: str = KEY,
    layout: Layout | None = None,
    only: tuple[str, ...] = (),
    loss: float | None = None,
) -> WeightUpdate:
    """Return an encrypted update."""
    layout = layout or a_layout(len(values))
    part, vector = sealed_part(layout, only), a_vector(*values)
    plain = an_update(worker, sequence, base_version=base_version, layout=layout, loss=loss)
    residues = encrypted(part.sealed_of(vector), seed=sequence)
    found = SealedVector.of(residues, part.size, part.open_of(vector))
    return replace(plain, vector=found, codec=SEALED, key=key)


def a_refresh(
    record: ModelVersion, worker: str = "w1", sequence: int = 1, *, largest: float | None = None
) -> WeightUpdate:
    """Return what a worker sends that has decrypted the sum of a version, and encrypted it anew."""
    plan, state = record.plan.sealed, record.sealed
    assert plan, "the version is not sealed"
    assert state, "the version is not sealed"
    size = sealed_part(record.layout, plan.only).size
    before = unpack(record.sealed_sum, size)
    values = decrypted(before, size)
    difference = encrypted(values, seed=sequence + 1000)
    add_weighted(difference, negated(before))
    found = float(np.abs(values).max()) if largest is None else largest
    plain = an_update(worker, sequence, base_version=record.version, layout=record.layout)
    return replace(
        plain,
        base_term=record.term,
        vector=SealedVector.of(difference, size, a_vector()),
        codec=SEALED,
        key=plan.key,
        refresh=SealedRefresh(refreshes=state.refreshes, weights=state.weights, largest=found),
        examples=0,
        steps=0,
    )


def a_sealed_version(
    version: int = 0, values: Sequence[float] = (0.0,) * 4, *, weights: int = 0
) -> ModelVersion:
    """Return the record of a version whose sum has these values."""
    plan, layout = Plan(codec=SEALED, sealed=a_sealed_plan()), a_layout(len(values))
    record = a_version(version, values=(0.5,) * len(values), layout=layout, plan=plan)
    total = pack(encrypted(values)) if weights else b""
    return replace(record, sealed=SealedState(weights=weights), sealed_sum=total)


def a_sealed_config(
    sealed_plan: SealedPlan | None = None,
    *,
    strategy: Strategy | None = None,
    values: Sequence[float] = (0.5,) * 4,
    layout: Layout | None = None,
    goal: Goal | None = None,
    schedule: CommitSchedule | None = None,
) -> AggregatorConfig:
    """Return what an aggregator of a sealed federation is told when it starts."""
    plan = sealed_plan or a_sealed_plan()
    how = sealed(strategy or a_strategy(buffer_size=plan.buffer_size), plan)
    asked = Plan(codec=SEALED, sealed=plan, one_update_per_version=how.one_update_per_version)

    def continue_from(head: Head) -> GlobalModel:
        return GlobalModel(
            head.record,
            head.moments,
            strategy=how,
            plan=asked,
            goal=goal or Goal(),
            term=head.term + 1,
            sealed=SealedModel.of(head.record, plan),
        )

    first = a_version(values=values, layout=layout or a_layout(len(values)), plan=asked)
    return replace(
        a_config(how, goal=goal, commit_schedule=schedule),
        first_version=lambda: replace(first, sealed=SealedState()),
        continue_from=continue_from,
    )


def opened(record: ModelVersion) -> list[float]:
    """Return the values of the model of a version, as who has the key computes them."""
    plan = record.plan.sealed
    assert plan, "the version is not sealed"
    part, vector = sealed_part(record.layout, plan.only), record.vector.copy()
    if record.sealed_sum:
        part.add_sealed(vector, plan.step * decrypted(unpack(record.sealed_sum, part.size), part.size))
    return [float(value) for value in vector]
