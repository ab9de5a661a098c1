"""What `fluffle status` knows of a federation, and the JSON that programs read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import a_version, an_evaluation, an_update
from working import TOPOLOGY, a_federation, publish_versions

from fluffle.errors import TopologyMissing
from fluffle.fake_broker import FakeBroker, FakeServer
from fluffle.record import Contributor, ModelVersion
from fluffle.wire import encode_update
from fluffle_cli.snapshot import QueueStates, Snapshot, snapshot_of, take_snapshot

KEYS = {
    *("federation", "taken_at", "version", "term", "finished", "strategy", "plan", "parameters"),
    *("updates", "updates_per_s", "rejected", "evaluation", "best", "target_held", "elapsed_s"),
    *("workers", "queues", "policy_faults"),
}
QUIET = QueueStates(updates_waiting=0, aggregator_active=True, rejected_waiting=0)


def a_busy_version(*, fast: int = 3, slow: int = 1) -> ModelVersion:
    """Return version 7 with two workers: each update of "fast" weighs 1, each of "slow" 0.5."""
    return replace(
        a_version(7, term=2),
        contributors={
            "slow": Contributor(slow, 40 * slow, 4 * slow, 0.5 * slow, 2, last_update_at=90.0),
            "fast": Contributor(fast, 10 * fast, 0, 1.0 * fast, 0, last_update_at=99.0),
        },
        rejected=2,
        evaluation=an_evaluation(6, {"accuracy": 0.9}),
        best=an_evaluation(5, {"accuracy": 0.91}),
        target_held=1,
        elapsed_s=8.0,
    )


def looked_at(
    version: ModelVersion | None, *, now: float = 100.0, before: Snapshot | None = None
) -> Snapshot:
    return snapshot_of(version, QUIET, federation="digits", now=now, before=before)


def snapshot_on(server: FakeServer) -> Snapshot:
    with FakeBroker(server) as broker:
        return take_snapshot(broker, TOPOLOGY)


def test_a_federation_that_is_not_on_the_broker_is_named_with_what_to_do() -> None:
    with pytest.raises(
        TopologyMissing, match=r"'digits' is not on .*digits\.updates\): start its aggregator"
    ):
        snapshot_on(FakeServer(longest_wait_s=0))


def test_a_federation_without_a_version_is_shown_as_such() -> None:
    snapshot = snapshot_on(a_federation())

    assert snapshot.version is None
    assert snapshot.workers == {}
    assert not snapshot.queues.aggregator_active


def test_a_snapshot_shows_the_newest_version_and_not_its_vector() -> None:
    server = a_federation(a_version(0), a_version(1), a_busy_version())

    snapshot = snapshot_on(server)

    assert (snapshot.version, snapshot.term, snapshot.updates, snapshot.parameters) == (7, 2, 4, 4)
    assert not hasattr(snapshot, "vector")


def test_a_snapshot_counts_what_no_aggregator_holds_yet_and_sees_whether_one_is_active() -> None:
    server = a_federation(a_version())
    with FakeBroker(server) as aggregator, FakeBroker(server) as worker:
        for sequence in (1, 2):
            body = encode_update(an_update(sequence=sequence))
            worker.publish(TOPOLOGY.updates_in.name, "", body, {"kind": "update"})
        worker.publish(TOPOLOGY.rejected_in.name, "", b"refused", {})
        aggregator.consume(TOPOLOGY.updates.name, prefetch=1)

        queues = snapshot_on(server).queues

    assert queues == QueueStates(updates_waiting=1, aggregator_active=True, rejected_waiting=1)


def test_workers_are_shown_by_name_with_their_share_of_the_weight() -> None:
    snapshot = looked_at(a_busy_version(fast=3, slow=2), now=100.0)

    assert list(snapshot.workers) == ["fast", "slow"]
    assert snapshot.workers["fast"].weight_share == pytest.approx(0.75)
    assert snapshot.workers["slow"].weight_share == pytest.approx(0.25)
    assert snapshot.workers["slow"].mean_staleness == pytest.approx(4.0)
    assert snapshot.workers["slow"].rejected == 2
    assert snapshot.workers["slow"].seconds_since_update == pytest.approx(10.0)


def test_a_worker_whose_clock_is_ahead_was_heard_of_now() -> None:
    assert looked_at(a_busy_version(), now=50.0).workers["fast"].seconds_since_update == 0.0


def test_a_worker_that_was_only_refused_has_no_last_update() -> None:
    refused = replace(a_version(), contributors={"w1": Contributor(rejected=3)})

    assert looked_at(refused).workers["w1"].seconds_since_update is None
    assert looked_at(refused).workers["w1"].weight_share == 0.0


def test_updates_a_second_count_from_version_0_or_from_an_earlier_snapshot() -> None:
    first = looked_at(a_busy_version(fast=3), now=100.0)
    later = looked_at(a_busy_version(fast=9), now=102.0, before=first)

    assert first.updates_per_s == pytest.approx(4 / 8)
    assert later.updates_per_s == pytest.approx(6 / 2)
    assert looked_at(a_version()).updates_per_s is None, "before any time has passed nothing can be said"


def test_the_json_has_the_documented_keys_in_plain_types_with_and_without_a_version() -> None:
    for snapshot in (looked_at(None), looked_at(a_busy_version())):
        assert set(json.loads(json.dumps(snapshot.as_json()))) == KEYS

    found = json.loads(json.dumps(looked_at(a_busy_version()).as_json()))
    assert found["evaluation"] == {
        "evaluator": "e1",
        "version": 6,
        "metrics": {"accuracy": 0.9},
        "evaluate_s": 0.0,
    }
    assert found["plan"]["local_epochs"] == 1
    assert set(found["workers"]["fast"]) == {
        *("updates", "examples", "mean_staleness", "weight_share", "rejected", "seconds_since_update")
    }
    assert found["queues"] == {"updates_waiting": 0, "aggregator_active": True, "rejected_waiting": 0}


def test_a_finished_federation_says_why() -> None:
    server = a_federation(a_version(0))
    publish_versions(server, a_version(1, finished="target held"))

    assert snapshot_on(server).finished == "target held"
