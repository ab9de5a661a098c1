"""Noise in shares in tests: a federation on a fake server, whose updates the test clips, noises and masks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from builders import SIZE, a_config, a_layout, a_strategy, a_vector, a_version, an_update
from securing import COMMITTEE, EPOCH, WORKERS

from fluffle.model import Vector
from fluffle.plan import Plan
from fluffle.privacy.plan import PrivacyPlan, PrivacyState
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.shares import SharedSums, shares_of
from fluffle.privacy.skellam import encode_within
from fluffle.secure.key_files import OperatorKey, write_new
from fluffle.secure.modulus import Residues, add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import signed_registry
from fluffle.update import WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule, prefetch_of
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.head import Head
from fluffle_aggregator.private.sums import PrivateSums
from fluffle_aggregator.private.weighing import private
from fluffle_aggregator.secure.state import SecureState
from fluffle_aggregator.secure.weighing import secured
from fluffle_worker.secure_keys import SecureKeys

TARGET = PrivacyTarget(epsilon=8.0, clip=1.0, updates=3, mechanism="distributed")
SUMS = SharedSums(size=SIZE, honest=3, buffer_size=3)
PROMISED = SUMS.new_plan(TARGET)
SECURE = SUMS.secure_plan(PROMISED, 1)


def a_shares_config(
    promised: PrivacyPlan = PROMISED,
    secure: SecurePlan = SECURE,
    *,
    buffer_size: int = 3,
    name: str = "fedbuff",
    size: int = SIZE,
    schedule: CommitSchedule | None = None,
) -> AggregatorConfig:
    """Return what an aggregator is told when it starts whose workers add shares of noise."""
    strategy = secured(private(a_strategy(name, buffer_size=buffer_size)), secure)
    plan = Plan(
        secure=secure,
        privacy=promised,
        codec=secure.codec,
        one_update_per_version=strategy.one_update_per_version,
    )
    schedule = schedule or CommitSchedule()
    record = a_version(values=(0.0,) * size, layout=a_layout(size), plan=plan)
    first = replace(record, privacy=PrivacyState(commitment=""))

    def continue_from(head: Head) -> GlobalModel:
        assert head.record.privacy is not None
        return GlobalModel(
            head.record,
            head.moments,
            strategy=strategy,
            plan=plan,
            goal=Goal(),
            term=head.term + 1,
            secure=SecureState(
                secure,
                head.record,
                buffer_size=buffer_size,
                fewest_workers=SECURE.honest,
                registered=frozenset(EPOCH.registry.workers),
            ),
            private=PrivateSums(promised, head.record.privacy),
        )

    return replace(
        a_config(strategy, commit_schedule=schedule),
        prefetch=prefetch_of(strategy, schedule, is_secure=True),
        first_version=lambda: first,
        continue_from=continue_from,
        committee=lambda: COMMITTEE,
    )


def noisy_numbers(
    values: Sequence[float], seed: int, promised: PrivacyPlan = PROMISED, secure: SecurePlan = SECURE
) -> Residues:
    """Return what is masked of an update: clipped, rounded, and with a share of the noise."""
    random, noise = np.random.default_rng(seed), shares_of(promised)
    numbers = encode_within(secure.fixed_point, a_vector(*values), noise.l2, random)
    noise.add_share(numbers, random)
    return numbers


def a_noisy(
    worker: str = "w1",
    sequence: int = 1,
    *,
    base_version: int = 0,
    values: Sequence[float] = (0.1,) * SIZE,
    seed: int = 0,
    released: int | None = None,
    promised: PrivacyPlan = PROMISED,
    secure: SecurePlan = SECURE,
) -> WeightUpdate:
    """Return a masked update with its share of the noise."""
    plain = an_update(worker, sequence, base_version=base_version, layout=a_layout(len(values)))
    plain = replace(plain.saying_nothing, released=sequence if released is None else released)
    return EPOCH.masked(plain, noisy_numbers(values, seed, promised, secure), secure)


def step_of(*numbers: Residues, secure: SecurePlan = SECURE) -> Vector:
    """Return the step that a sum of these numbers makes."""
    total = np.zeros(numbers[0].size, np.uint32)
    for each in numbers:
        add_multiple(total, each)
    delta = secure.fixed_point.decode(secure.modulus.signed(total), 1)
    return np.divide(delta, np.float32(len(numbers)))


def keys_of(worker: str, folder: Path) -> SecureKeys:
    """Return a worker's keys, as it reads them from its files."""
    operator = OperatorKey.new()
    write_new(folder / f"{worker}.key", WORKERS[worker])
    (folder / "operator.pub").write_text(
        f"{operator.private.public_key().public_bytes_raw().hex()}\n", encoding="ascii"
    )
    (folder / "registry.json").write_text(signed_registry(EPOCH.registry, operator.private), encoding="utf-8")
    return SecureKeys(
        federation="digits",
        worker=worker,
        key=folder / f"{worker}.key",
        registry=folder / "registry.json",
        operator=folder / "operator.pub",
    )
