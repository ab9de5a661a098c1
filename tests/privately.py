"""Differential privacy in tests: aggregators that have one secret, and their sums made again."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from builders import a_config, a_strategy, a_version

from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.privacy.noise import NoiseSecret, NoiseSequence
from fluffle.privacy.plan import DRAWN_BYTES, NoisySum, PrivacyPlan, PrivacyState
from fluffle.privacy.promise import Mechanism, PrivacyTarget
from fluffle.record import ModelVersion, Rank
from fluffle.update import UpdateId, WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.norms import quick_norm_of
from fluffle_aggregator.private.secret_noise import SecretNoise
from fluffle_aggregator.private.sums import AddedNoise, PrivateSums, grid_of
from fluffle_aggregator.private.weighing import private

SECRET = NoiseSecret(bytes(range(32)))


def a_privacy_plan(
    *,
    epsilon: float = 8.0,
    clip: float = 1.0,
    updates: int = 4,
    separation: int = 1,
    bands: int | None = None,
    adaptive: bool = False,
    mechanism: Mechanism = "central",
) -> PrivacyPlan:
    """Return a plan; with so many bands, though fewer may be best. An adaptive clip begins with `clip`."""
    target = PrivacyTarget(
        epsilon=epsilon,
        clip=clip,
        updates=updates,
        separation=separation,
        correlated=bands != 1 and not adaptive and mechanism == "central",
        mechanism=mechanism,
        adaptive=adaptive,
    )
    plan = PrivacyPlan.keeping(target)
    return plan if bands is None else replace(plan, bands=bands)


def a_private_version(plan: PrivacyPlan, version: ModelVersion | None = None) -> ModelVersion:
    """Return version 0 of a federation with a promise."""
    return replace(
        version or a_version(),
        plan=Plan(privacy=plan),
        privacy=PrivacyState(
            commitment=SECRET.commitment, clip=None if plan.count_std is None else plan.clip
        ),
    )


def a_private_config(
    plan: PrivacyPlan | None = None,
    *,
    buffer_size: int = 2,
    name: str = "fedbuff",
    optimizer: str = "sgd",
    staleness: str = "polynomial",
    goal: Goal | None = None,
    first: ModelVersion | None = None,
    schedule: CommitSchedule | None = None,
) -> AggregatorConfig:
    """Return what an aggregator with differential privacy is told when it starts."""
    promised = plan or a_privacy_plan()
    strategy = private(
        a_strategy(name, buffer_size=buffer_size, optimizer=optimizer, staleness=staleness),
        promised.mechanism,
    )
    asked = Plan(privacy=promised, one_update_per_version=strategy.one_update_per_version)

    def continue_from(head: Head) -> GlobalModel:
        record = head.record
        assert record.privacy is not None
        added = None
        if promised.mechanism == "central":
            grid = grid_of(promised, record.layout.size, record.privacy.clip_of(promised))
            drawn = secrets.token_bytes(DRAWN_BYTES)
            noise = SecretNoise(SECRET, record.federation, promised, record.privacy, grid, drawn=drawn)
            added = AddedNoise(noise, grid, buffer_size)
        return GlobalModel(
            record,
            head.moments,
            strategy=strategy,
            plan=asked,
            goal=goal or Goal(),
            term=head.term + 1,
            private=PrivateSums(promised, record.privacy, added),
        )

    version = replace(a_private_version(promised, first), plan=asked)
    return replace(
        a_config(strategy, goal=goal, commit_schedule=schedule),
        first_version=lambda: version,
        continue_from=continue_from,
    )


def with_sum(record: ModelVersion, *updates: UpdateId) -> ModelVersion:
    """Return the next version, made of a sum of these updates."""
    plan, state = record.plan.privacy, record.privacy
    assert plan is not None
    assert state is not None
    made = NoisySum(record.term, record.version + 1, "ab")
    return replace(
        record,
        version=record.version + 1,
        applied=record.applied.adding(updates),
        privacy=state.with_sum(made, tuple(each.worker for each in updates), plan),
    )


def made_again(
    records: Sequence[ModelVersion],
    sums: Sequence[Sequence[tuple[WeightUpdate, float]]],
    *,
    buffer_size: int = 2,
    secret: NoiseSecret = SECRET,
) -> list[Vector]:
    """Return the vectors of versions, made again of the updates in each with what they weigh.

    `records` are all versions, from version 0 on. One without updates has no sum, or one that was left out.
    """
    plan = records[0].plan.privacy
    assert plan is not None
    vector, size = records[0].vector.copy(), records[0].layout.size
    grid = grid_of(plan, size, plan.clip)
    noise = NoiseSequence(plan.noise.coefficients, plan.std / grid.step, size, kept=0)
    made = [vector.copy()]
    steps = 0
    for before, record, updates in zip(records[:-1], records[1:], sums, strict=True):
        if before.privacy and before.privacy.clip:
            # Each sum has a clip of its own, and plain noise.
            grid = grid_of(plan, size, before.privacy.clip)
            noise = NoiseSequence((1.0,), plan.std_at(before.privacy.clip) / grid.step, size, kept=0)
        if record.privacy and record.privacy.steps > steps:
            steps = record.privacy.steps
            total = np.zeros(size, np.int64)
            for update, weight in updates:
                grid.add_clipped(total, update.vector.blocks(), quick_norm_of(update.vector), weight)
            drawn = bytes.fromhex(record.privacy.drawn)
            noise.add_next(secret.key(record.federation, drawn, Rank(record.term, record.version)), total)
            vector = vector + grid.decode(total, buffer_size) if updates else vector
        made.append(vector.copy())
    return made
