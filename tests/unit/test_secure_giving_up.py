"""Sums that nobody opens, or that nobody honest can have made, and buffers that do not fill."""

from collections.abc import Callable

import numpy as np
import pytest
from builders import SIZE, an_update
from fake_broker import FakeBroker
from leading import Clock, a_server, newest, rejected, send, take_the_lead, versions, work_off
from securing import (
    EPOCH,
    NAMES,
    VALUES,
    WITHOUT_W4,
    Helper,
    a_masked,
    a_secure_config,
    expected,
    go_on,
    helpers,
)

from fluffle.secure.closing import CloseRecord, Opening, encode_not_opened, opening_pieces
from fluffle.secure.helping import Ledger, Refused, not_opened
from fluffle_aggregator.leading import ANSWER_PATIENCE_S


def forged(close: CloseRecord, opening: Opening) -> bytes:
    """Return an opening in the name of another helper."""
    body = Opening(
        federation=close.federation,
        epoch=close.epoch,
        helper=NAMES[1] if opening.helper != NAMES[1] else NAMES[0],
        group=0,
        digest="",
        masks=memoryview(bytes(close.modulus.bytes_of(close.size))),
    )
    return bytes(opening_pieces(body))


def test_an_opening_in_another_helpers_name_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, [Helper(name, server, config, changed=forged) for name in NAMES])

    assert newest(server, config).version == 0
    assert "comes from the RabbitMQ user 'helper-1'" in caplog.text


class Ticking(Clock):
    """Seconds that pass with each look at the clock."""

    def __call__(self) -> float:
        """Return the time."""
        self.seconds += 0.001
        return self.seconds


def test_a_flood_of_answers_does_not_keep_the_leader_from_its_other_work() -> None:
    config = a_secure_config()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Ticking())
        work_off(leader, broker)
        [heard] = server.listeners[config.topology.openings_in.name].values()
        with FakeBroker(server, user=NAMES[0]) as flooding:
            for _ in range(100):
                flooding.publish(config.topology.openings_in.name, "", b"nonsense", {})
        waiting = len(heard)

        leader.hear(ANSWER_PATIENCE_S)
        assert 0 < len(heard) < waiting

        # The sum is opened once the flood has ended.
        go_on(leader, broker, helpers(server, config))
    assert newest(server, config).version == 1


def test_no_version_that_tells_of_refusals_comes_between_a_closed_sum_and_its_version() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name, values=values) for name, values in VALUES.items()))
    with FakeBroker(server) as first:
        work_off(take_the_lead(first, config, Clock()), first)
    # The updates do not come again, and something is refused meanwhile.
    server.queue(config.topology.updates.name).ready.clear()
    send(server, config, an_update("w4"))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        for _ in range(5):
            go_on(leader, broker, clock=clock)
        assert newest(server, config).version == 0
        go_on(leader, broker, helpers(server, config))
        for _ in range(3):
            go_on(leader, broker, helpers(server, config), clock)

    [_, version, *_] = versions(server, config)
    assert version.vector.tolist() == expected(((values, 64) for values in VALUES.values()), 3)
    assert [one["reason"] for one in rejected(server, config)] == ["wrong-content"]


def test_an_update_of_a_sum_that_was_given_up_spoils_no_later_one_even_under_another_leader() -> None:
    config = a_secure_config()
    nonsense = np.random.default_rng(0).integers(0, 2**32, SIZE, np.uint32)
    burnt = a_masked("w1")
    server = a_server(config, burnt, a_masked("w2"), EPOCH.masked(an_update("w3"), nonsense))
    answering = helpers(server, config)
    with FakeBroker(server) as first:
        go_on(take_the_lead(first, config, Clock()), first, answering)
    assert len(rejected(server, config)) == 3

    # Somebody requeues it, while others send what is new.
    base = newest(server, config)
    fresh = [a_masked(name, 2, base_version=base.version, base_term=base.term) for name in ("w2", "w4", "w5")]
    send(server, config, burnt, *fresh)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, answering)

    assert [one.id.worker for one in newest(server, config).folded] == ["w2", "w4", "w5"]
    [*_, last] = rejected(server, config)
    assert (last["id"], last["reason"]) == ("w1/r1/1", "unsound-sum")


