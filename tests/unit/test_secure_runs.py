"""A worker that masks begins a new run at each start: what is remembered of its runs, and for how long."""

from dataclasses import replace

import pytest
from builders import SIZE, a_layout, a_version, an_update
from fake_broker import FakeBroker, FakeServer
from leading import Clock, a_server, newest, rejected, send, take_the_lead
from securing import EPOCH, NAMES, PLAN, Epoch, Helper, a_masked, a_secure_config, go_on, numbers_of

from fluffle.record import ModelVersion
from fluffle.secure.plan import LastSum
from fluffle.update import MAX_RUNS_PER_WORKER, AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle_aggregator.config import AggregatorConfig

STARTS = 1100
NEXT = Epoch(2)
WORKERS = ("w1", "w2", "w3")
PLAIN = {("w9", "plain"): RunLog(5)}


def of_run(number: int, worker: str = "w1", *, epoch: Epoch = EPOCH) -> WeightUpdate:
    """Return the one update of a worker's run."""
    plain = an_update(worker, number, run=f"run-{number}", layout=a_layout())
    return epoch.masked(plain, numbers_of((1.0,) * SIZE), replace(PLAN, epoch=epoch.number))


def after(starts: int) -> ModelVersion:
    """Return a version 0 before which three workers were started so often, each time for one update."""
    runs = {
        (worker, f"run-{number}"): RunLog(number) for number in range(1, starts + 1) for worker in WORKERS
    }
    last = LastSum(epoch=1, number=7, digest="ab")
    return replace(a_version(), applied=AppliedUpdates(PLAIN | runs), unmasked_runs=1, last_sum=last)


def work(server: FakeServer, config: AggregatorConfig, epoch: Epoch) -> None:
    """Let a leader take in what waits, and the helpers open its sums."""
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        go_on(leader, broker, [Helper(name, server, config, epoch=epoch) for name in NAMES])


def test_a_worker_that_was_started_1100_times_in_one_epoch_is_refused_with_what_to_do() -> None:
    config = a_secure_config(first=after(MAX_RUNS_PER_WORKER))
    server = a_server(config, of_run(STARTS))

    work(server, config, EPOCH)

    [headers] = rejected(server, config)
    assert headers["reason"] == "too-many-runs"
    assert headers["detail"] == (
        "worker w1 has come in 1000 runs: give it another name, or rotate the keys (`fluffle keys rotate`): "
        "with a new epoch the runs of older ones are forgotten"
    )


def test_in_a_new_epoch_workers_that_were_started_1100_times_go_on() -> None:
    config = a_secure_config(first=after(MAX_RUNS_PER_WORKER), epoch=NEXT)
    server = a_server(config, *(of_run(STARTS, name, epoch=NEXT) for name in WORKERS))

    work(server, config, NEXT)

    record = newest(server, config)
    assert rejected(server, config) == []
    assert (record.version, record.unmasked_runs) == (1, 1)
    # What was not masked could come again when secure aggregation is off one day; newest runs may go on.
    before, new = [f"run-{MAX_RUNS_PER_WORKER}"] * 3, [f"run-{STARTS}"] * 3
    assert [run for _, run in record.applied.runs] == ["plain", *before, *new]


def test_an_update_of_before_is_known_until_the_first_sum_of_a_new_epoch_is_opened() -> None:
    """The leader may have died between a version and its acks, just when the keys were rotated."""
    config = a_secure_config(first=after(2), epoch=NEXT)
    server = a_server(config, of_run(1))
    with FakeBroker(server) as broker:
        broker.consume(config.topology.updates.name, prefetch=9)
        assert broker.next_delivery(0)

    work(server, config, NEXT)

    assert rejected(server, config) == []
    assert server.bodies(config.topology.updates.name) == []
    assert UpdateId("w1", "run-1", 1) in newest(server, config).applied


def test_runs_of_before_secure_aggregation_stay_and_of_a_run_that_goes_on_nothing_is_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = {("w1", "old"): RunLog(2), ("w1", "plain"): RunLog(3), **PLAIN}
    first = replace(a_version(), applied=AppliedUpdates(plain))
    config = replace(a_secure_config(), first_version=lambda: first)
    server = a_server(config, *(a_masked(name) for name in WORKERS))

    work(server, config, EPOCH)
    record = newest(server, config)
    assert (record.unmasked_runs, len(record.applied.runs)) == (3, 6)

    config = a_secure_config(epoch=NEXT)
    # w3 has no update in the first sum of the new epoch.
    for sums in {"w1": 2, "w2": 2, "w4": 1}, {"w1": 3, "w2": 3, "w3": 2}:
        send(server, config, *(a_masked(name, sequence, epoch=NEXT) for name, sequence in sums.items()))
        work(server, config, NEXT)

    record = newest(server, config)
    assert (record.updates, record.unmasked_runs) == (9, 3)
    assert [*record.applied.runs] == [*plain, *((name, "r1") for name in (*WORKERS, "w4"))]
    assert "never came" not in caplog.text
