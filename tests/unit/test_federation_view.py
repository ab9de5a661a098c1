"""What one look at a federation shows, and the JSON that programs read."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from builders import a_version, an_evaluation, an_update
from fake_broker import FakeBroker, FakeServer
from federation_states import a_view
from working import TOPOLOGY, a_federation, publish_versions

from fluffle.errors import TopologyMissing
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.secure.plan import LastSum
from fluffle.update import UpdateId
from fluffle.wire import encode_update
from fluffle_cli.plain_json import as_text
from fluffle_cli.watching.as_json import with_workers
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates, Version
from fluffle_cli.watching.watcher import Watcher

KEYS = {
    *("federation", "taken_at", "version", "term", "finished", "strategy", "plan", "parameters"),
    *("updates", "updates_per_s", "rejected", "evaluation", "best", "target_held", "elapsed_s"),
    *("workers", "queues", "policy_faults", "closing", "best_by", "progress", "findings", "training_s"),
    *(
        "trouble",
        "workers_in_model",
        "parts",
        "helpers",
        "leader",
        "standbys",
        "knows_standbys",
        "survey",
        "terms",
        "metric",
    ),
    *("first_term", "average_decay", "last_sum", "privacy", "sealed"),
    *("metrics", "evaluations", "activity", "commit_s", "sent_bytes", "plain_bytes", "staleness"),
    *("reasons", "refusals", "after_the_end", "sites"),
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


def looked_at(version: ModelVersion | None, *, now: float = 100.0) -> FederationView:
    return a_view(*([version] if version else []), now=now, queues=QUIET)


def read_json(view: FederationView) -> dict[str, Any]:
    """Return what a program reads."""
    found: dict[str, Any] = json.loads(as_text(with_workers(view)), parse_constant=pytest.fail)
    return found


def view_of(server: FakeServer, *, past_mib: int = 1) -> FederationView:
    with FakeBroker(server) as broker:
        return Watcher(TOPOLOGY, name="test", past_mib=past_mib).look_once(broker)


def test_the_error_of_a_missing_federation_names_it_and_says_what_to_do() -> None:
    with pytest.raises(
        TopologyMissing, match=r"'digits' is not on .*digits\.updates\): start its aggregator"
    ):
        view_of(FakeServer(longest_wait_s=0))


def test_a_federation_without_a_version_is_shown_as_such() -> None:
    view = view_of(a_federation())

    assert (view.newest, view.workers) == (None, {})
    assert view.queues == QueueStates()


def test_a_look_reads_the_newest_version_without_its_vector() -> None:
    newest = view_of(a_federation(a_version(0), a_version(1), a_busy_version())).newest

    assert newest is not None
    assert (newest.version, newest.term, newest.updates, newest.parameters) == (7, 2, 4, 4)
    assert not hasattr(newest, "vector")


def test_a_look_counts_waiting_updates_and_sees_whether_an_aggregator_is_active() -> None:
    server = a_federation(a_version())
    with FakeBroker(server) as aggregator, FakeBroker(server) as worker:
        for sequence in (1, 2):
            body = encode_update(an_update(sequence=sequence))
            worker.publish(TOPOLOGY.updates_in.name, "", body, {"kind": "update"})
        worker.publish(TOPOLOGY.rejected_in.name, "", b"refused", {})
        aggregator.consume(TOPOLOGY.updates.name, prefetch=1)

        queues = view_of(server).queues

    assert queues == QueueStates(updates_waiting=1, aggregator_active=True, rejected_waiting=1)


def test_a_look_sees_which_helpers_of_the_last_sum_are_gone() -> None:
    last = LastSum(epoch=1, number=7, digest="d", helpers=("helper-1", "helper-3"))
    server = a_federation(replace(a_version(), last_sum=last))
    over = a_federation(replace(a_version(), last_sum=last, finished="enough"))
    with FakeBroker(server) as helper:
        helper.take_name(TOPOLOGY, "helper-3", label="h3", on_rival=print)

        here, after_the_end = view_of(server).queues, view_of(over).queues

    assert here == QueueStates(absent_helpers=("helper-1",))
    assert after_the_end == QueueStates()


def test_workers_are_shown_by_name_with_their_share_of_the_weight() -> None:
    workers = looked_at(a_busy_version(fast=3, slow=2), now=100.0).workers

    assert list(workers) == ["fast", "slow"]
    assert workers["fast"].weight_share == pytest.approx(0.75)
    assert workers["slow"].weight_share == pytest.approx(0.25)
    assert workers["slow"].mean_staleness == pytest.approx(4.0)
    assert workers["slow"].rejected == 2
    assert workers["slow"].seen_s == pytest.approx(10.0)


def test_a_worker_whose_clock_is_ahead_was_heard_of_now() -> None:
    assert looked_at(a_busy_version(), now=50.0).workers["fast"].seen_s == 0.0


def test_a_worker_that_was_only_refused_was_never_seen() -> None:
    refused = looked_at(replace(a_version(), contributors={"w1": Contributor(rejected=3)})).workers["w1"]

    assert (refused.seen_s, refused.weight_share) == (None, 0.0)


def test_updates_a_second_count_from_version_0_or_over_the_last_seconds() -> None:
    state = FederationState("digits", 100.0)
    for second, fast in ((0.0, 3), (2.0, 9)):
        state.read(Version.of(replace(a_busy_version(fast=fast), version=7 + fast)))
        state.look(QUIET, 100.0 + second)

    assert looked_at(a_busy_version(fast=3)).updates_per_s == pytest.approx(4 / 8)
    assert state.view(102.0).updates_per_s == pytest.approx(6 / 2)
    assert looked_at(a_version()).updates_per_s is None, "before any time has passed nothing can be said"


def test_the_json_has_the_documented_keys_in_plain_types_with_and_without_a_version() -> None:
    for view in (looked_at(None), looked_at(a_busy_version())):
        assert set(read_json(view)) == KEYS

    found = read_json(looked_at(a_busy_version()))
    assert found["evaluation"] == {
        "federation": "digits",
        "evaluator": "e1",
        "version": 6,
        "metrics": {"accuracy": 0.9},
        "evaluate_s": 0.0,
        "seconds": 0.0,
    }
    assert found["plan"]["local_epochs"] == 1
    assert set(found["workers"]["fast"]) == {
        *("name", "state", "seen_s", "round_s", "steps", "batch_size", "updates", "examples"),
        *("mean_staleness", "weight_share"),
        *("example_share", "model_share", "epsilon", "rejected", "refusal", "loss", "losses", "rival"),
        "is_of_two",
    }
    assert found["progress"] == {"state": "early", "says": "accuracy was best at version 5 of 6."}
    assert found["findings"] == []
    assert found["queues"] == asdict(QUIET) | {"absent_helpers": []}


def test_the_json_is_valid_when_a_metric_is_not_finite() -> None:
    version = replace(a_busy_version(), evaluation=an_evaluation(6, {"accuracy": math.nan, "loss": math.inf}))

    found = read_json(looked_at(version))

    assert found["evaluation"]["metrics"] == {"accuracy": "NaN", "loss": "Infinity"}
    assert [each["kind"] for each in found["findings"]] == ["not-finite"]
    assert found["progress"]["state"] == "not finite"


def test_a_look_at_a_small_federation_reads_its_past() -> None:
    def a_round(number: int) -> ModelVersion:
        folded = Folded(UpdateId("w1", "r", number), 0, 0, 1.0, loss=1.0 / number)
        return replace(
            a_version(number),
            contributors={"w1": Contributor(number, 10, 0, float(number))},
            folded=(folded,),
            evaluation=an_evaluation(number - 1, {"accuracy": number / 10}),
        )

    view = view_of(a_federation(a_version(0), *(a_round(number) for number in (1, 2, 4))))

    assert view.workers["w1"].losses == (1.0, 0.5, 0.25)
    assert [each.version for each in view.evaluations] == [0, 1, 3]


def test_a_look_at_a_large_federation_reads_the_newest_version_alone() -> None:
    server = a_federation(a_version(0), replace(a_version(1), evaluation=an_evaluation(0, {"loss": 1.0})))
    publish_versions(server, replace(a_version(2), evaluation=an_evaluation(1, {"loss": 2.0})))

    assert [each.version for each in view_of(server, past_mib=0).evaluations] == [1]


def test_a_federation_that_waits_for_its_last_evaluation_is_over_and_says_why() -> None:
    found = looked_at(replace(a_busy_version(), closing="enough"))

    assert read_json(found)["closing"] == "enough"
    assert found.is_over


def test_a_finding_has_the_documented_keys() -> None:
    found = looked_at(replace(a_version(12), contributors={"w1": Contributor(rejected=1, refusal="why")}))

    assert read_json(found)["findings"] == [
        {
            "kind": "only-refused",
            "says": "The only message of w1 was refused. The last reason is why.",
            "do": "Nothing of w1 is in the model: see its log, and `fluffle rejected list`.",
        },
        {
            "kind": "not-evaluated",
            "says": "None of 12 versions is evaluated: nobody knows how good the model is.",
            "do": "Start `fluffle evaluator` with held-out data, or workers with --local-validation.",
        },
    ]


def test_a_finished_federation_says_why() -> None:
    server = a_federation(a_version(0))
    publish_versions(server, a_version(1, finished="target held"))

    assert view_of(server).finished == "target held"
