"""The memory of which updates a model contains, held against a plain set of them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle import update
from fluffle.update import MAX_GAPS_PER_RUN, AppliedUpdates, RunLog, UpdateId

HIGHEST = 40

sequences = st.lists(st.integers(1, HIGHEST), max_size=60)
ids = st.builds(
    UpdateId, st.sampled_from(["w1", "w2"]), st.sampled_from(["r1", "r2"]), st.integers(1, HIGHEST)
)


def log_of(numbers: list[int]) -> RunLog:
    log = RunLog()
    for number in numbers:
        log = log.adding(number)
    return log


@given(sequences)
def test_a_log_holds_exactly_the_numbers_that_were_added_in_whatever_order(numbers: list[int]) -> None:
    log = log_of(numbers)

    assert {number for number in range(HIGHEST + 2) if number in log} - {0} == set(numbers)


@given(sequences)
def test_gaps_ascend_apart_from_each_other_and_below_the_watermark(numbers: list[int]) -> None:
    log = log_of(numbers)

    ends = [0, *(end for gap in log.gaps for end in gap), log.highest]
    starts = [first for first, _ in log.gaps]
    assert log.highest == max(numbers, default=0)
    assert ends == sorted(ends)
    assert all(last + 1 < first for (_, last), first in zip(log.gaps, starts[1:], strict=False))
    assert all(last < log.highest for _, last in log.gaps)


@given(sequences, st.randoms())
def test_the_order_and_the_repeats_of_what_is_added_do_not_show(numbers: list[int], random: Random) -> None:
    shuffled = numbers * 2
    random.shuffle(shuffled)

    assert log_of(shuffled) == log_of(sorted(set(numbers)))


@given(st.lists(ids, max_size=60))
def test_applied_holds_exactly_the_updates_that_were_added(updates: list[UpdateId]) -> None:
    applied = AppliedUpdates().adding(updates)

    everything = [
        UpdateId(worker, run, number)
        for worker in ("w1", "w2")
        for run in ("r1", "r2")
        for number in range(1, HIGHEST + 1)
    ]
    assert {each for each in everything if each in applied} == set(updates)


def test_adding_leaves_the_memory_that_it_starts_from_as_it_was() -> None:
    first = UpdateId("w", "r", 1)
    before = AppliedUpdates()

    after = before.adding([first])

    assert first in after
    assert first not in before


def test_another_run_of_the_same_worker_counts_from_one_again() -> None:
    applied = AppliedUpdates().adding([UpdateId("w", "r1", 1)])

    assert UpdateId("w", "r2", 1) not in applied
    assert UpdateId("v", "r1", 1) not in applied


@pytest.mark.parametrize("late", [2, 3, 4])
def test_an_update_that_comes_late_fills_its_place_in_a_gap(late: int) -> None:
    log = log_of([1, 5])
    assert log == RunLog(5, ((2, 4),))

    filled = log.adding(late)

    assert late in filled
    assert [number for number in (2, 3, 4) if number not in filled] == [n for n in (2, 3, 4) if n != late]


def test_so_many_gaps_are_kept_and_the_oldest_closes_first() -> None:
    odd = [2 * number + 1 for number in range(MAX_GAPS_PER_RUN + 10)]

    log = log_of(odd)

    assert len(log.gaps) == MAX_GAPS_PER_RUN
    assert 2 in log, "forgotten, so refused as a duplicate: it can never count twice"
    assert odd[-1] - 1 not in log
    assert all(number in log for number in odd)


def test_splitting_a_gap_keeps_to_the_bound_too() -> None:
    wide = log_of([1, *(5 * number for number in range(1, MAX_GAPS_PER_RUN + 1))])
    assert len(wide.gaps) == MAX_GAPS_PER_RUN

    split = wide.adding(wide.highest - 2)

    assert len(split.gaps) == MAX_GAPS_PER_RUN
    assert wide.highest - 2 in split
    assert wide.highest - 1 not in split


def test_one_huge_number_costs_one_gap() -> None:
    log = log_of([1, 2**63])

    assert log.gaps == ((2, 2**63 - 1),)
    assert 2**62 not in log


def test_an_id_is_written_as_it_is_grepped_for() -> None:
    assert str(UpdateId("site-1", "ab12", 7)) == "site-1/ab12/7"


def test_all_runs_together_keep_to_a_bound_of_gaps_and_the_longest_log_closes_its_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(update, "MAX_GAPS", 5)
    many = AppliedUpdates().adding(UpdateId("many", "r", sequence) for sequence in (2, 4, 6, 8))

    both = many.adding(UpdateId("few", "r", sequence) for sequence in (2, 4))

    assert both.runs["many", "r"].gaps == ((3, 3), (5, 5), (7, 7))
    assert both.runs["few", "r"].gaps == ((1, 1), (3, 3))
    assert UpdateId("many", "r", 1) in both


def test_a_worker_and_a_federation_have_room_for_so_many_runs_and_a_known_run_always_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(update, "MAX_RUNS_PER_WORKER", 2)
    monkeypatch.setattr(update, "MAX_RUNS", 3)
    applied = AppliedUpdates().adding([UpdateId("a", "1", 1), UpdateId("a", "2", 1)])

    assert applied.why_full(UpdateId("a", "2", 2)) == ""
    assert applied.why_full(UpdateId("b", "1", 1)) == ""
    assert applied.why_full(UpdateId("a", "3", 1)) == "worker a has come in 2 runs: give it another name"
    full = applied.adding([UpdateId("b", "1", 1)])
    assert full.why_full(UpdateId("b", "1", 2)) == ""
    assert full.why_full(UpdateId("c", "1", 1)).startswith("the federation has seen 3 runs of workers")
