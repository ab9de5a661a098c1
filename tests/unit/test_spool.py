"""The spool: what is in it is on disk, in order, under ids that are given once, and damage is noticed."""

import logging
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from builders import an_update, values_of
from federation import wait_until
from hypothesis import given
from hypothesis import strategies as st

from fluffle.errors import ConfigError
from fluffle.update import AppliedUpdates, UpdateId, WeightUpdate
from fluffle.wire import decode_inbound, encode_update
from fluffle_worker.spool import Spool, open_spool

ROOMY = 1 << 20
UPDATE_BYTES = len(encode_update(an_update(run="0" * 16)))


@contextmanager
def a_spool(folder: Path, *, max_bytes: int = ROOMY) -> Iterator[Spool]:
    with open_spool(folder, worker="w1", max_bytes=max_bytes) as spool:
        yield spool


def add(spool: Spool, count: int = 1) -> list[UpdateId]:
    """Let so many updates wait; each carries its own number."""
    given = []
    for _ in range(count):
        number = float(spool.next_id.sequence)
        spool.add(replace(an_update(values=[number] * 4), id=spool.next_id))
        given.append(replace(spool.next_id, sequence=spool.next_id.sequence - 1))
    return given


def send_all(spool: Spool) -> list[UpdateId]:
    """Confirm what waits, from the oldest on; each message is the one that was added under its id."""
    found = []
    while waiting := spool.oldest():
        update_id, body = waiting
        message = decode_inbound(body)
        assert isinstance(message, WeightUpdate)
        assert message.id == update_id
        assert values_of(message.vector) == [float(update_id.sequence)] * 4
        found.append(update_id)
        spool.confirm()
    return found


def files(folder: Path, state: str) -> list[Path]:
    return sorted(folder.glob(f"*.{state}"))


def test_what_waits_is_there_in_its_order_when_the_worker_is_started_again(tmp_path: Path) -> None:
    with a_spool(tmp_path) as spool:
        first = add(spool, 3)

    with a_spool(tmp_path) as spool:
        later = add(spool, 2)
        sent = send_all(spool)

    assert sent == first + later
    assert [one.sequence for one in sent] == [1, 2, 3, 4, 5]
    assert len({one.run for one in sent}) == 1


def test_a_worker_that_is_started_again_gives_no_number_twice_though_nothing_waits(tmp_path: Path) -> None:
    with a_spool(tmp_path) as spool:
        [first, second] = add(spool, 2)
        send_all(spool)

    with a_spool(tmp_path) as spool:
        assert spool.waiting == 0
        assert spool.next_id == replace(second, sequence=3)

    assert first.run == second.run
    assert [path.stat().st_size for path in files(tmp_path, "done")] == [0]


def test_what_is_not_confirmed_is_given_again_under_the_same_id_with_the_same_bytes(tmp_path: Path) -> None:
    with a_spool(tmp_path) as spool:
        add(spool)
        before = spool.oldest()

    with a_spool(tmp_path) as spool:
        assert spool.oldest() == before


def test_the_files_are_the_workers_alone(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "w1"
    with a_spool(folder) as spool:
        add(spool)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_spool_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with a_spool(tmp_path), pytest.raises(ConfigError, match=r"another process .* 'w1' running already"):
        a_spool(tmp_path).__enter__()
    with a_spool(tmp_path) as spool:
        assert spool.waiting == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"file/w1 cannot be used \(Not a directory\): give --spool"):
        a_spool(tmp_path / "file" / "w1").__enter__()


def test_a_full_spool_drops_the_oldest_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with a_spool(tmp_path, max_bytes=3 * UPDATE_BYTES) as spool:
        given_ids = add(spool, 5)

        assert send_all(spool) == given_ids[2:]
    assert [one for one in caplog.messages if "spool is full" in one and str(given_ids[0]) in one]


def test_an_update_larger_than_the_spool_waits_alone(tmp_path: Path) -> None:
    with a_spool(tmp_path, max_bytes=1) as spool:
        given_ids = add(spool, 3)

        assert send_all(spool) == given_ids[2:]
        assert spool.next_id.sequence == 4


@given(
    st.lists(st.sampled_from(["add", "confirm", "end", "clear"]), max_size=30),
    st.integers(1, 4),
)
def test_whatever_happens_no_id_is_given_twice_and_the_bound_holds(steps: list[str], room: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given_ids: list[UpdateId] = []
        expected: list[UpdateId] = []
        spools = [a_spool(folder, max_bytes=room * UPDATE_BYTES)]
        spool = spools[-1].__enter__()
        try:
            for step in steps:
                if step == "add":
                    given_ids += add(spool)
                    expected = [*expected, given_ids[-1]][-room:]
                elif step == "confirm" and spool.oldest():
                    spool.confirm()
                    expected = expected[1:]
                elif step == "clear":
                    assert spool.clear() == len(expected)
                    expected = []
                elif step == "end":
                    spools[-1].__exit__(None, None, None)
                    spools.append(a_spool(folder, max_bytes=room * UPDATE_BYTES))
                    spool = spools[-1].__enter__()
                on_disk = [path.stat().st_size for path in files(folder, "update")]
                assert spool.waiting == len(expected) == len(on_disk)
                assert len(files(folder, "done")) <= 1
                assert len(set(given_ids)) == len(given_ids)
            assert send_all(spool) == expected
        finally:
            spools[-1].__exit__(None, None, None)


@given(st.data())
def test_damage_anywhere_is_noticed_set_aside_and_stops_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with a_spool(folder) as spool:
            _, good = add(spool, 2)
        path = files(folder, "update")[0]
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)

        with a_spool(folder) as spool:
            assert send_all(spool) == [good]
            assert spool.next_id.sequence == 3

        assert [one.read_bytes() for one in files(folder, "damaged")] == [bytes(content)]


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_a_file_with_something_after_its_end_is_damaged(tmp_path: Path, extra: bytes) -> None:
    with a_spool(tmp_path) as spool:
        add(spool)
        with files(tmp_path, "update")[0].open("ab") as file:
            file.write(extra)

        assert spool.oldest() is None
        assert len(files(tmp_path, "damaged")) == 1


