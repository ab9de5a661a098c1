"""The leader of a sealed federation: it adds up what it cannot read, and the next one does the same."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_config, a_strategy, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from leading import (
    Clock,
    Trials,
    a_server,
    aggregate,
    newest,
    send,
    take_the_lead,
    unacked,
    versions,
    work_off,
)
from sealed_leading import EXACT, fill, refusals
from sealing import (
    KEY,
    OTHER_KEY,
    a_sealed_config,
    a_sealed_plan,
    a_sealed_update,
    opened,
)

from fluffle.codecs.sealed import SealedVector
from fluffle.model import Layout, TensorSpec
from fluffle.sealed.public_file import SealedPublic, write_public
from fluffle.secure.weights import factor_of
from fluffle.update import WeightUpdate
from fluffle_aggregator.commit_schedule import CommitSchedule
from fluffle_aggregator.config import AggregatorConfig
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings


def test_two_updates_become_a_version_of_which_the_leader_knows_no_value() -> None:
    config = a_sealed_config()
    server = a_server(config, a_sealed_update("w1", values=(1.0, -2.0, 0.0, 4.0)), a_sealed_update("w2", 1))

    aggregate(server, config)

    found = newest(server, config)
    assert found.version == 1
    # Version 0 is public, and stays in the vector.
    assert found.vector.tolist() == [0.5] * 4
    assert opened(found) == pytest.approx([1.5, 0.0, 1.0, 3.0], abs=EXACT)
    assert found.sealed is not None
    assert (found.sealed.weights, found.sealed.refreshes) == (128, 0)
    assert unacked(server, config) == []


def test_late_updates_weigh_integers_and_a_buffer_that_did_not_fill_is_divided_alike() -> None:
    config = a_sealed_config()
    fresh = [a_sealed_update(worker, values=(1.0,) * 4) for worker in ("w1", "w2")]
    late = a_sealed_update("w3", values=(2.0,) * 4)
    server, clock = a_server(config, *fresh, late), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        clock.seconds += config.commit_schedule.buffer_timeout_s
        leader.tick()

    found = newest(server, config)
    weight = factor_of(1, 64)
    assert found.version == 2
    assert opened(found) == pytest.approx([0.5 + 1.0 + 2.0 * weight / 128] * 4, abs=EXACT)
    assert [each.weight for each in found.folded] == [weight / 64]
    assert found.sealed is not None
    assert found.sealed.weights == 128 + weight


def sent(server: FakeServer, config: AggregatorConfig, rounds: int) -> Sequence[WeightUpdate]:
    """Two updates of each of so many rounds, of random values."""
    random = np.random.default_rng(5)
    return [
        a_sealed_update(worker, number, values=random.uniform(-4, 4, 4).astype(np.float32).tolist())
        for number in range(1, rounds + 1)
        for worker in ("w1", "w2")
    ]


def test_the_next_leader_goes_on_to_the_last_bit_wherever_the_one_before_died() -> None:
    config, bodies = a_sealed_config(), []
    for deaths in (False, True):
        server = a_server(config)
        for update in sent(server, config, 4):
            with FakeBroker(server) as broker:
                send(server, config, update)
                if deaths:
                    # It dies with the update in its buffer, which comes again.
                    broker.consume(config.topology.updates.name, prefetch=config.prefetch)
                    taken = broker.next_delivery(0)
                    assert taken is not None
            if not deaths:
                continue
            aggregate(server, config)
        aggregate(server, config)
        bodies.append([each.sealed_sum for each in versions(server, config)])

    assert len(bodies[0]) == 5
    # The versions of a federation whose leaders died are fewer or more, but its sum is the same.
    assert bodies[0][-1] == bodies[1][-1]


@pytest.mark.parametrize("only", [("head/*",), ("*/kernel",)])
def test_tensors_that_match_no_pattern_travel_as_usual_and_move_by_the_same_rule(
    only: tuple[str, ...],
) -> None:
    specs = [TensorSpec(name, (2,), "float32") for name in ("body/kernel", "head/kernel", "head/bias")]
    layout = Layout(tuple(specs))
    plan = a_sealed_plan(only=only)
    config = a_sealed_config(plan, values=(0.0,) * 6, layout=layout)
    values = (1.0, 2.0, 3.0, -1.0, -2.0, -3.0)
    server = a_server(
        config, *(a_sealed_update(worker, values=values, layout=layout, only=only) for worker in ("w1", "w2"))
    )

    aggregate(server, config)

    found = newest(server, config)
    is_open = [0, 1] if only == ("head/*",) else [4, 5]
    assert opened(found) == pytest.approx(list(values), abs=EXACT)
    assert found.vector.tolist() == [value if place in is_open else 0.0 for place, value in enumerate(values)]


def test_synchronous_rounds_are_sealed_too() -> None:
    plan = a_sealed_plan(greatest=1)
    config = a_sealed_config(plan, strategy=a_strategy("fedavg", buffer_size=2))
    server = a_server(config, *(a_sealed_update(worker, values=(2.0,) * 4) for worker in ("w1", "w2")))

    aggregate(server, config)
    send(server, config, a_sealed_update("w1", 2))
    aggregate(server, config)

    assert opened(newest(server, config)) == pytest.approx([2.5] * 4, abs=EXACT)
    assert refusals(server, config)[0][0] == "too-stale"


@pytest.mark.parametrize(
    ("update", "reason", "says"),
    [
        (an_update("w1"), "not-sealed", "give its worker sealed_secret"),
        (a_sealed_update("w1", key=OTHER_KEY), "other-key", f"under the key {OTHER_KEY}, and the key"),
        (a_sealed_update("w1", values=(1.0,) * 5), "wrong-layout", "run different models"),
        (
            a_sealed_update("w1", only=("other",)),
            "wrong-size",
            "0 elements .* are sealed, and the plan says",
        ),
        (
            replace(a_sealed_update("w1"), statistics=np.ones(2, np.float32)),
            "wrong-layout",
            "4 trained values, 2 statistics",
        ),
        (replace(a_sealed_update("w1"), examples=0), "bad-examples", "claims 0 examples"),
        (a_sealed_update("w1", base_version=9), "future-version", "the newest is 0"),
    ],
)
def test_what_is_sealed_otherwise_is_refused_with_the_reason(
    update: WeightUpdate, reason: str, says: str
) -> None:
    config = a_sealed_config()
    server = a_server(config, update, *(a_sealed_update(worker, 5) for worker in ("w1", "w2")))

    aggregate(server, config)

    assert refusals(server, config)[0][0] == reason
    assert re.search(says, refusals(server, config)[0][1])
    # What is honest counts all the same.
    assert opened(newest(server, config)) == pytest.approx([1.5] * 4, abs=EXACT)


def test_an_update_with_a_value_that_is_open_and_not_finite_is_refused() -> None:
    layout = Layout((TensorSpec("a", (2,), "float32"), TensorSpec("b", (2,), "float32")))
    config = a_sealed_config(a_sealed_plan(only=("b",)), layout=layout)
    honest = [a_sealed_update(worker, 2, layout=layout, only=("b",)) for worker in ("w1", "w2")]
    spoilt = a_sealed_update("w1", values=(1.0, 1.0, 0.0, 0.0), layout=layout, only=("b",))
    assert isinstance(spoilt.vector, SealedVector)
    nan = bytes(spoilt.vector.sealed) + np.array([np.nan, 1.0], np.float32).tobytes()
    server = a_server(config, replace(spoilt, vector=SealedVector.read(2, 2, memoryview(nan))), *honest)

    aggregate(server, config)

    assert refusals(server, config)[0][0] == "not-finite"
    assert opened(newest(server, config)) == pytest.approx([1.5] * 4, abs=EXACT)


def test_a_federation_that_is_not_sealed_refuses_what_is() -> None:
    config = a_sealed_config()
    plain = a_config()
    server = a_server(plain, a_sealed_update("w1"))
    assert config.topology == plain.topology

    aggregate(server, plain)

    assert refusals(server, plain)[0] == (
        "not-sealed",
        "the update is sealed, and this federation is not: its worker trains anew",
    )


def test_goals_and_evaluations_go_on_as_ever() -> None:
    config = a_sealed_config(goal=Goal(max_versions=2))
    server = a_server(config, an_evaluation(0, {"accuracy": 0.5}))

    fill(server, config, first=1, count=2)

    found = newest(server, config)
    assert (found.closing, found.evaluation is not None) == ("2 versions were made", True)


def test_a_commit_of_several_steps_has_the_sum_of_them_all() -> None:
    config = a_sealed_config(schedule=CommitSchedule(every=2))
    server = a_server(config, *(a_sealed_update("w1", number) for number in range(1, 5)))

    aggregate(server, config)

    assert [each.version for each in versions(server, config)] == [0, 2]
    assert newest(server, config).updates == 4
    weights = 2 * 64 + 2 * factor_of(1, 64)
    assert opened(newest(server, config)) == pytest.approx([0.5 + weights / 128] * 4, abs=EXACT)


def test_the_head_gets_back_exactly_what_was_published_while_a_buffer_fills() -> None:
    config = a_sealed_config()
    server, clock = a_server(config, a_sealed_update("w1"), a_sealed_update("w2")), Clock()
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, clock)
        work_off(leader, broker)
        send(server, config, a_sealed_update("w3"))
        work_off(leader, broker)
        before = newest(server, config)
        server.queue(config.topology.head.name).ready.clear()
        for _ in range(3):
            clock.seconds += 11.0
            leader.look_after_head()

    assert len(server.bodies(config.topology.head.name)) == 1
    assert newest(server, config).rank == before.rank


def test_a_message_that_may_have_killed_aggregators_is_tried_in_another_process(
    tmp_path: Path,
) -> None:
    public = tmp_path / "sealed.public"
    write_public(public, SealedPublic(KEY))
    trials = Trials(AggregatorSettings.model_validate({"sealed": public, "buffer_size": 2}))
    config = replace(a_sealed_config(), try_out=trials)
    server = a_server(config, a_sealed_update("w1"), a_sealed_update("w2"))
    for _ in range(2):
        with FakeBroker(server) as broker:
            broker.consume(config.topology.updates.name, prefetch=config.prefetch)
            assert broker.next_delivery(0) is not None

    aggregate(server, config)

    assert trials.ended == ["", ""]
    assert opened(newest(server, config)) == pytest.approx([1.5] * 4, abs=EXACT)
