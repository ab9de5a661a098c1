"""What `fluffle status` knows of a federation, and the JSON that programs read."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from builders import a_version, an_evaluation, an_update
from working import TOPOLOGY, a_federation, publish_versions

from fluffle.errors import TopologyMissing
from fluffle.fake_broker import FakeBroker, FakeServer
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.update import UpdateId
from fluffle.wire import encode_update
from fluffle_cli import snapshot as snapshot_module
from fluffle_cli.history import losses_of
from fluffle_cli.plain_json import as_text
from fluffle_cli.snapshot import QueueStates, Snapshot, snapshot_of, take_snapshot

KEYS = {
    *("federation", "taken_at", "version", "term", "finished", "strategy", "plan", "parameters"),
    *("updates", "updates_per_s", "rejected", "evaluation", "best", "target_held", "elapsed_s"),
    *("workers", "queues", "policy_faults", "closing", "best_by", "progress", "findings", "training_s"),
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
        best_by="accuracy:max",
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
        *("updates", "examples", "mean_staleness", "weight_share", "rejected", "seconds_since_update"),
        *("example_share", "refusal", "loss", "losses"),
    }
    assert found["progress"] == {
        "state": "early",
        "says": "accuracy was best at version 5 of 6.",
    }
    assert found["findings"] == []


def test_the_json_is_json_even_where_a_metric_is_none_that_json_knows() -> None:
    version = replace(a_busy_version(), evaluation=an_evaluation(6, {"accuracy": math.nan, "loss": math.inf}))

    found = json.loads(as_text(looked_at(version).as_json()), parse_constant=pytest.fail)

    assert found["evaluation"]["metrics"] == {"accuracy": "NaN", "loss": "Infinity"}
    assert [each["kind"] for each in found["findings"]] == ["not-finite"]
    assert found["progress"]["state"] == "not finite"


def test_a_look_at_a_small_federation_knows_its_past() -> None:
    def a_round(number: int) -> ModelVersion:
        folded = Folded(UpdateId("w1", "r", number), 0, 0, 1.0, loss=1.0 / number)
        return replace(
            a_version(number),
            contributors={"w1": Contributor(number, 10, 0, float(number))},
            folded=(folded,),
            evaluation=an_evaluation(number - 1, {"accuracy": number / 10}),
        )

    snapshot = snapshot_on(a_federation(a_version(0), *(a_round(number) for number in (1, 2, 4))))

    assert list(losses_of(snapshot.history, "w1")) == [1.0, 0.5, 0.25]
    assert [each.version for each in snapshot.history.evaluations] == [0, 1, 3]


def test_of_a_large_federation_one_look_reads_the_newest_version_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot_module, "PAST_BYTES", 10)
    server = a_federation(a_version(0), replace(a_version(1), evaluation=an_evaluation(0, {"loss": 1.0})))
    publish_versions(server, replace(a_version(2), evaluation=an_evaluation(1, {"loss": 2.0})))

    assert [each.version for each in snapshot_on(server).history.evaluations] == [1]


def test_what_is_waiting_for_the_last_evaluation_is_told() -> None:
    found = looked_at(replace(a_busy_version(), closing="enough"))

    assert found.as_json()["closing"] == "enough"
    assert found.standing.is_over


def test_the_keys_of_a_finding_stay() -> None:
    found = looked_at(replace(a_version(12), contributors={"w1": Contributor(rejected=1, refusal="why")}))

    assert found.as_json()["findings"] == [
        {
            "kind": "only-refused",
            "says": "The only message of w1 was refused. The last reason is why.",
            "do": "Nothing of w1 is in the model: its own log says more, and `fluffle rejected list` too.",
        },
        {
            "kind": "not-evaluated",
            "says": "None of 12 versions is evaluated: nobody knows how good the model is.",
            "do": "Start `fluffle evaluator` with held-out data.",
        },
    ]


def test_the_queues_have_their_documented_keys() -> None:
    found = json.loads(as_text(looked_at(a_busy_version()).as_json()))
    assert found["queues"] == {"updates_waiting": 0, "aggregator_active": True, "rejected_waiting": 0}


def test_a_finished_federation_says_why() -> None:
    server = a_federation(a_version(0))
    publish_versions(server, a_version(1, finished="target held"))

    assert snapshot_on(server).finished == "target held"
