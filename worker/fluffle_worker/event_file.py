"""Files of events as TensorBoard reads them, written without TensorBoard and TensorFlow.

A file is a sequence of TFRecords: length, its checksum, bytes, their checksum. The bytes are an `Event` of
protocol buffers, of which only what a scalar and a histogram need is here. Sources: tensorflow's
record_writer.cc, event.proto, summary.proto and histogram.proto.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

VERSION: Final = "brain.Event:2"
BINS: Final = 30
LARGEST_FLOAT32: Final = float(np.finfo(np.float32).max)


class EventFile:
    """One file in a folder, which is one curve in each of TensorBoard's charts."""

    def __init__(self, folder: Path) -> None:
        """Begin a new file. Raises OSError when it cannot be written, as the others do."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered: whoever looks sees each event at once.
        self._file = (folder / name).open("ab", buffering=0)
        self._file.write(record(_double(1, time.time()) + _bytes(3, VERSION.encode())))

    def add(
        self,
        step: int,
        *,
        at: float,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Write the values of one step by their tags; `at` is Unix time in seconds.

        A histogram of nothing, and a number that float32 does not hold, are left out.
        """
        values = [
            _bytes(1, tag.encode()) + _float(2, value)
            for tag, value in scalars.items()
            if abs(value) <= LARGEST_FLOAT32
        ]
        values += [
            _bytes(1, tag.encode()) + _bytes(5, histogram(numbers))
            for tag, numbers in (histograms or {}).items()
            if len(numbers)
        ]
        summary = b"".join(_bytes(1, value) for value in values)
        self._file.write(record(_double(1, at) + _integer(2, step) + _bytes(5, summary)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def histogram(values: Sequence[float]) -> bytes:
    """Return a HistogramProto of finite values, of which there is at least one."""
    numbers = np.asarray(values, np.float64)
    # Of equal values numpy would make bins beyond the smallest and the largest: the ends for TensorBoard.
    counts, edges = np.histogram(numbers, BINS if numbers.min() < numbers.max() else [numbers[0]] * 2)
    about = (numbers.min(), numbers.max(), numbers.size, numbers.sum(), np.square(numbers).sum())
    return b"".join(
        [
            *(_double(number, float(value)) for number, value in enumerate(about, 1)),
            _bytes(6, edges[1:].astype("<f8").tobytes()),
            _bytes(7, counts.astype("<f8").tobytes()),
        ]
    )


def record(data: bytes) -> bytes:
    """Frame an event."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


# The low three bits of a field's key say how its value is written.
def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    said = bytearray()
    while value > 0x7F:
        said.append(value & 0x7F | 0x80)
        value >>= 7
    said.append(value)
    return bytes(said)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE: Final = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    """Return the CRC-32C of bytes, rotated and shifted as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
