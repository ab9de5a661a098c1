"""What hostile messages cost whoever reads them: their vector and at most 64 MB, and no long time.

A record, which only an aggregator can publish, may take 84 MB.

Each is read in a process of its own, whose peak memory Linux tells: tracemalloc does not see all of it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_layout, a_vector, a_version, an_update, float32s
from messages import rewritten, with_raw

from fluffle import record_wire
from fluffle.compression import compress
from fluffle.errors import MessageTooLarge
from fluffle.model import Layout, TensorSpec
from fluffle.record import MAX_NORMS, Contributor, Folded, MomentsRecord, Rank
from fluffle.record_wire import decode_version, encode_version, moments_pieces
from fluffle.topology import MIB
from fluffle.update import MAX_GAPS, MAX_GAPS_PER_RUN, MAX_RUNS, AppliedUpdates, RunLog, UpdateId
from fluffle.wire import encode_update

MB = 1_000_000
# An honest one of these sizes takes a second at most; what is quadratic in them takes minutes.
CPU_LIMIT_S = 30.0
UPDATE, VERSION = encode_update(an_update("w1")), encode_version(a_version())
MOMENTS = bytes(moments_pieces(MomentsRecord("digits", Rank(1, 1), {"m": a_vector(1)})))
SHORT_TEXT = b"\xb0a few words " + "🐇".encode()
ITEMS, HEADER_BYTES = record_wire.RECORD.items, record_wire.RECORD.size_bytes


def list_of(count: int, each: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + count * each


def texts(size_bytes: int) -> bytes:
    """Return a text that takes four bytes a letter in memory, since one letter needs them."""
    text = b"a" * (size_bytes - 4) + "🐇".encode()
    return b"\xdb" + len(text).to_bytes(4, "big") + text


def wide(number: int, size_bytes: int) -> bytes:
    """Return a short text of this size in a message, and of four bytes a letter in memory."""
    text = f"{number:07}".encode().ljust(size_bytes - 4, b"a") + "🐇".encode()
    return b"\xd9" + bytes([len(text)]) + text


def with_tensors(tensors: list[list[object]]) -> bytes:
    return rewritten(VERSION, layout=[tensors, None])


INBOUND: Mapping[str, Callable[[], bytes]] = {
    "60,000 empty maps": lambda: with_raw(UPDATE, "loss", list_of(60_000, b"\x80")),
    "200 empty maps": lambda: with_raw(UPDATE, "loss", list_of(200, b"\x80")),
    "lists of four billion in each other": lambda: with_raw(UPDATE, "loss", b"\xdd\xff\xff\xff\xff" * 10_000),
    "lists of 60,000 in each other": lambda: with_raw(UPDATE, "loss", b"\xdc\xea\x60" * 10_000),
    "a long text": lambda: with_raw(UPDATE, "loss", texts(60_000)),
    "a header of 64 MiB": lambda: with_raw(UPDATE, "loss", texts(64 * MIB)),
    "a vector of 64 MiB that no model has": lambda: encode_update(
        replace(an_update("w1"), vector=float32s(np.zeros(16 * MIB, np.float32)))
    ),
    "a payload of 64 MiB that is not announced": lambda: UPDATE + bytes(64 * MIB),
}
RECORDS: Mapping[str, Callable[[], bytes]] = {
    "eight million empty maps": lambda: with_raw(VERSION, "folded", list_of(8 * MIB, b"\x80")),
    "as many empty maps as may be": lambda: with_raw(VERSION, "folded", list_of(ITEMS - 500, b"\x80")),
    "as many empty lists as may be": lambda: with_raw(VERSION, "applied", list_of(ITEMS - 500, b"\x90")),
    "short lists of empty maps": lambda: with_raw(
        VERSION, "folded", list_of(8 * 1024, b"\xdc\x03\xff" + b"\x80" * 1023)[: 8 * MIB - 2000]
    ),
    "the largest lists in each other": lambda: with_raw(
        VERSION, "folded", 500 * (b"\xdd" + (ITEMS - 500).to_bytes(4, "big"))
    ),
    "the longest text": lambda: with_raw(VERSION, "strategy", texts(HEADER_BYTES - 2000)),
    "many texts": lambda: with_raw(VERSION, "folded", list_of(ITEMS - 500, SHORT_TEXT)),
    "maps of one entry with long texts": lambda: with_raw(
        VERSION,
        "folded",
        list_of(ITEMS // 3, b"")
        + b"".join(b"\x81" + wide(number, 29) + wide(number, 29) for number in range(ITEMS // 3 - 2000)),
    ),
    "one large map": lambda: with_raw(
        VERSION,
        "folded",
        b"\xdf"
        + (ITEMS // 2 - 500).to_bytes(4, "big")
        + b"".join(wide(number, 16) + b"\xcb12345678" for number in range(ITEMS // 2 - 500)),
    ),
    "maps of one entry, as many as may be": lambda: with_raw(
        VERSION,
        "folded",
        list_of(ITEMS // 8 - 100, b"")
        + b"".join(b"\x81" + wide(number, 80) + wide(number, 80) for number in range(ITEMS // 8 - 100)),
    ),
    "one map, as large as may be": lambda: with_raw(
        VERSION,
        "folded",
        b"\xdf"
        + (ITEMS // 3 - 500).to_bytes(4, "big")
        + b"".join(wide(number, 16) + wide(number, 45) for number in range(ITEMS // 3 - 500)),
    ),
    "a name for all tensors": lambda: with_tensors([["w", [], "int8"]] * (ITEMS // 4 - 500)),
    "moments without end": lambda: rewritten(MOMENTS, names=[str(n) for n in range(ITEMS - 500)]),
    "a shape of many dimensions": lambda: with_tensors([["w", [2**63] * (ITEMS - 500), "int8"]]),
    "many runs": lambda: rewritten(
        VERSION, applied=[[f"w{n}", "0123456789abcdef", [1, []]] for n in range(ITEMS // 6 - 500)]
    ),
}  # fmt: skip


def decode_in_a_child(which: str, body: bytes, folder: Path) -> tuple[str, float]:
    """Return why the message was refused and the bytes that it took; fail when it took long."""
    (folder / "body").write_bytes(body)
    command = [sys.executable, str(Path(__file__).with_name("decoding.py")), which, str(folder / "body")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["seconds"] < CPU_LIMIT_S
    return found["refused"], found["bytes"]


@pytest.mark.parametrize("name", INBOUND)
def test_a_hostile_message_takes_at_most_64_mb_of_memory(tmp_path: Path, name: str) -> None:
    _, taken_bytes = decode_in_a_child("inbound", INBOUND[name](), tmp_path)

    assert taken_bytes < 64 * MB


@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_takes_at_most_84_mb_of_memory(tmp_path: Path, name: str) -> None:
    _, taken_bytes = decode_in_a_child("record", RECORDS[name](), tmp_path)

    assert taken_bytes < 84 * MB


def test_a_compressed_update_takes_the_vector_that_it_stands_for_and_at_most_64_mb(tmp_path: Path) -> None:
    size = 16 * MIB
    vector = compress("bfloat16", np.zeros(size, np.float32), np.random.default_rng(0))
    compressed = encode_update(
        replace(an_update("w1", codec="bfloat16", layout=a_layout(size)), vector=vector)
    )

    refused, taken_bytes = decode_in_a_child("inbound", compressed, tmp_path)

    assert refused == ""
    assert taken_bytes < 4 * size + 64 * MB


def test_no_update_is_larger_than_the_largest_model_when_it_is_decompressed(tmp_path: Path) -> None:
    bomb = rewritten(encode_update(an_update("w1", codec="bfloat16")), parameters=2**27 + 1)

    refused, taken_bytes = decode_in_a_child("inbound", bomb, tmp_path)

    assert "field parameters: 134217729 is not from 0 to 134217728" in refused
    assert taken_bytes < 64 * MB


def test_a_record_that_could_not_be_read_again_is_never_published() -> None:
    runs = {("w", f"{n:016x}"): RunLog(1) for n in range(ITEMS // 5)}

    with pytest.raises(
        MessageTooLarge, match="nobody could read this version again: its lists and maps hold"
    ):
        encode_version(replace(a_version(), applied=AppliedUpdates(runs)))


def test_the_largest_record_that_a_leader_makes_is_read_again(tmp_path: Path) -> None:
    """As many runs, gaps and workers as a model remembers, a large buffer, and a deep model."""
    gaps = tuple((2 * n + 1, 2 * n + 1) for n in range(MAX_GAPS_PER_RUN))
    with_gaps = MAX_GAPS // MAX_GAPS_PER_RUN
    logs = [RunLog(2**40, gaps if n < with_gaps else ()) for n in range(MAX_RUNS)]
    runs = {(f"hospital-{n:05}.example.org", f"{n:016x}"): log for n, log in enumerate(logs)}
    record = replace(
        a_version(),
        layout=Layout(tuple(TensorSpec(f"block_{n}/kernel", (0, 3, 3, 8), "float32") for n in range(1000))),
        vector=a_vector(),
        applied=AppliedUpdates(runs),
        norms=(1.5,) * MAX_NORMS,
        contributors={worker: Contributor(9, 9000, 9, 1.5, 9, 1.7e9, 0.5, "x" * 200) for worker, _ in runs},
        folded=tuple(Folded(UpdateId(*run, 2**40), 1000, 1, 0.5) for run in list(runs)[:4000]),
    )

    body = encode_version(record)

    assert decode_version(body).applied == record.applied
    _, taken_bytes = decode_in_a_child("record", body, tmp_path)
    assert taken_bytes < 64 * MB
