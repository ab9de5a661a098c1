"""What helpers open, and what they refuse: they believe nothing of a close record."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import WireError
from fluffle.framing import join, split
from fluffle.secure.closing import (
    MOST_UPDATES,
    ClosedUpdate,
    CloseRecord,
    Opening,
    decode_answer,
    decode_close,
    digest_of,
    encode_close,
    opening_pieces,
)
from fluffle.secure.committee import Committee
from fluffle.secure.fixed_point import FixedPoint
from fluffle.secure.helping import LIMITS, Ledger, Refused, decode_ledger, encode_ledger, openings
from fluffle.secure.key_files import WorkerKey, new_helper_keys, public_part
from fluffle.secure.masks import Masked, add_masks, mask_key
from fluffle.secure.modulus import Modulus, Residues, add_multiple
from fluffle.secure.registry import Registry
from fluffle.secure.weights import MOST_APART, MOST_FACTOR, factor_of
from fluffle.update import MAX_RUNS, UpdateId

SIZE = 700
MODULUS = Modulus(32)
PUBLIC, HELPERS = new_helper_keys("digits", 1, Committee(("helper-1", "helper-2", "helper-3"), 1))
WORKERS = {name: WorkerKey.new("digits", name) for name in ("w1", "w2", "w3", "w4", "gone")}
REGISTRY = Registry(
    federation="digits",
    epoch=1,
    helpers=PUBLIC.helpers,
    colluding=1,
    group_keys=PUBLIC.group_keys,
    workers={name: public_part(key.private) for name, key in WORKERS.items() if name != "gone"},
    revoked=("gone",),
)
EMPTY = Ledger(1)


def closed(worker: str, sequence: int = 1, base_version: int = 9, factor: int = 64) -> ClosedUpdate:
    return ClosedUpdate(UpdateId(worker, "run", sequence), 1, base_version, factor)


THREE = (closed("w1"), closed("w2", base_version=8, factor=45), closed("w3"))
CLOSE = CloseRecord(
    federation="digits",
    epoch=1,
    number=1,
    previous="",
    term=1,
    version=10,
    size=SIZE,
    bits=MODULUS.bits,
    greatest=64,
    asked=("helper-1", "helper-1", "helper-2"),
    updates=THREE,
)


def opened(close: CloseRecord, ledger: Ledger = EMPTY) -> Ledger:
    found, refused = ledger.checked(close, REGISTRY)
    assert refused is None, refused
    return found


def refusal(close: CloseRecord, ledger: Ledger = EMPTY) -> Refused:
    _, refused = ledger.checked(close, REGISTRY)
    assert refused
    return refused


def following(close: CloseRecord, *updates: ClosedUpdate) -> CloseRecord:
    return replace(
        close, number=close.number + 1, previous=digest_of(close), version=close.version + 1, updates=updates
    )


def masked(update: ClosedUpdate, values: Residues) -> Residues:
    """Return what a worker sends: its numbers with the mask of each group, through the bytes of a message."""
    about = Masked("digits", 1, update.id, update.base_term, update.base_version)
    own, total = WORKERS[update.id.worker].private, values.copy()
    keys = [mask_key(own, public, about, at) for at, public in enumerate(REGISTRY.public_group_keys)]
    add_masks(total, keys)
    return MODULUS.unpack(memoryview(MODULUS.pack(total)), values.size)


def test_any_two_helpers_open_the_sum_to_the_last_bit_and_one_alone_does_not() -> None:
    random, point = np.random.default_rng(0), FixedPoint(1.0, 16)
    plain = [point.encode(random.normal(size=SIZE).astype(np.float32), random) for _ in THREE]
    total, expected = np.zeros(SIZE, np.uint32), np.zeros(SIZE, np.int64)
    for update, values in zip(THREE, plain, strict=True):
        add_multiple(total, masked(update, values), update.factor)
        expected += update.factor * values.view(np.int32).astype(np.int64)
    answers = {}
    for key in HELPERS:
        assert opened(CLOSE).number == 1
        sent = [bytes(opening_pieces(each)) for each in openings(CLOSE, key, REGISTRY)]
        read = [each for each in (decode_answer(body, CLOSE) for body in sent) if isinstance(each, Opening)]
        assert {(each.helper, each.digest) for each in read} == {(key.name, digest_of(CLOSE))}
        answers[key.name] = {each.group: MODULUS.unpack(each.masks, SIZE) for each in read}

    def with_helpers(*names: str) -> list[int]:
        known = {group: masks for name in names for group, masks in answers[name].items()}
        sum_of_all = total.copy()
        for masks in known.values():
            add_multiple(sum_of_all, masks, -1)
        return [int(each) for each in MODULUS.signed(sum_of_all)]

    for pair in combinations(answers, 2):
        assert with_helpers(*pair) == expected.tolist()
    for alone in answers:
        assert sum(a == b for a, b in zip(with_helpers(alone), expected, strict=True)) < 3
    for group in range(3):
        # Two helpers know each mask, and say the same.
        both = [found[group].tolist() for found in answers.values() if group in found]
        assert len(both) == 2
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("change", "rule", "says"),
    [
        ({"federation": "wards"}, "other-epoch", "of wards, epoch 1, and not of digits, epoch 1"),
        ({"epoch": 2}, "other-epoch", "of digits, epoch 2, and not of digits, epoch 1"),
        ({"number": 2}, "missing-record", "number 2 follows none, and the last one here is number 0, none"),
        ({"previous": "ab"}, "missing-record", "number 1 follows ab"),
        ({"updates": (*THREE, closed("w9"))}, "unknown-worker", "the worker w9 is not in the registry"),
        ({"updates": (*THREE, closed("gone"))}, "unknown-worker", "the worker gone is revoked"),
        ({"updates": (*THREE, closed("w1"))}, "opened-before", "w1/run/1 stands there 2 times"),
        ({"updates": THREE[:2]}, "too-few-workers", "of 2 workers, and at least 3 are needed"),
        ({"updates": ()}, "too-few-workers", "of 0 workers"),
        (
            {"updates": (*THREE, *(closed("w1", number) for number in range(2, 5)))},
            "too-few-workers",
            "w1 has 256 of the weight of 365, more than half",
        ),
        ({"updates": (*THREE[:2], closed("w3", factor=63))}, "wrong-weight", "0 versions late and weighs 64"),
        ({"updates": (*THREE[:2], closed("w3", base_version=10))}, "wrong-weight", "began from version 10"),
        ({"version": 11}, "wrong-weight", "w1/run/1 is 1 versions late and weighs 45, not 64"),
    ],
)
def test_a_record_that_could_reveal_an_update_is_refused_with_the_rule(
    change: dict[str, Any], rule: str, says: str
) -> None:
    refused = refusal(replace(CLOSE, **change))

    assert refused.rule == rule
    assert says in str(refused)


def test_no_update_is_opened_in_two_sums_whatever_came_between() -> None:
    ledger, close = opened(CLOSE), CLOSE
    for number in (2, 3):
        close = following(close, *(closed(name, number, close.version) for name in ("w1", "w2", "w3")))
        ledger = opened(close, ledger)
    without_one = following(close, *(closed(name, 1, close.version) for name in ("w1", "w2", "w4")))

    assert str(refusal(without_one, ledger)) == "opened-before: w1/run/1 was in an earlier sum"


def test_the_same_record_is_answered_again_and_another_of_its_number_is_not() -> None:
    ledger = opened(CLOSE)

    assert ledger.checked(CLOSE, REGISTRY) == (ledger, None)
    other = replace(CLOSE, updates=(closed("w1"), closed("w2"), closed("w4")))
    assert ledger.checked(other, REGISTRY) == (ledger, refusal(other, ledger))
    assert str(refusal(other, ledger)) == "two-answers: number 1 was another record"


def test_a_refused_record_counts_as_seen_and_its_updates_are_never_opened() -> None:
    too_few = replace(CLOSE, updates=THREE[:2])
    ledger, refused = EMPTY.checked(too_few, REGISTRY)
    assert refused
    assert refused.rule == "too-few-workers"

    assert ledger.checked(too_few, REGISTRY) == (ledger, refused)
    again = following(too_few, *(closed(name, 1, 10) for name in ("w1", "w3", "w4")))
    assert str(refusal(again, ledger)) == "opened-before: w1/run/1 was in an earlier sum"
    fresh = following(too_few, *(closed(name, 2, 10) for name in ("w1", "w3", "w4")))
    assert opened(fresh, ledger).number == 2


def test_two_helpers_that_know_different_workers_agree_about_the_next_record() -> None:
    knows_less = REGISTRY.model_copy(update={"revoked": ("gone", "w3")})
    one, _ = EMPTY.checked(CLOSE, REGISTRY)
    other, refused = EMPTY.checked(CLOSE, knows_less)

    assert refused
    assert (one.number, one.digest) == (other.number, other.digest)
    assert decode_ledger(encode_ledger(other)) == other


def test_an_update_of_a_worker_that_this_helper_does_not_know_yet_is_never_opened_later() -> None:
    # Another helper has a newer registry, with w4, and opens this record.
    before = REGISTRY.model_copy(
        update={"workers": {name: key for name, key in REGISTRY.workers.items() if name != "w4"}}
    )
    close = replace(CLOSE, updates=(*THREE, closed("w4")))
    ledger, refused = EMPTY.checked(close, before)
    assert refused
    assert refused.rule == "unknown-worker"

    # The same registry is here now: a sum that differs by one update would tell what w1 has sent.
    differing = following(close, *(closed(name, 2, 10) for name in ("w1", "w2")), closed("w4", 1, 10))

    assert str(refusal(differing, ledger)) == "opened-before: w4/run/1 was in an earlier sum"


@given(st.data())
def test_helpers_that_get_the_registry_at_different_times_open_no_two_sums_with_one_update(
    data: st.DataObject,
) -> None:
    names = ("w1", "w2", "w3", "w4")
    known_from = {
        helper: {name: data.draw(st.sampled_from([0, 0, 1, 2]), f"{helper} knows {name}") for name in names}
        for helper in ("one", "other")
    }
    ledgers, close = dict.fromkeys(known_from, EMPTY), None
    opened_records: dict[int, CloseRecord] = {}
    for at in range(4):
        left_out = data.draw(st.sampled_from(names))
        updates = tuple(
            closed(name, data.draw(st.integers(1, 3)), 9 + at) for name in names if name != left_out
        )
        close = following(close, *updates) if close else replace(CLOSE, updates=updates)
        for helper, since in known_from.items():
            workers = {name: key for name, key in REGISTRY.workers.items() if since[name] <= at}
            registry = REGISTRY.model_copy(update={"workers": workers})
            ledgers[helper], refused = ledgers[helper].checked(close, registry)
            if refused is None:
                opened_records[close.number] = close

    ids = [each.id for record in opened_records.values() for each in record.updates]
    assert len(ids) == len(set(ids))


def many_runs(start: int, count: int, worker: str = "invented") -> tuple[ClosedUpdate, ...]:
    """Return updates of so many runs, each of another worker."""
    return tuple(
        replace(closed("w1"), id=UpdateId(f"{worker}-{number}", "r" * 100, 1))
        for number in range(start, start + count)
    )


def test_a_ledger_that_can_remember_no_more_opens_nothing_more_in_its_epoch() -> None:
    refused, ledger, close = None, EMPTY, replace(CLOSE, updates=many_runs(0, MOST_UPDATES))
    for number in range(1, 5):
        ledger, refused = ledger.checked(close, REGISTRY)
        close = following(close, *many_runs(number * MOST_UPDATES, MOST_UPDATES))
    assert refused is not None
    assert refused.rule == "ledger-full"
    assert "opens nothing more in this epoch: rotate the keys" in refused.detail

    # The mark stays after the helper was started again, whatever comes.
    read = decode_ledger(encode_ledger(ledger))
    assert read == ledger
    honest = replace(close, updates=tuple(closed(name, 1, close.version - 1) for name in ("w1", "w2", "w3")))
    honest = replace(honest, number=read.number + 1, previous=read.digest)
    after, refused = read.checked(honest, REGISTRY)
    assert (refused and refused.rule, after.number) == ("ledger-full", read.number + 1)
    assert after.checked(honest, REGISTRY) == (after, refused)


def test_invented_workers_do_not_make_a_ledger_larger_than_can_be_read() -> None:
    ledger, close = EMPTY, replace(CLOSE, updates=many_runs(0, 4000, "w" * 90))
    for number in range(1, 6):
        ledger, _ = ledger.checked(close, REGISTRY)
        close = following(close, *many_runs(number * 4000, 4000, "w" * 90))

    assert len(ledger.opened.runs) == MAX_RUNS
    assert decode_ledger(encode_ledger(ledger)) == ledger


def test_a_worker_that_was_started_1100_times_does_not_fill_a_ledger() -> None:
    ledger, close = EMPTY, CLOSE
    for number in range(1, 1101):
        updates = (
            replace(closed("w1", 1, close.version - 1), id=UpdateId("w1", f"run-{number}", 1)),
            *(closed(name, number, close.version - 1) for name in ("w2", "w3")),
        )
        close = replace(close, updates=updates)
        ledger = opened(close, ledger)
        close = following(close)

    assert ledger.number == 1100


def test_an_older_ledger_is_read_only_if_nothing_is_missing_in_it() -> None:
    """Older versions did not remember the updates of workers that were not in the registry."""

    def older(ledger: Ledger) -> bytes:
        header, _ = split(encode_ledger(ledger), LIMITS)
        del header["is_full"]
        return bytes(join(header, [], LIMITS))

    assert decode_ledger(older(EMPTY)) == EMPTY
    with pytest.raises(
        WireError, match="field is_full: an older version wrote it, and did not remember all updates"
    ):
        decode_ledger(older(opened(CLOSE)))


def test_a_helper_that_has_lost_its_ledger_opens_nothing_more_in_this_epoch() -> None:
    second = following(CLOSE, *(closed(name, 2, 10) for name in ("w1", "w2", "w3")))
    assert opened(second, opened(CLOSE)).number == 2

    refused = refusal(second)

    assert refused.rule == "missing-record"
    assert "rotate the keys if this helper's ledger is lost" in refused.detail


def test_a_ledger_is_the_same_after_it_was_written_and_read() -> None:
    ledger = opened(CLOSE)

    assert decode_ledger(encode_ledger(ledger)) == ledger
    assert decode_ledger(encode_ledger(EMPTY)) == EMPTY
    with pytest.raises(WireError):
        decode_ledger(encode_ledger(ledger)[:-9])


def test_close_records_are_the_same_after_the_wire_and_damaged_ones_are_refused() -> None:
    body = encode_close(CLOSE)

    assert decode_close(body) == CLOSE
    assert digest_of(decode_close(body)) == digest_of(CLOSE)
    [opening, _] = openings(CLOSE, HELPERS[0], REGISTRY)
    for changed, says in (
        (replace(CLOSE, size=SIZE + 1), "the masks of this sum take 2804 bytes, not 2800"),
        (replace(CLOSE, bits=16), "the masks of this sum take 1400 bytes, not 2800"),
    ):
        with pytest.raises(WireError, match=says):
            decode_answer(bytes(opening_pieces(opening)), changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 8}, "field bits: 8 is none of 16, 24, 32"),
        ({"greatest": 65}, "field greatest: 65 is not from 1 to 64"),
        ({"size": 0}, "field size"),
        ({"updates": (*THREE[:2], closed("w3", factor=2**20))}, "factor: 1048576 is not from 1 to 64"),
    ],
)
def test_a_close_record_out_of_bounds_is_not_even_sent(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WireError, match=says):
        encode_close(replace(CLOSE, **change))


@given(st.integers(0, 10_000), st.integers(1, MOST_FACTOR))
def test_weights_fall_with_staleness_and_are_never_far_apart(staleness: int, greatest: int) -> None:
    factor = factor_of(staleness, greatest)

    assert factor_of(0, greatest) == greatest
    assert 1 <= factor_of(staleness + 1, greatest) <= factor <= greatest <= MOST_APART * factor
