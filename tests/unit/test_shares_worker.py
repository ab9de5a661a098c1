"""A worker that adds its share of the noise: it counts on its own disk what it sends, and believes nobody."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from broken_files import failing
from fake_broker import FakeServer
from privately import with_sum
from securing import EPOCH
from sharing import keys_of
from working import (
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
from fluffle.plan import Plan
from fluffle.privacy.plan import PrivacyPlan, PrivacyState
from fluffle.privacy.promise import PrivacyTarget
from fluffle.privacy.shares import SharedSums
from fluffle.record import Contributor, ModelVersion
from fluffle.survey.messages import Survey
from fluffle_worker import private_turn, released, spool
from fluffle_worker.released import NAME, ReleasedUpdates
from fluffle_worker.secure_keys import SecureKeys

TARGET = PrivacyTarget(epsilon=8.0, clip=1.0, updates=3, mechanism="distributed")
SUMS = SharedSums(size=2, honest=3, buffer_size=3)


def first_version(updates: int = 3, *, term: int = 1, survey: Survey | None = None) -> ModelVersion:
    promised = SUMS.new_plan(replace(TARGET, updates=updates))
    secure = SUMS.secure_plan(promised, EPOCH.number)
    plan = Plan(secure=secure, privacy=promised, codec=secure.codec)
    record = version_of(CheckedTask(CountingTask()).model(), plan)
    return replace(record, privacy=PrivacyState(commitment=""), survey=survey)


def with_refusals(record: ModelVersion, count: int) -> ModelVersion:
    """Return the next version, which tells of refusals and counts nothing."""
    refused = {"w1": Contributor(rejected=count)}
    return replace(record, version=record.version + 1, contributors=refused)


@pytest.fixture
def keys(tmp_path: Path) -> SecureKeys:
    (tmp_path / "keys").mkdir()
    return keys_of("w1", tmp_path / "keys")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def work(
    folder: Path, keys: SecureKeys, first: ModelVersion, script: Callable[[FakeServer, int], None]
) -> tuple[FakeServer, str]:
    """Let a worker work until it leaves; return the server, and why it left."""
    server = a_federation(first)
    result = a_worker(CountingTask(), folder, keys=keys).work(lambda: Scripted(server, script))
    return server, result.ended_by


def accepting(first: ModelVersion) -> Callable[[FakeServer, int], None]:
    """Return a script that makes a version of each update."""
    records = [first]

    def script(server: FakeServer, _count: int) -> None:
        def commit() -> None:
            records.append(with_sum(records[-1], sent_updates(server)[-1].id))
            publish_versions(server, records[-1])

        later(commit)

    return script


def refusing(first: ModelVersion) -> Callable[[FakeServer, int], None]:
    """Return a script that refuses each update, of which its record counts none."""
    records = [first]

    def script(server: FakeServer, count: int) -> None:
        def refuse() -> None:
            records.append(with_refusals(records[-1], count))
            publish_versions(server, records[-1])

        later(refuse)

    return script


def counted(folder: Path, version: ModelVersion) -> int:
    return ReleasedUpdates(folder).count("w1", version)


def test_a_worker_counts_each_update_and_leaves_when_all_are_sent(folder: Path, keys: SecureKeys) -> None:
    first = first_version()

    server, ended_by = work(folder, keys, first, accepting(first))

    assert [each.released for each in sent_updates(server)] == [1, 2, 3]
    assert ended_by == "this worker's privacy budget of 3 updates is spent: it has sent them all"
    assert counted(folder, first) == 3
    assert all((each.train_s, each.examples, each.loss) == (0.0, 0, None) for each in sent_updates(server))


def test_what_is_refused_is_spent_too_also_if_no_record_counts_it(folder: Path, keys: SecureKeys) -> None:
    first = first_version()

    server, ended_by = work(folder, keys, first, refusing(first))

    assert [each.released for each in sent_updates(server)] == [1, 2, 3]
    assert ended_by.endswith("it has sent them all")
    # Each has a noise of its own: nothing is sent twice with another one.
    assert len({bytes(each.vector.payload) for each in sent_updates(server)}) == 3


def test_the_count_goes_on_after_a_restart(folder: Path, keys: SecureKeys) -> None:
    first = first_version()
    ledger = ReleasedUpdates(folder)
    assert [ledger.note_next("w1", first) for _ in range(2)] == [1, 2]

    server, _ = work(folder, keys, first, accepting(first))

    assert [each.released for each in sent_updates(server)] == [3]


def test_of_a_lost_folder_the_record_tells_what_was_sent(folder: Path, keys: SecureKeys) -> None:
    first = first_version()
    assert first.privacy is not None
    known = replace(first, privacy=first.privacy.with_released("w1", 2))

    server, _ = work(folder, keys, known, accepting(known))

    assert [each.released for each in sent_updates(server)] == [3]


def test_an_unconfirmed_update_is_sent_again_with_the_same_bytes_and_counts_once(
    folder: Path, keys: SecureKeys
) -> None:
    first = first_version(1)
    server = a_federation(first)

    def lose(_server: FakeServer, _count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_worker(CountingTask(), folder, keys=keys).work(lambda: Scripted(server, lose))
    [before] = server.bodies("digits.updates")

    a_worker(CountingTask(), folder, keys=keys).work(lambda: Scripted(server, accepting(first)))

    assert server.bodies("digits.updates") == [before, before]
    assert counted(folder, first) == 1


def test_after_a_restart_a_worker_waits_for_the_update_of_its_earlier_life(
    folder: Path, keys: SecureKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_turn, "EARLIER_LOST_AFTER_S", 60.0)
    first = first_version(2)
    server = a_federation(first)
    worker = a_worker(CountingTask(), folder, keys=keys)
    worker.work(lambda: Scripted(server, lambda *_: worker.stop.set()))
    [sent_before] = sent_updates(server)
    later(lambda: publish_versions(server, with_sum(first, sent_before.id)))

    def script(_: FakeServer, count: int) -> None:
        publish_versions(server, with_sum(with_sum(first, sent_before.id), sent_updates(server)[-1].id))

    a_worker(CountingTask(), folder, keys=keys).work(lambda: Scripted(server, script))

    assert [(each.base_version, each.released) for each in sent_updates(server)] == [(0, 1), (1, 2)]


def test_an_update_that_waits_long_in_a_masked_buffer_is_not_trained_anew(
    folder: Path, keys: SecureKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without masks it is lost by then.
    monkeypatch.setattr(private_turn, "LOST_AFTER_S", 0.1)
    monkeypatch.setattr(private_turn, "LOOK_FOR_S", 0.05)
    first = first_version(2)
    accept = accepting(first)

    def script(server: FakeServer, count: int) -> None:
        threading.Timer(0.5, lambda: accept(server, count)).start()

    server, _ = work(folder, keys, first, script)

    assert [(each.base_version, each.released) for each in sent_updates(server)] == [(0, 1), (1, 2)]


def test_a_reset_of_the_federation_gives_no_new_budget(folder: Path, keys: SecureKeys) -> None:
    first = first_version(2)
    work(folder, keys, first, accepting(first))
    anew = replace(first, term=5, terms=tuple(replace(each, term=5) for each in first.terms))

    server, ended_by = work(folder, keys, anew, accepting(anew))

    assert sent_updates(server) == []
    assert ended_by.endswith("it has sent them all")


def other_promise(version: ModelVersion) -> PrivacyPlan:
    return SUMS.new_plan(replace(TARGET, epsilon=9.0))


@pytest.mark.parametrize("now", ["another promise", "none"])
def test_a_worker_that_has_sent_updates_refuses_a_federation_that_promises_something_else(
    folder: Path, keys: SecureKeys, now: str
) -> None:
    first = first_version()
    ReleasedUpdates(folder).note_next("w1", first)
    promised = None if now == "none" else other_promise(first)
    secure = SUMS.secure_plan(other_promise(first), EPOCH.number)
    changed = replace(first, plan=replace(first.plan, privacy=promised, secure=secure))

    with pytest.raises(ConfigError, match=f"has sent 1 updates to digits.* Delete .*{NAME} only if"):
        work(folder, keys, changed, accepting(changed))


def test_a_worker_refuses_a_plan_that_does_not_keep_to_its_promise(folder: Path, keys: SecureKeys) -> None:
    first = first_version()
    assert first.plan.privacy is not None
    broken = replace(first, plan=replace(first.plan, privacy=replace(first.plan.privacy, updates=30)))

    with pytest.raises(ConfigError, match="its plan does not keep to that: after 30 updates epsilon is"):
        work(folder, keys, broken, accepting(broken))

    assert not (folder / NAME).exists()


def test_a_worker_answers_no_survey_of_such_a_federation(folder: Path, keys: SecureKeys) -> None:
    first = first_version(survey=Survey(3))

    with pytest.raises(ConfigError, match="a survey is open, whose answers have no noise"):
        work(folder, keys, first, accepting(first))


def test_a_damaged_count_is_refused_and_says_what_to_do(folder: Path, keys: SecureKeys) -> None:
    first = first_version()
    ReleasedUpdates(folder).note_next("w1", first)
    whole = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(whole[:-1])

    with pytest.raises(ConfigError, match=r"says how many updates this worker has sent .* put a good copy"):
        a_worker(CountingTask(), folder, keys=keys)


def test_no_update_is_sent_before_it_is_counted_on_the_disk(
    folder: Path,
    keys: SecureKeys,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(released, "WRITE_AGAIN_S", 0.05)
    first = first_version(1)
    server, stack = a_federation(first), ExitStack()

    def fill_the_disk() -> None:
        stack.enter_context(failing(0, lambda: OSError(28, "No space left on device")))
        later(stack.close)

    task = CountingTask(meanwhile=fill_the_disk)

    a_worker(task, folder, keys=keys).work(lambda: Scripted(server, accepting(first)))

    assert "an update waits until it can be counted on the disk" in caplog.text
    assert [each.released for each in sent_updates(server)] == [1]


def test_an_update_that_gets_another_id_on_a_full_disk_counts_once_more(
    folder: Path, keys: SecureKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, right = first_version(), spool.write_digested

    def no_room(path: Path, *parts: bytes) -> None:
        if not path.name.startswith("000000000001"):
            raise ConfigError(f"cannot write {path}: No space left on device")
        right(path, *parts)

    monkeypatch.setattr(spool, "write_digested", no_room)

    server, ended_by = work(folder, keys, first, accepting(first))

    # The second one had two ids, of which one was sent.
    assert [each.released for each in sent_updates(server)] == [1, 3]
    assert counted(folder, first) == 3
    assert ended_by.endswith("it has sent them all")


def test_nothing_without_masks_and_noise_is_on_the_disk(folder: Path, keys: SecureKeys) -> None:
    first = first_version(1)
    kept: list[bytes] = []

    def script(server: FakeServer, count: int) -> None:
        kept.extend(path.read_bytes() for path in folder.glob("*.update"))
        accepting(first)(server, count)

    server, _ = work(folder, keys, first, script)

    [update] = sent_updates(server)
    assert len(kept) == 1
    assert bytes(update.vector.payload) in kept[0]
    assert {path.suffix for path in folder.iterdir()} <= {".done", ".ledger", ""}