def test_a_file_under_another_updates_name_is_damaged(tmp_path: Path) -> None:
    with a_spool(tmp_path) as spool:
        add(spool)
        path = files(tmp_path, "update")[0]
    path.replace(path.with_name(path.name.replace("0001-", "0002-")))

    with a_spool(tmp_path) as spool:
        assert spool.oldest() is None
        assert spool.next_id.sequence == 3


def test_the_number_of_a_damaged_update_is_not_given_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_spool(tmp_path) as spool:
        [given_id] = add(spool)
        files(tmp_path, "update")[0].write_bytes(b"")
        assert spool.oldest() is None
    with a_spool(tmp_path) as spool:
        assert spool.next_id == replace(given_id, sequence=2)

    [warning] = caplog.messages
    assert "cannot be sent and is set aside" in warning
    assert ".damaged" in warning


@contextmanager
def no_room_on_the_disk() -> Iterator[None]:
    """Let no file grow beyond a hundred bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_the_update_waits_in_memory_under_an_id_that_cannot_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_spool(tmp_path) as spool:
        [on_disk] = add(spool)
        with no_room_on_the_disk():
            in_memory = add(spool, 2)
        [after] = add(spool)

        assert send_all(spool) == [on_disk, *in_memory, after]
    assert [one.sequence for one in [on_disk, *in_memory, after]] == [1, 2, 3, 4]
    assert on_disk.run not in {one.run for one in [*in_memory, after]}
    assert len({one.run for one in [*in_memory, after]}) == 1
    assert len([one for one in caplog.messages if "it waits in memory" in one]) == 2
    with a_spool(tmp_path) as spool:
        assert spool.next_id == replace(after, sequence=5)


def test_what_waited_in_memory_is_lost_with_the_process_and_its_id_does_not_come_again(
    tmp_path: Path,
) -> None:
    with a_spool(tmp_path) as spool:
        [on_disk] = add(spool)
        with no_room_on_the_disk():
            [in_memory] = add(spool)

    with a_spool(tmp_path) as spool:
        assert (spool.waiting, spool.next_id) == (1, replace(on_disk, sequence=2))
        assert spool.next_id != in_memory
        assert files(tmp_path, "part") == []


def test_a_confirm_is_noted_on_a_full_disk_too(tmp_path: Path) -> None:
    with a_spool(tmp_path) as spool:
        add(spool)
        with no_room_on_the_disk():
            send_all(spool)

    with a_spool(tmp_path) as spool:
        assert (spool.waiting, spool.next_id.sequence) == (0, 2)


def test_a_folder_restored_from_an_older_copy_begins_a_fresh_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_spool(tmp_path) as spool:
        [known] = add(spool)

        spool.compare(AppliedUpdates().adding([known]))
        assert spool.next_id.run == known.run

        spool.compare(AppliedUpdates().adding([known, replace(known, sequence=7)]))
        assert spool.next_id.run != known.run
        assert add(spool)[0].sequence == 2
    assert [one for one in caplog.messages if "older than the updates that this worker has sent" in one]


ENDLESSLY = """
import sys
from dataclasses import replace
from pathlib import Path
from builders import an_update
from fluffle_worker.spool import open_spool
with open_spool(Path(sys.argv[1]), worker="w1", max_bytes=1 << 30) as spool:
    while True:
        spool.add(replace(an_update(values=[float(spool.next_id.sequence)] * 4), id=spool.next_id))
"""


def has_updates(folder: Path, count: int) -> bool:
    return len(files(folder, "update")) >= count


def test_a_worker_killed_while_it_writes_leaves_whole_updates_only(tmp_path: Path) -> None:
    for wanted in (5, 10, 15):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESSLY, str(tmp_path)], cwd=Path(__file__).parent.parent
        )
        try:
            wait_until(partial(has_updates, tmp_path, wanted), "updates")
        finally:
            process.kill()
            process.wait()

    with a_spool(tmp_path) as spool:
        count = spool.waiting
        sent = send_all(spool)
    assert files(tmp_path, "damaged") == files(tmp_path, "part") == []
    assert [one.sequence for one in sent] == list(range(1, count + 1))
    assert len({one.run for one in sent}) == 1


@pytest.fixture(autouse=True)
def only_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_a_spool_that_begins_anew_keeps_nothing_and_a_later_process_goes_on_with_its_fresh_run(
    tmp_path: Path,
) -> None:
    with a_spool(tmp_path) as spool:
        old = add(spool, 3)
        spool.confirm()
        (tmp_path / f"{2:012d}-{old[0].run}.damaged").write_bytes(b"")
        dropped = spool.start_over()
        fresh = add(spool)[0]
    with a_spool(tmp_path) as spool:
        next_id, waiting = spool.next_id, spool.waiting

    assert dropped == 2
    assert (fresh.sequence, waiting) == (1, 1)
    assert fresh.run != old[0].run
    assert next_id == replace(fresh, sequence=2)
