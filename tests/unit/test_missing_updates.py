"""Updates that never came are noticed when a later one of their run does."""

from dataclasses import replace

import pytest
from builders import a_config, a_strategy, an_update
from fake_broker import FakeBroker
from hypothesis import given
from hypothesis import strategies as st
from leading import Clock, a_server, send, take_the_lead, work_off

from fluffle.update import AppliedUpdates, UpdateId
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.missing import MOST_REMEMBERED, MissingUpdates, in_words

NEVER_CAME = "earlier updates of this worker never came"


def test_updates_that_vanished_from_the_queue_are_named_when_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = a_config(a_strategy(buffer_size=1))
    server = a_server(config, an_update("w", 1))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        work_off(leader, broker)
        assert NEVER_CAME not in caplog.text

        # 2 to 4 were confirmed, and expired while nobody consumed the queue.
        send(server, config, an_update("w", 5))
        work_off(leader, broker)
        assert caplog.text.count(NEVER_CAME) == 1
        assert "'w/r1/5'" in caplog.text
        assert "'2-4'" in caplog.text

        send(server, config, an_update("w", 3), an_update("w", 6))
        work_off(leader, broker)
        assert caplog.text.count(NEVER_CAME) == 1


def test_what_was_refused_or_absorbed_is_not_missing(caplog: pytest.LogCaptureFixture) -> None:
    config = a_config(a_strategy(buffer_size=1), limits=Limits(limit_examples=10))
    server = a_server(
        config,
        an_update("w", 1, examples=99),
        an_update("w", 2),
        replace(an_update("w", 4), absorbs=(1, 3)),
        an_update("v", 1, examples=99),
    )
    with FakeBroker(server) as broker:
        work_off(take_the_lead(broker, config, Clock()), broker)

    assert NEVER_CAME not in caplog.text


def test_the_numbers_of_a_new_run_go_on_from_those_before_or_begin_with_1() -> None:
    missing, applied = MissingUpdates(), AppliedUpdates().adding([UpdateId("w", "r1", 56)])
    missing.note_refused(UpdateId("w", "r1", 57))

    assert missing.before(an_update("w", 58, run="r2"), applied) == []
    assert in_words(missing.before(an_update("w", 61, run="r2"), applied)) == "58-60"
    assert in_words(missing.before(an_update("w", 3, run="r2"), applied)) == "1-2"


@given(st.lists(st.sampled_from(["comes", "is refused", "is lost"]), min_size=1, max_size=30))
def test_exactly_what_is_lost_below_an_applied_one_is_missed_once(fates: list[str]) -> None:
    missing, applied, missed = MissingUpdates(), AppliedUpdates(), []
    for sequence, fate in enumerate(fates, start=1):
        update = an_update("w", sequence)
        if fate == "comes":
            missed += [number for each in missing.before(update, applied) for number in each]
            applied = applied.adding([update.id])
        elif fate == "is refused":
            missing.note_refused(update.id)

    last = max((n for n, fate in enumerate(fates, start=1) if fate == "comes"), default=0)
    assert missed == [n for n, fate in enumerate(fates, start=1) if fate == "is lost" and n < last]


def test_what_is_remembered_has_an_end() -> None:
    missing = MissingUpdates()
    for sequence in range(1, MOST_REMEMBERED + 2):
        missing.note_refused(UpdateId("w", "r1", sequence))

    gone = missing.before(an_update("w", MOST_REMEMBERED + 2), AppliedUpdates())

    assert in_words(gone) == "1"


def test_numbers_are_written_as_people_do() -> None:
    assert in_words([range(1, 5), range(7, 8)]) == "1-4, 7"
