"""The soak can fail: what its ledger and its look at memory make of a federation that breaks a promise."""

import os
from dataclasses import replace

import pytest
from soak.ledger import Balance
from soak.memory import WARM_UP_S, MemoryOfPart

from fluffle.update import UpdateId

AN_UPDATE = UpdateId("w1", "r1", 1)
GOOD = Balance(
    confirmed=3,
    applied=2,
    rejected=1,
    queued=0,
    lost=frozenset(),
    twice=frozenset(),
    updates_counted=2,
    updates_named=2,
    versions=1,
    unseen_versions=0,
    versions_aside=0,
    takeovers=0,
    reasons={},
)


def test_a_balanced_ledger_has_no_faults() -> None:
    assert GOOD.faults == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (replace(GOOD, confirmed=0), "no update was confirmed"),
        (replace(GOOD, lost=frozenset({AN_UPDATE})), "w1/r1/1"),
        (replace(GOOD, twice=frozenset({AN_UPDATE})), "in two versions: w1/r1/1"),
        (replace(GOOD, updates_counted=3), "3 updates were folded, but only 2"),
        (replace(GOOD, queued=1), "1 updates are queued still"),
    ],
    ids=["nothing", "lost", "twice", "counted", "queued"],
)
def test_a_broken_promise_is_named(bad: Balance, says: str) -> None:
    [fault] = bad.faults

    assert says in fault


@pytest.mark.parametrize(("growth_mb", "is_flat"), [(0.0, True), (15.0, True), (40.0, False)])
def test_memory_that_grows_from_one_end_to_the_other_is_a_leak(growth_mb: float, is_flat: bool) -> None:
    part = MemoryOfPart([(60.0 * minute, 100 + growth_mb * minute / 30) for minute in range(31)])

    assert part.is_flat is is_flat
    assert part.slope_mb_per_minute == pytest.approx(growth_mb / 30)


def test_a_process_that_has_just_started_tells_nothing_but_its_peak() -> None:
    part = MemoryOfPart()

    part.sample(os.getpid(), now_s=1.0, age_s=WARM_UP_S / 2)
    assert part.samples == []
    assert part.peak_mb > 0

    part.sample(os.getpid(), now_s=WARM_UP_S, age_s=WARM_UP_S)
    assert len(part.samples) == 1
