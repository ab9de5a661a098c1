"""A worker with differential privacy: it waits for its turn, says nothing of its data, and leaves."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_broker import FakeServer
from leading import Heard
from privately import a_privacy_plan, a_private_version, with_sum
from working import (
    TOPOLOGY,
    CountingTask,
    Scripted,
    a_federation,
    a_worker,
    later,
    publish_versions,
    sent_updates,
    version_of,
)

from fluffle.checked_task import CheckedTask
from fluffle.errors import ConfigError
from fluffle.events import Progressed, Trained, Validated
from fluffle.plan import Plan
from fluffle.privacy.plan import PrivacyPlan
from fluffle.record import Contributor, ModelVersion
from fluffle.topology import MIB
from fluffle.update import UpdateId
from fluffle_worker.private_turn import PrivateTurn
from fluffle_worker.released import ReleasedUpdates
from fluffle_worker.spool import Spool


def first_version(plan: PrivacyPlan) -> ModelVersion:
    return a_private_version(plan, version_of(CheckedTask(CountingTask()).model(), Plan()))


def work(
    folder: Path, first: ModelVersion, script: Callable[[FakeServer, int], None], **given: object
) -> tuple[FakeServer, CountingTask, str]:
    """Let a worker work until it leaves; return the server, its task, and why it left."""
    server, task = a_federation(first), CountingTask()
    result = a_worker(task, folder, **given).work(lambda: Scripted(server, script))
    return server, task, result.ended_by


def test_a_worker_sends_its_updates_one_after_the_other_and_leaves_when_they_are_spent(
    tmp_path: Path,
) -> None:
    records = [first_version(a_privacy_plan(updates=3))]

    def script(server: FakeServer, count: int) -> None:
        def commit() -> None:
            records.append(with_sum(records[-1], sent_updates(server)[-1].id))
            publish_versions(server, records[-1])

        later(commit)

    server, task, ended_by = work(tmp_path, records[0], script)

    assert [each.base_version for each in sent_updates(server)] == [0, 1, 2]
    assert ended_by.startswith("this worker's privacy budget of 3 updates is spent")
    assert len(task.started_from) == 3


def test_a_worker_waits_for_the_sums_between_two_of_its_updates(tmp_path: Path) -> None:
    records = [first_version(a_privacy_plan(updates=2, separation=3))]

    def script(server: FakeServer, count: int) -> None:
        def commit() -> None:
            # Its own sum, two of others, and versions without a sum.
            for others in (sent_updates(server)[-1].id, UpdateId("w2", "r", 1), None, UpdateId("w3", "r", 1)):
                before = records[-1]
                records.append(
                    with_sum(before, others) if others else replace(before, version=before.version + 1)
                )
                publish_versions(server, records[-1])

        later(commit)

    server, _, _ = work(tmp_path, records[0], script)

    assert [each.base_version for each in sent_updates(server)] == [0, 4]


def test_a_worker_trains_anew_when_its_update_was_refused(tmp_path: Path) -> None:
    records = [first_version(a_privacy_plan(updates=1))]

    def script(server: FakeServer, count: int) -> None:
        def refuse_and_then_take() -> None:
            before = records[-1]
            refused = replace(
                before, version=before.version + 1, contributors={"w1": Contributor(rejected=count)}
            )
            records.append(refused if count < 3 else with_sum(before, sent_updates(server)[-1].id))
            publish_versions(server, records[-1])

        later(refuse_and_then_take)

    server, _, ended_by = work(tmp_path, records[0], script)

    assert [each.base_version for each in sent_updates(server)] == [0, 1, 2]
    assert ended_by


def test_an_update_says_nothing_of_its_round(tmp_path: Path) -> None:
    first = first_version(a_privacy_plan(updates=1))

    def script(server: FakeServer, count: int) -> None:
        publish_versions(server, with_sum(first, sent_updates(server)[-1].id))

    server, _, _ = work(tmp_path, first, script)

    [update] = sent_updates(server)
    assert (update.examples, update.steps, update.batch_size, update.loss, update.train_s) == (
        1,
        1,
        0,
        None,
        0,
    )
    assert update.integers == b""


def test_a_worker_that_was_ended_does_not_send_a_second_update_beside_its_last(tmp_path: Path) -> None:
    first = first_version(a_privacy_plan(updates=2))
    server = a_federation(first)
    stop = threading.Event()
    a_worker(CountingTask(), tmp_path, stop=stop).work(lambda: Scripted(server, lambda *_: stop.set()))
    [sent_before] = sent_updates(server)
    later(lambda: publish_versions(server, with_sum(first, sent_before.id)))

    def script(_: FakeServer, count: int) -> None:
        second = with_sum(with_sum(first, sent_before.id), sent_updates(server)[-1].id)
        publish_versions(server, second)

    a_worker(CountingTask(), tmp_path).work(lambda: Scripted(server, script))

    assert [each.base_version for each in sent_updates(server)] == [0, 1]


def test_a_worker_that_trains_a_part_refuses_a_federation_with_a_promise(tmp_path: Path) -> None:
    spool = Spool(tmp_path, worker="w1", max_bytes=MIB)
    turn = PrivateTurn(
        worker="w1",
        topology=TOPOLOGY,
        stop=threading.Event(),
        train_share=0.5,
        spool=spool,
        released=ReleasedUpdates(tmp_path),
    )

    with pytest.raises(ConfigError, match=r"start this worker without --train-share 0\.5"):
        turn.begin(first_version(a_privacy_plan()))


def test_events_say_nothing_of_a_site(tmp_path: Path) -> None:
    first, heard = first_version(a_privacy_plan(updates=1)), Heard()

    def script(server: FakeServer, count: int) -> None:
        publish_versions(server, with_sum(first, sent_updates(server)[-1].id))

    work(tmp_path, first, script, event_sink=heard, delay_s=0.01)

    [trained] = [each for each in heard.events if isinstance(each, Trained)]
    assert (trained.loss, trained.seconds) == (None, 0.0)
    assert not any(isinstance(each, Progressed | Validated) for each in heard.events)
