"""The leader of a federation whose workers add shares of noise: it counts, and sees no sum with less."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import SIZE
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    Trials,
    a_server,
    die_with_a_message,
    newest,
    rejected,
    send,
    take_the_lead,
    versions,
    work_off,
)
from securing import Helper, go_on, helpers
from sharing import SECURE, SUMS, TARGET, a_noisy, a_shares_config, noisy_numbers, step_of

from fluffle.connection import say_hello
from fluffle.privacy.plan import PrivacyPlan, PrivacyState
from fluffle.privacy.shares import shares_of
from fluffle.secure.closing import decode_close
from fluffle.secure.helping import Refused
from fluffle.settings import load_settings
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound, encode_update
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.leader import REFUSALS_TOLD_AFTER_S
from fluffle_aggregator.secure.securing import DECIDE_WITHIN_S
from fluffle_aggregator.settings import AggregatorSettings

THREE = ("w1", "w2", "w3")
SOON = CommitSchedule(buffer_timeout_s=5.0)


def three(sequence: int = 1, base_version: int = 0) -> list[WeightUpdate]:
    """Return an update of each of three workers."""
    return [
        a_noisy(name, sequence, base_version=base_version, seed=10 * sequence + at)
        for at, name in enumerate(THREE)
    ]


def privacy(server: FakeServer, config: AggregatorConfig) -> PrivacyState:
    found = newest(server, config).privacy
    assert found is not None
    return found


def updates_of(server: FakeServer, config: AggregatorConfig) -> dict[str, int]:
    return {name: each.updates for name, each in privacy(server, config).participations.items()}


def reasons(server: FakeServer, config: AggregatorConfig) -> list[str]:
    return [str(each["reason"]) for each in rejected(server, config)]


def test_a_version_is_the_sum_of_noisy_numbers_to_the_last_bit_and_counts_for_each_worker() -> None:
    config = a_shares_config()
    server = a_server(config, *three())
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    version = newest(server, config)
    numbers = [noisy_numbers((0.1,) * SIZE, 10 + at) for at in range(3)]
    assert version.vector.tobytes() == step_of(*numbers).tobytes()
    assert updates_of(server, config) == dict.fromkeys(THREE, 1)
    assert privacy(server, config).steps == 1
    assert [each.weight for each in version.folded] == [1.0] * 3
    assert all((each.train_s, each.loss) == (0.0, None) for each in version.folded)


def test_late_updates_weigh_the_same() -> None:
    config = a_shares_config(schedule=SOON)
    late = [a_noisy(name, 2, base_version=1, seed=7) for name in THREE[:2]]
    server = a_server(config, *three())
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, Clock()), helpers(server, config)
        go_on(leader, broker, answering)
        send(server, config, *late, a_noisy("w4", 1, base_version=0, seed=8))
        go_on(leader, broker, answering)

    assert [(each.staleness, each.weight) for each in newest(server, config).folded] == [
        (0, 1.0),
        (0, 1.0),
        (1, 1.0),
    ]


def test_the_next_leader_opens_the_sum_of_the_one_that_was_killed_and_counts_it_once() -> None:
    config = a_shares_config()
    server = a_server(config, *three())
    with FakeBroker(server) as broker:
        # It closes the sum, and dies before the helpers have answered.
        work_off(take_the_lead(broker, config, Clock()), broker)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    numbers = [noisy_numbers((0.1,) * SIZE, 10 + at) for at in range(3)]
    assert newest(server, config).vector.tobytes() == step_of(*numbers).tobytes()
    assert updates_of(server, config) == dict.fromkeys(THREE, 1)
    assert rejected(server, config) == []


def test_a_second_update_in_one_sum_comes_too_soon() -> None:
    config = a_shares_config()
    server = a_server(config, a_noisy("w1", 1), a_noisy("w1", 2), a_noisy("w2", 1), a_noisy("w3", 1))
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    assert reasons(server, config) == ["too-soon"]
    # It was sent under masks, and so counts, with those before it: never fewer than were sent.
    assert updates_of(server, config) == {"w1": 3, "w2": 1, "w3": 1}


def test_an_update_beyond_the_budget_is_refused_by_the_record_and_by_what_its_worker_says() -> None:
    config, clock = a_shares_config(), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, clock), helpers(server, config)
        for number in range(3):
            send(server, config, *three(number + 1, base_version=number))
            go_on(leader, broker, answering)
        # One that ignores the plan says that it is its first.
        send(server, config, a_noisy("w1", 4, base_version=3, released=1))
        send(server, config, a_noisy("w4", 1, base_version=3, released=4))
        go_on(leader, broker, answering)
        clock.seconds += REFUSALS_TOLD_AFTER_S
        go_on(leader, broker, answering)

    assert newest(server, config).updates == 9
    assert reasons(server, config) == ["budget-spent", "budget-spent"]
    assert updates_of(server, config) == {**dict.fromkeys(THREE, 3), "w4": 3}


def test_a_refused_update_counts_as_sent_and_only_once_when_an_operator_sends_it_again() -> None:
    other = replace(SECURE, clip=9.0).numbered()
    config, refused = a_shares_config(), a_noisy("w1", 2, secure=other, released=2)
    server = a_server(config, refused)
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, Clock()), helpers(server, config)
        go_on(leader, broker, answering)
        send(server, config, refused)
        go_on(leader, broker, answering)
        send(server, config, a_noisy("w1", 3, released=3), a_noisy("w2", 1), a_noisy("w3", 1))
        go_on(leader, broker, answering)

    assert reasons(server, config) == ["wrong-content", "wrong-content"]
    assert updates_of(server, config) == {"w1": 3, "w2": 1, "w3": 1}


def test_the_updates_of_a_sum_that_is_given_up_count_as_sent() -> None:
    config, clock = a_shares_config(), Clock()
    server = a_server(config, *three())
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, clock), helpers(server, config)
        for each in answering:
            each.refuses_with = Refused("unusable-key", "a test")
        go_on(leader, broker, answering, clock)
        clock.seconds += DECIDE_WITHIN_S
        go_on(leader, broker, answering, clock)

    assert newest(server, config).updates == 0
    assert updates_of(server, config) == dict.fromkeys(THREE, 1)
    assert set(reasons(server, config)) == {"not-opened"}


def test_the_federation_ends_when_fewer_have_updates_left_than_a_sum_needs() -> None:
    config, clock = a_shares_config(schedule=SOON), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, clock), helpers(server, config)
        for number in range(2):
            send(server, config, *three(number + 1, base_version=number))
            go_on(leader, broker, answering)
        # w1 has spent its budget, and an update of w4 takes its place in the third sum.
        send(server, config, a_noisy("w4", 1, base_version=2, released=3))
        send(server, config, *three(3, base_version=2)[:2])
        go_on(leader, broker, answering)
        assert newest(server, config).finished == ""
        send(server, config, a_noisy("w3", 3, base_version=3))
        go_on(leader, broker, answering)
        clock.seconds += 6
        go_on(leader, broker, answering)

    final = newest(server, config)
    assert final.finished == (
        "w3 alone cannot make a sum, and all others have sent the 3 updates that the privacy budget allows"
    )
    assert final.updates == 9


def test_the_federation_waits_for_a_worker_that_has_come_and_trains_its_first_update() -> None:
    config, clock = a_shares_config(schedule=SOON), Clock()
    server = a_server(config)
    with FakeBroker(server) as broker, FakeBroker(server) as fourth, FakeBroker(server) as fifth:
        leader, answering = take_the_lead(broker, config, clock), helpers(server, config)
        send(server, config, *(a_noisy(name, 1, released=3) for name in ("w1", "w2")), a_noisy("w3", 1))
        go_on(leader, broker, answering)
        for name, worker in (("w4", fourth), ("w5", fifth)):
            topology = config.topology
            say_hello(worker, topology.updates_in, federation=topology.federation, name=name)
            worker.take_name(topology, name, label=name, on_rival=print)
        go_on(leader, broker, answering)
        clock.seconds += 6
        go_on(leader, broker, answering)
        assert newest(server, config).finished == ""
        send(server, config, *(a_noisy(name, 1, base_version=1) for name in ("w4", "w5")))
        send(server, config, a_noisy("w3", 2, base_version=1))
        go_on(leader, broker, answering)

    assert newest(server, config).version >= 2


def test_many_sums_with_noise_are_sound_and_one_with_ten_times_the_noise_is_not() -> None:
    sums = replace(SUMS, size=2000)
    promised = sums.new_plan(replace(TARGET, epsilon=1.0, updates=100))
    secure = sums.secure_plan(promised, 1)
    config = a_shares_config(promised, secure, size=2000)
    server, noise = a_server(config), shares_of(promised)
    wild = replace(promised, shares=replace(noise, share=100 * noise.share))

    def send_three(number: int, with_noise: PrivacyPlan) -> None:
        given: dict[str, Any] = {
            "base_version": number,
            "values": (1.0,) * 2000,
            "promised": with_noise,
            "secure": secure,
        }
        for at, name in enumerate(THREE):
            send(server, config, a_noisy(name, number + 1, seed=3 * number + at, **given))

    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, config, Clock()), helpers(server, config)
        for number in range(30):
            send_three(number, promised)
            go_on(leader, broker, answering)
        assert newest(server, config).version == 30
        send_three(30, wild)
        for _ in range(3):
            go_on(leader, broker, answering)

    assert newest(server, config).updates == 90
    assert set(reasons(server, config)) == {"unsound-sum"}


def test_the_noise_of_an_opened_sum_has_the_variance_of_all_its_shares() -> None:
    sums = replace(SUMS, size=20_000)
    promised = sums.new_plan(TARGET)
    secure = sums.secure_plan(promised, 1)
    config = a_shares_config(promised, secure, size=20_000)
    zeros = (0.0,) * 20_000
    updates = [
        a_noisy(name, values=zeros, seed=at, promised=promised, secure=secure)
        for at, name in enumerate(THREE)
    ]
    server = a_server(config, *updates)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    # The mean of three: its variance is a ninth of that of their sum.
    found = newest(server, config).vector * 3
    assert np.std(found) == pytest.approx(promised.std, rel=0.02)
    assert abs(np.mean(found)) < 4 * promised.std / 20_000**0.5


def test_helpers_open_no_sum_with_two_updates_of_one_worker_and_none_of_too_few() -> None:
    config = a_shares_config()
    server = a_server(config, *three())
    with FakeBroker(server) as broker:
        work_off(take_the_lead(broker, config, Clock()), broker)
    [body] = server.bodies(config.topology.closes.name)
    helper = Helper("helper-1", server, config)
    close = decode_close(body)
    assert close.honest == 3
    first = close.updates[0]
    twice = replace(close, updates=(*close.updates, replace(first, id=replace(first.id, sequence=2))))

    _, refused = helper.ledger.checked(twice, helper.registry)
    assert refused is not None
    assert refused.rule == "two-of-one-worker"
    _, refused = helper.ledger.checked(replace(close, honest=4), helper.registry, fewest_workers=2)
    assert refused is not None
    assert "of 3 workers, and at least 4 are needed" in refused.detail
    # Without the field more would be opened, but with other masks.
    _, refused = helper.ledger.checked(replace(twice, honest=0), helper.registry)
    assert refused is None


def test_whoever_hides_from_helpers_how_many_are_to_be_honest_gets_other_masks() -> None:
    config = a_shares_config()
    server = a_server(config, *three())
    hidden = replace(SECURE, honest=0).numbered()
    lying = a_shares_config(secure=replace(hidden, revision=SECURE.revision))
    with FakeBroker(server) as broker:
        leader, answering = take_the_lead(broker, lying, Clock()), helpers(server, lying)
        for _ in range(3):
            go_on(leader, broker, answering)

    # What comes out is noise modulo 2**bits, or was found to be.
    found = versions(server, lying)[-1].vector
    numbers = [noisy_numbers((0.1,) * SIZE, 10 + at) for at in range(3)]
    assert found.tolist() != step_of(*numbers).tolist()


def test_a_message_that_may_have_killed_aggregators_is_tried_in_a_process_of_its_own() -> None:
    given: dict[str, object] = {
        "task": "digits",
        "dp": "distributed",
        "dp_epsilon": 8,
        "dp_clip": 1,
        "dp_max_updates": 3,
        "secure_aggregation": True,
        "buffer_size": 3,
    }
    trials = Trials(load_settings(AggregatorSettings, given))
    config = replace(a_shares_config(), try_out=trials)
    server = a_server(config, *three())
    die_with_a_message(server, config, leaders=3)
    with FakeBroker(server) as broker:
        go_on(take_the_lead(broker, config, Clock()), broker, helpers(server, config))

    assert trials.ended[:1] == [""]
    assert newest(server, config).updates == 3


def test_an_update_says_on_the_wire_how_many_its_worker_has_sent() -> None:
    update = decode_inbound(encode_update(a_noisy("w1", 2, released=7)))

    assert isinstance(update, WeightUpdate)
    assert update.released == 7
