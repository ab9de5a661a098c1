"""CSV files that say how fast simulated devices are, and when they are on.

Each row is checked, and each fault is a ConfigError that names the file, the line and what was expected.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Final

from fluffle.errors import ConfigError
from fluffle_cli.simulate.availability import Interval

DEVICE: Final = "device"
# If nobody is on for so many times as long as the trace itself lasts, its times count from elsewhere.
MOST_LEAD: Final = 10
FROM_S, TO_S = "from_s", "to_s"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the cells of the wanted columns by name, and where it stands, for errors."""

    cells: Mapping[str, str]
    where: str

    def device(self) -> int:
        """Return the number of the device, from 0 up."""
        text = self.cells[DEVICE]
        if not (text.isascii() and text.isdigit()):
            raise ConfigError(f"{self.where}: {DEVICE} must be a whole number from 0 up, not {text!r}")
        return int(text)

    def seconds(self, column: str) -> float:
        """Return a finite number of seconds of at least 0."""
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError as error:
            found = f"not {text!r}" if text else "and the cell is empty"
            raise ConfigError(f"{self.where}: {column} must be a number of seconds, {found}") from error
        if not (isfinite(value) and value >= 0):
            raise ConfigError(f"{self.where}: {column} must be finite and at least 0, not {text}")
        return value


def read_seconds(path: Path, column: str, count: int) -> list[float]:
    """Return the seconds of the devices 0 to `count` - 1; each has one row, and further rows are not used."""
    found: dict[int, tuple[float, str]] = {}
    for row in _rows(path, DEVICE, column):
        device, seconds = row.device(), row.seconds(column)
        if device in found:
            raise ConfigError(f"{row.where}: device {device} stands on {found[device][1]} already")
        found[device] = seconds, row.where.rpartition(", ")[2]
    _require_all(path, found, count)
    return [found[device][0] for device in range(count)]


def read_intervals(path: Path, count: int) -> tuple[list[list[Interval]], float]:
    """Return when each of the devices 0 to `count` - 1 is on, in ascending order, and the length of the loop.

    A row says that a device is on from `from_s` to `to_s`, in seconds from the start of the simulation. The
    last `to_s` of the file is the end of the loop, for all devices.
    """
    found: dict[int, list[tuple[Interval, str]]] = {}
    for row in _rows(path, DEVICE, FROM_S, TO_S):
        device, interval = row.device(), (row.seconds(FROM_S), row.seconds(TO_S))
        if interval[0] >= interval[1]:
            raise ConfigError(
                f"{row.where}: {TO_S} must be later than {FROM_S}, {interval[0]:g}, not {interval[1]:g}"
            )
        found.setdefault(device, []).append((interval, row.where))
    _require_all(path, found, count)
    for device, intervals in found.items():
        intervals.sort()
        for (before, _), (interval, where) in pairwise(intervals):
            if interval[0] < before[1]:
                raise ConfigError(
                    f"{where}: device {device} is on from {interval[0]:g} s, but another row has it on "
                    f"from {before[0]:g} to {before[1]:g} s: join the two rows"
                )
    begin = min(interval[0] for intervals in found.values() for interval, _ in intervals)
    end = max(interval[1] for intervals in found.values() for interval, _ in intervals)
    if begin > MOST_LEAD * (end - begin):
        raise ConfigError(
            f"{path}: no device is on before {begin:.10g} s, and the trace lasts {end - begin:g} s from then "
            f"on: times must count from the start of the simulation, so subtract {begin:.10g} from "
            f"each {FROM_S} and {TO_S}"
        )
    return [[interval for interval, _ in found[device]] for device in range(count)], end


def _rows(path: Path, *columns: str) -> Iterator[Row]:
    """Yield the rows of a file; spaces around cells and empty lines do not count."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [each.strip() for each in next(reader, [])]
            if missing := [each for each in columns if each not in header]:
                found = ", ".join(header) or "nothing"
                raise ConfigError(
                    f"{path}, line 1: the column {missing[0]} is missing; expected {', '.join(columns)}, "
                    f"found {found}"
                )
            if twice := [each for each in columns if header.count(each) > 1]:
                raise ConfigError(f"{path}, line 1: the column {twice[0]} stands there twice: remove one")
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if not any(map(str.strip, cells)):
                    continue
                if len(cells) != len(header):
                    raise ConfigError(f"{where}: expected {len(header)} cells, found {len(cells)}")
                row = dict(zip(header, map(str.strip, cells), strict=True))
                yield Row({each: row[each] for each in columns}, where)
    except OSError as error:
        raise ConfigError(f"the trace {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the trace {path} is no text in UTF-8: save it as CSV") from error
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: this is no CSV: {error}") from error


def _require_all(path: Path, found: Mapping[int, object], count: int) -> None:
    """Raise ConfigError unless each device has a row."""
    missing = next((device for device in range(count) if device not in found), None)
    if missing is None:
        return
    highest = max(found, default=-1)
    if missing > highest:
        raise ConfigError(
            f"{path} has rows for {len(found)} devices, and {count} are to be simulated: add rows, or give "
            f"--clients {len(found)}"
            if found
            else f"{path} has no row: expected one for each of {count} devices"
        )
    raise ConfigError(f"{path} has no row for device {missing}, but one for device {highest}")
