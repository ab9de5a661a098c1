"""Files in the oldest form that is still read: a later Fluffle reads them, or refuses with both numbers.

tests/formats has one file of each kind. They are never written again: a change that cannot read them needs
another number of protocol or format, and new files.
"""

import hashlib
import logging
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fluffle.compression import decompressed
from fluffle.errors import ConfigError
from fluffle.framing import PROTOCOL
from fluffle.record_file import read_record
from fluffle.safetensors_file import read_model_file
from fluffle.update import MAX_RUNS, AppliedUpdates, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_worker.feedback import compress_with_feedback
from fluffle_worker.spool import open_spool, read_digested, write_digested

FILES = Path(__file__).parents[1] / "formats"
MIB = 2**20
OTHERS = [PROTOCOL - 1, PROTOCOL + 1]


def of_protocol(body: bytes, number: int) -> bytes:
    """Return a message that says another protocol."""
    said = b"\xa7fluffle"
    assert body.count(said + bytes([PROTOCOL])) == 1
    return body.replace(said + bytes([PROTOCOL]), said + bytes([number]))


def names_both(number: int) -> str:
    return rf"of protocol {number}, and this Fluffle speaks protocol {PROTOCOL}"


def test_the_oldest_record_that_can_be_read_is_read() -> None:
    version = read_record(FILES / "version.fluffle").version

    assert (version.federation, version.term, version.version) == ("ward-7", 2, 5)
    assert version.vector.tolist() == [1, 2, 3, 4]
    assert version.statistics.tolist() == [0.5, 0.25]
    assert version.weights["norm/count"] == 7
    assert version.layout.frozen is not None
    assert version.plan.keep_optimizer
    assert version.contributors["site-a"].refusal == "large-norm: too large"
    assert version.best_by == "accuracy:max"
    # It does not say which runs of workers may be forgotten.
    assert version.unmasked_runs == MAX_RUNS
    assert version.evaluation is not None
    assert math.isnan(version.evaluation.metrics["loss"])


def test_the_oldest_model_file_that_can_be_read_is_read() -> None:
    model = read_model_file(FILES / "model.safetensors")

    assert model.layout == read_record(FILES / "version.fluffle").version.layout
    assert model.weights["dense/kernel"].tolist() == [[1, 2], [3, 4]]


def test_the_oldest_spool_that_can_be_read_is_sent(tmp_path: Path) -> None:
    shutil.copytree(FILES / "spool", tmp_path / "spool")

    with open_spool(tmp_path / "spool", worker="site-a", max_bytes=MIB) as spool:
        waiting = spool.oldest()

    assert waiting is not None
    update = decode_inbound(waiting[1])
    assert isinstance(update, WeightUpdate)
    assert update.id == waiting[0]
    assert update.loss == 0.5


@pytest.mark.parametrize("number", OTHERS)
def test_a_record_of_another_protocol_is_refused_with_both_numbers(number: int, tmp_path: Path) -> None:
    body, _, _ = (FILES / "version.fluffle").read_bytes().rpartition(b"\nsha256 ")
    other = of_protocol(body, number)
    path = tmp_path / "other.fluffle"
    path.write_bytes(other + b"\nsha256 " + hashlib.sha256(other).hexdigest().encode() + b"\n")

    with pytest.raises(ConfigError, match=f"other.fluffle.*{names_both(number)}"):
        read_record(path)


@pytest.mark.parametrize("number", OTHERS)
def test_an_update_of_another_protocol_in_the_spool_is_set_aside_with_both_numbers(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = (FILES / "spool").iterdir()
    folder = tmp_path / "spool"
    folder.mkdir()
    write_digested(folder / path.name, of_protocol(read_digested(path), number))

    with (
        caplog.at_level(logging.WARNING),
        open_spool(folder, worker="site-a", max_bytes=MIB) as spool,
    ):
        assert spool.oldest() is None

    assert re.search(names_both(number), caplog.text)
    assert (folder / path.name).with_suffix(".damaged").exists()


@pytest.mark.parametrize("number", OTHERS)
def test_a_sent_update_of_another_protocol_is_left_out_of_the_feedback_with_both_numbers(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = (FILES / "spool").iterdir()
    folder = tmp_path / "spool"
    folder.mkdir()
    write_digested((folder / path.name).with_suffix(".sent"), of_protocol(read_digested(path), number))

    with (
        caplog.at_level(logging.WARNING),
        open_spool(folder, worker="site-a", max_bytes=MIB) as spool,
    ):
        made = compress_with_feedback(
            spool, AppliedUpdates(), "topk:0.5", np.ones(4, np.float32), np.random.default_rng(0)
        )

    assert re.search(names_both(number), caplog.text)
    assert np.count_nonzero(decompressed(made.vector)) == 2


def test_a_model_file_of_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    said, other = b'"fluffle.format":"2"', b'"fluffle.format":"9"'
    content = (FILES / "model.safetensors").read_bytes()
    assert content.count(said) == 1
    path.write_bytes(content.replace(said, other))

    with pytest.raises(ConfigError, match="of format 9, and this Fluffle reads format 2"):
        read_model_file(path)
