"""The leader with differential privacy: noise in each sum, and no more of a worker than its budget."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from builders import SIZE, a_site_evaluation, a_version, an_evaluation, an_update
from fake_broker import FakeBroker
from leading import (
    Clock,
    Trials,
    a_server,
    aggregate,
    die_with_a_message,
    newest,
    rejected,
    send,
    take_the_lead,
    versions,
    work_off,
)
from privately import SECRET, a_privacy_plan, a_private_config, made_again

from fluffle.connection import say_hello
from fluffle.model import Layout, TensorSpec
from fluffle.pieces import Body
from fluffle.privacy.adaptive_clip import next_clip, noisy_share
from fluffle.privacy.noise import standard_normals
from fluffle.privacy.plan import Participation
from fluffle.record import Contributor, Rank
from fluffle.settings import load_settings
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.leader import REFUSALS_TOLD_AFTER_S
from fluffle_aggregator.settings import AggregatorSettings


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("name", ["fedbuff", "fedavg"])
def test_each_version_is_the_one_before_and_a_clipped_sum_with_its_noise(bands: int, name: str) -> None:
    config = a_private_config(a_privacy_plan(bands=bands), name=name)
    sums = [
        [(an_update("w1", 1, values=(9.0,) * SIZE), 1.0), (an_update("w2", 1, examples=99), 1.0)],
        [(an_update("w1", 2, base_version=1), 1.0), (an_update("w2", 2, base_version=1), 1.0)],
    ]
    server = a_server(config, *(update for each in sums for update, _ in each))

    aggregate(server, config)

    found = versions(server, config)
    assert [each.version for each in found] == [0, 1, 2]
    assert [each.vector.tolist() for each in found] == [each.tolist() for each in made_again(found, sums)]
    assert all(one.vector.tolist() != other.vector.tolist() for one, other in pairwise(found))


def test_a_late_update_is_clipped_and_then_discounted() -> None:
    config = a_private_config(a_privacy_plan(separation=1))
    first = [(an_update(worker, 1), 1.0) for worker in ("w1", "w2")]
    late = [(an_update("w3", 1, values=(50.0,) * SIZE), 0.5**0.5), (an_update("w4", 1), 0.5**0.5)]
    server = a_server(config, *(update for update, _ in first + late))

    aggregate(server, config)

    found = versions(server, config)
    assert [each.vector.tolist() for each in found] == [
        each.tolist() for each in made_again(found, [first, late])
    ]


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_the_next_leader_goes_on_with_the_noise_to_the_last_bit(bands: int) -> None:
    config = a_private_config(a_privacy_plan(updates=9, bands=bands))
    server = a_server(config)
    sums = []
    for number in range(1, 6):
        before = newest(server, config)
        one, other = (
            an_update(worker, number, base_version=before.version, base_term=before.term)
            for worker in ("w1", "w2")
        )
        sums.append([(one, 1.0), (other, 1.0)])
        with FakeBroker(server) as broker:
            # Each leader dies with an update in its buffer.
            send(server, config, one)
            work_off(take_the_lead(broker, config, Clock()), broker)
        with FakeBroker(server) as broker:
            send(server, config, other)
            work_off(take_the_lead(broker, config, Clock()), broker)

    found = versions(server, config)
    assert [each.vector.tolist() for each in found] == [each.tolist() for each in made_again(found, sums)]
    assert rejected(server, config) == []
    assert len({each.privacy.drawn for each in found if each.privacy}) == 6


def test_an_adaptive_clip_stands_in_each_record_and_the_next_leader_goes_on_with_it() -> None:
    plan = a_privacy_plan(updates=9, clip=0.5, adaptive=True)
    config = a_private_config(plan)
    server, sums = a_server(config), []
    for number in range(1, 6):
        before = newest(server, config)
        one, other = (
            an_update(worker, number, base_version=before.version, base_term=before.term, values=values)
            for worker, values in (("w1", (0.01,) * SIZE), ("w2", (9.0,) * SIZE))
        )
        sums.append([(one, 1.0), (other, 1.0)])
        send(server, config, one, other)
        # A leader of its own makes each version.
        aggregate(server, config)

    found = versions(server, config)
    assert [each.vector.tolist() for each in found] == [each.tolist() for each in made_again(found, sums)]
    assert plan.count_std is not None
    for before, after in pairwise(found):
        assert before.privacy is not None
        assert after.privacy is not None
        rank, drawn = Rank(after.term, after.version), bytes.fromhex(after.privacy.drawn)
        normal = standard_normals(SECRET.key(after.federation, drawn, rank, "share"), 0, 1)[0]
        # One of the two fits.
        share = noisy_share(1, 2, 2, plan.count_std, float(normal))
        assert after.privacy.clip == next_clip(before.privacy.clip_of(plan), share)
        assert after.privacy.clip != before.privacy.clip_of(plan)


def test_a_sum_that_is_left_out_moves_no_clip() -> None:
    plan = a_privacy_plan(updates=2, separation=3, adaptive=True)
    config = a_private_config(plan, schedule=CommitSchedule(buffer_timeout_s=5))
    server, clock = a_server(config, an_update("w1", 1), an_update("w2", 1)), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds += 6
        leader.tick()

    found = versions(server, config)
    clips = [each.privacy.clip for each in found if each.privacy]
    assert [each.privacy.steps for each in found if each.privacy] == [0, 1, 2]
    assert clips[0] != clips[1] == clips[2]


def test_a_worker_has_one_update_in_a_sum_and_some_sums_between_two() -> None:
    config = a_private_config(a_privacy_plan(separation=2))
    server = a_server(config, *(an_update("w1", number) for number in (1, 2)), an_update("w2", 1))

    aggregate(server, config)
    send(server, config, an_update("w1", 3, base_version=1), an_update("w3", 1), an_update("w4", 1))
    aggregate(server, config)
    send(server, config, an_update("w1", 4, base_version=1))
    aggregate(server, config)

    assert [each["reason"] for each in rejected(server, config)] == ["too-soon", "too-soon"]
    assert "an update of w1 is in this buffer already" in str(rejected(server, config)[0]["detail"])
    assert "the last update of w1 is in sum 1, and this is sum 2: 1 more" in str(
        rejected(server, config)[1]["detail"]
    )
    state = newest(server, config).privacy
    assert state is not None
    assert state.steps == 2
    assert state.of("w1") == Participation(1, 1)


def test_the_budget_holds_over_takeovers_and_messages_that_are_sent_again() -> None:
    config = a_private_config(a_privacy_plan(updates=2), buffer_size=1)
    server = a_server(config)
    for number in range(1, 4):
        send(server, config, an_update("w1", number))
        aggregate(server, config)
    refused = rejected(server, config)

    send(server, config, an_update("w1", 3))
    aggregate(server, config)

    assert [each["reason"] for each in (*refused, rejected(server, config)[-1])] == ["budget-spent"] * 2
    found = newest(server, config)
    assert found.privacy is not None
    assert found.updates == found.privacy.of("w1").updates == 2


def test_separation_is_counted_in_sums_and_not_in_versions() -> None:
    config = a_private_config(a_privacy_plan(separation=2), buffer_size=1)
    server, clock = a_server(config, an_update("w1", 1)), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        for number in range(2, 6):
            send(server, config, an_update("w1", number))
            work_off(leader, broker)
            # A version without a sum tells of the refusal.
            clock.seconds += REFUSALS_TOLD_AFTER_S
            work_off(leader, broker)

    assert newest(server, config).version == 5
    assert [each["reason"] for each in rejected(server, config)] == ["too-soon"] * 4


def test_a_partial_buffer_is_divided_by_its_full_size_and_has_all_the_noise() -> None:
    config = a_private_config(buffer_size=3, schedule=CommitSchedule(buffer_timeout_s=5))
    update = an_update("w1", 1)
    server, clock = a_server(config, update), Clock()

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds = 6
        leader.tick()

    found = versions(server, config)
    [_, made] = made_again(found, [[(update, 1.0)]], buffer_size=3)
    assert found[1].vector.tolist() == made.tolist()


def test_the_federation_ends_when_all_workers_have_spent_their_budgets() -> None:
    config = a_private_config(a_privacy_plan(updates=1), schedule=CommitSchedule(buffer_timeout_s=5))
    server, clock = a_server(config, an_update("w1", 1), an_update("w2", 1)), Clock()

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        assert not leader.finished
        clock.seconds = 6
        leader.tick()
        leader.tick()

    ended = "all workers have sent the 1 updates that the privacy budget allows"
    assert newest(server, config).finished == ended


def test_the_federation_does_not_end_while_a_worker_trains_its_first_update() -> None:
    config = a_private_config(a_privacy_plan(updates=1), schedule=CommitSchedule(buffer_timeout_s=5))
    topology = config.topology
    server, clock = a_server(config, an_update("w1", 1), an_update("w2", 1)), Clock()

    with FakeBroker(server) as broker, FakeBroker(server) as late:
        say_hello(late, topology.updates_in, federation=topology.federation, name="w3")
        late.take_name(topology, "w3", label="w3", on_rival=print)
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        for _ in range(5):
            clock.seconds += 6
            leader.tick()
        assert not leader.finished

    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        say_hello(broker, topology.updates_in, federation=topology.federation, name="somebody")
        work_off(leader, broker)
        for _ in range(5):
            clock.seconds += 6
            leader.tick()

        # Who said hello is no worker, or has left.
        assert leader.finished


def test_a_refusal_says_nothing_of_a_sites_numbers() -> None:
    config = a_private_config()
    nan, large = (float("nan"),) * SIZE, (2.0**60,) * SIZE
    server = a_server(config, an_update("w1", 1, values=nan), an_update("w2", 1, values=large))

    aggregate(server, config)

    assert [(each["reason"], each["detail"]) for each in rejected(server, config)] == [
        ("too-large", "the update holds numbers that cannot be clipped")
    ] * 2


def test_a_message_that_may_have_killed_aggregators_is_tried_and_counts_once() -> None:
    given = {
        "dp": "central",
        "dp_epsilon": 8,
        "dp_clip": 1,
        "dp_max_updates": 4,
        "dp_secret": "elsewhere",
        "initial_model": "elsewhere.safetensors",
        "buffer_size": 2,
    }
    settings = load_settings(AggregatorSettings, given)
    config = a_private_config()
    server = a_server(config, an_update("w1", 1), an_update("w2", 1))
    die_with_a_message(server, config, leaders=3)
    trials = Trials(settings)

    aggregate(server, replace(config, try_out=trials))

    assert trials.ended
    assert set(trials.ended) == {""}
    assert newest(server, config).updates == 2


def test_records_say_nothing_of_a_site_besides_its_update() -> None:
    config = a_private_config()
    told = [
        replace(
            an_update(worker, 1, examples=777, loss=0.123, steps=55),
            train_s=9.5,
            batch_size=44,
            learning_rate_scale=2.0,
        )
        for worker in ("w1", "w2")
    ]
    server = a_server(config, *told)

    aggregate(server, config)

    found = newest(server, config)
    for each in found.folded:
        assert (each.loss, each.train_s, each.steps, each.batch_size) == (None, 0.0, 0, 0)
    for known in found.contributors.values():
        assert known == Contributor(1, 0, 0, 1.0, 0, known.last_update_at)


def test_integers_stay_as_they_were_and_an_update_with_integers_is_refused() -> None:
    layout = Layout(
        (TensorSpec("dense/kernel", (SIZE,), "float32"), TensorSpec("count", (), "int64", "statistic"))
    )
    first = replace(a_version(layout=layout), integers=(7).to_bytes(8, "little"))
    config = a_private_config(first=first)
    given = [an_update(worker, 1, layout=layout) for worker in ("w1", "w2")]
    server = a_server(config, an_update("w3", 1, layout=layout, integers=bytes(8)), *given)

    aggregate(server, config)

    assert newest(server, config).integers == (7).to_bytes(8, "little")
    assert [each["reason"] for each in rejected(server, config)] == ["wrong-layout"]


def test_what_a_site_has_measured_is_refused_and_an_evaluator_may_report() -> None:
    config = a_private_config()
    server = a_server(config, a_site_evaluation(), an_evaluation(0, {"accuracy": 0.5}))

    aggregate(server, config)

    assert [each["reason"] for each in rejected(server, config)] == ["wrong-content"]


def test_a_version_goes_to_the_head_before_anybody_sees_it() -> None:
    published: list[str] = []

    class Listening(FakeBroker):
        def publish(self, exchange: str, routing_key: str, body: Body, headers: Mapping[str, str]) -> None:
            published.append(exchange)
            super().publish(exchange, routing_key, body, headers)

    config = a_private_config(buffer_size=1)
    server = a_server(config, an_update("w1", 1))
    with Listening(server) as broker:
        work_off(take_the_lead(broker, config, Clock()), broker)

    topology = config.topology
    assert topology.versions_in.name not in published
    assert published[-2:] == [topology.head_in.name, topology.models_in.name]
    assert server.bodies(topology.head.name)[-1] == server.bodies(topology.models.name)[-1]


@pytest.mark.parametrize("bands", [1, 3])
def test_where_all_wait_for_a_sum_that_nobody_may_fill_it_is_left_out(bands: int) -> None:
    config = a_private_config(
        a_privacy_plan(updates=2, separation=3, bands=bands), schedule=CommitSchedule(buffer_timeout_s=5)
    )
    sums = [[(an_update(worker, 1), 1.0) for worker in ("w1", "w2")], [], []]
    server, clock = a_server(config, *(update for update, _ in sums[0])), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        for _ in range(4):
            clock.seconds += 6
            leader.tick()
        before = newest(server, config)
        assert before.privacy is not None
        assert (before.version, before.privacy.steps) == (3, 3)
        last = [an_update(worker, 2, base_version=3, base_term=before.term) for worker in ("w1", "w2")]
        send(server, config, *last)
        work_off(leader, broker)

    found = versions(server, config)
    assert found[1].vector.tolist() == found[3].vector.tolist() != found[4].vector.tolist()
    sums.append([(update, 1.0) for update in last])
    assert [each.vector.tolist() for each in found] == [each.tolist() for each in made_again(found, sums)]
    assert rejected(server, config) == []
