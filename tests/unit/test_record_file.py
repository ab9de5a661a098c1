"""`.fluffle` files: what comes back is what was written, or one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_version

from fluffle.errors import ConfigError
from fluffle.record_file import read_record, write_record
from fluffle.record_wire import encode_version
from fluffle.update import AppliedUpdates, UpdateId

BODY = encode_version(replace(a_version(3), applied=AppliedUpdates().adding([UpdateId("w", "r", 1)])))


def test_a_record_comes_back_byte_by_byte(tmp_path: Path) -> None:
    write_record(tmp_path / "model.fluffle", BODY)

    stored = read_record(tmp_path / "model.fluffle")

    assert stored.body == BODY
    assert UpdateId("w", "r", 1) in stored.version.applied
    assert list(tmp_path.iterdir()) == [tmp_path / "model.fluffle"]


def test_a_file_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "model.fluffle"
    write_record(path, encode_version(a_version(2)))

    write_record(path, BODY)

    assert read_record(path).version.version == 3


@pytest.mark.parametrize("position", [10, 100, len(BODY) // 2, len(BODY) - 3, -5])
def test_a_single_wrong_byte_is_noticed_wherever_it_is(tmp_path: Path, position: int) -> None:
    path = tmp_path / "model.fluffle"
    write_record(path, BODY)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"model\.fluffle is damaged"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", BODY, BODY + b"\nsha256 12\n"])
def test_the_error_of_another_file_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.fluffle"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"model\.fluffle is incomplete, or not a file of"):
        read_record(path)


def test_the_error_of_a_file_without_a_version_names_it(tmp_path: Path) -> None:
    write_record(tmp_path / "model.fluffle", b"no record")

    with pytest.raises(ConfigError, match=r"has no version that this Fluffle can read"):
        read_record(tmp_path / "model.fluffle")


def test_the_error_of_a_missing_file_or_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.fluffle"):
        read_record(tmp_path / "gone.fluffle")
    with pytest.raises(ConfigError, match=r"cannot write .*model\.fluffle: No such file"):
        write_record(tmp_path / "nowhere" / "model.fluffle", BODY)