def test_after_a_reset_the_leader_goes_on_from_the_record_that_the_helpers_know() -> None:
    config = a_secure_config()
    first = a_server(config, *(a_masked(name) for name in VALUES))
    known = helpers(first, config)
    with FakeBroker(first) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, known)
    assert [each.ledger.number for each in known] == [1, 1, 1]

    # The federation begins anew under its name, and the helpers keep their ledgers.
    server = a_server(config, *(a_masked(name, 2) for name in VALUES))
    answering = helpers(server, config)
    for before, after in zip(known, answering, strict=True):
        after.ledger = before.ledger
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, answering)
        assert {one["reason"] for one in rejected(server, config)} == {"not-opened"}
        base = newest(server, config)
        fresh = [a_masked(name, 3, base_version=base.version, base_term=base.term) for name in VALUES]
        send(server, config, *fresh)
        go_on(leader, broker, answering)

    assert [one.id.sequence for one in newest(server, config).folded] == [3, 3, 3]


def refusing(number: int, last: str) -> Callable[[CloseRecord, Opening], bytes]:
    """Return what a helper answers that refuses each sum, and claims that another record is the newest."""

    def answer(close: CloseRecord, opening: Opening) -> bytes:
        ledger = Ledger(close.epoch, number, last)
        return encode_not_opened(
            not_opened(close, opening.helper, Refused("opened-before", "it was"), ledger)
        )

    return answer


@pytest.mark.parametrize("number", [2**40, 2**62 - 1, 2**62, 2**64 - 1])
@pytest.mark.parametrize("liar", NAMES)
def test_one_helper_that_names_another_newest_record_does_not_stop_the_federation(
    number: int, liar: str
) -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in ("w1", "w2", "w4")))
    answering = [
        Helper(name, server, config, registry=WITHOUT_W4)
        if name != liar
        else Helper(name, server, config, changed=refusing(number, "nonsense"))
        for name in NAMES
    ]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, answering, clock)
        assert {one["reason"] for one in rejected(server, config)} == {"not-opened"}
        record = newest(server, config)
        assert record.last_sum
        assert record.last_sum.number == 1
        send(server, config, *(a_masked(name, 4, base_version=record.version) for name in VALUES))
        go_on(leader, broker, answering, clock)

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w3"]


def test_after_a_sum_that_waited_for_hours_helpers_are_soon_asked_again_about_the_next_one() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in VALUES))
    answering = helpers(server, config)
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds += 7200
        go_on(leader, broker, answering)
        assert newest(server, config).version == 1
        send(server, config, *(a_masked(name, 2, base_version=1) for name in VALUES))
        # One that was asked first does not answer.
        go_on(leader, broker, answering[::2])
        for _ in range(2):
            go_on(leader, broker, answering[::2], clock)

    assert newest(server, config).version == 2


def test_a_helper_that_has_refused_a_sum_and_opens_it_then_counts_as_one_that_opens_it() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in ("w1", "w2", "w4")))
    first, second, third = (Helper(name, server, config) for name in NAMES)
    first.refuses_with = third.refuses_with = Refused("unknown-worker", "the worker w4 is revoked")
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, [first], clock)
        first.refuses_with = None
        go_on(leader, broker, [first], clock)
        go_on(leader, broker, [third], clock)
        assert newest(server, config).version == 0
        go_on(leader, broker, [second], clock)

    assert [one.id.worker for one in newest(server, config).folded] == ["w1", "w2", "w4"]


def test_while_helpers_disagree_about_the_newest_record_the_others_are_waited_for_but_not_for_ever() -> None:
    config, clock = a_secure_config(), Clock()
    server = a_server(config, *(a_masked(name) for name in ("w1", "w2", "w4")))
    answering = [
        Helper(NAMES[0], server, config, changed=refusing(7, "nonsense")),
        Helper(NAMES[1], server, config, registry=WITHOUT_W4),
    ]
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        go_on(leader, broker, answering, clock)
        assert rejected(server, config) == []
        clock.seconds += 60
        go_on(leader, broker, answering, clock)

    assert {one["reason"] for one in rejected(server, config)} == {"not-opened"}
    last = newest(server, config).last_sum
    assert last
    assert last.number == 1
