"""How much memory is left, in a machine and in its control groups."""

from pathlib import Path

import pytest

from fluffle.free_memory import available_bytes, left_in_groups
from fluffle.topology import MIB
from fluffle_worker.pace.memory import memory_of_process


def a_group(folder: Path, *, limit: str, used: int, of_files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - of_files}\ninactive_file {of_files}\nslab 5\n")


def test_the_limits_of_all_groups_that_a_process_is_in_count(tmp_path: Path) -> None:
    a_group(tmp_path / "kube/pod", limit="1000", used=400, of_files=100)
    a_group(tmp_path / "kube", limit="max", used=5000)
    a_group(tmp_path, limit="800", used=900)

    assert list(left_in_groups("0::/kube/pod\n", tmp_path)) == [700, 0]
    # As a container sees its own group.
    assert list(left_in_groups("12:pids:/x\n0::/\n", tmp_path)) == [0]


@pytest.mark.parametrize("own", ["", "4:memory:/old\n", "0::/elsewhere\n", "0::/../..\n"])
def test_groups_that_say_nothing_have_no_limit(own: str, tmp_path: Path) -> None:
    assert list(left_in_groups(own, tmp_path)) == []


def test_a_process_may_take_half_of_what_is_free_or_what_its_flag_says() -> None:
    free, by_default, by_flag = available_bytes(), memory_of_process(None), memory_of_process(500)

    assert free is not None
    assert by_default.most is not None
    assert by_default.limit is not None
    assert by_default.most > 10 * MIB
    assert by_default.limit - by_default.most == pytest.approx(free / 2, rel=0.3)
    assert by_flag.limit == 500 * MIB
