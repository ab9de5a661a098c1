"""When simulated devices are on. Pure: all chance comes from the seed, device by device.

A device that is off begins no round. A round that runs meanwhile waits and goes on when the device is on
again, as a process does on a laptop that sleeps; a round that is lost is a crash, which is another setting.
Each device has the same times for the same seed, whatever the strategy, so that strategies can be compared.
"""

import math
import struct
from array import array
from collections.abc import Sequence
from typing import Protocol

import xxhash

Interval = tuple[float, float]
SWITCHES = 3
# What is left of a round at the end of an interval may be no more than what rounding leaves.
ROUNDING_S = 1e-9


def uniform(seed: int, purpose: int, device: int, number: int) -> float:
    """Return a number in [0, 1) that follows from the arguments alone, in no order of calls."""
    packed = struct.pack("<qqq", purpose, device, number)
    return (xxhash.xxh3_64_intdigest(packed, seed=seed % 2**64) >> 11) * 2.0**-53


class Availability(Protocol):
    """Says when devices are on; `at` never goes back for one device."""

    def after(self, device: int, at: float, seconds: float) -> float:
        """Return when a device has been on for `seconds` since `at`; for 0, when it is on next."""


class Always:
    """Every device is always on."""

    def after(self, device: int, at: float, seconds: float) -> float:
        """See Availability."""
        del device
        return at + seconds


class OnOff:
    """Devices switch on and off after exponential times with these means, in seconds.

    At the start each is on with the share of time that it is on in the long run.
    """

    def __init__(self, count: int, on_s: float, off_s: float, *, seed: int) -> None:
        self._means = off_s, on_s
        self._seed = seed
        self._is_on = bytearray(
            uniform(seed, SWITCHES, device, 0) * (on_s + off_s) < on_s for device in range(count)
        )
        self._switched = array("l", [0]) * count
        self._until = array("d", [0.0]) * count
        for device in range(count):
            self._draw(device)

    def _draw(self, device: int) -> None:
        """Prolong a device's time by the next exponential number."""
        self._switched[device] += 1
        chance = uniform(self._seed, SWITCHES, device, self._switched[device])
        self._until[device] -= self._means[self._is_on[device]] * math.log1p(-chance)

    def after(self, device: int, at: float, seconds: float) -> float:
        """See Availability."""
        while True:
            until = self._until[device]
            if until > at and self._is_on[device]:
                if seconds <= until - at:
                    return at + seconds
                seconds -= until - at
            at = max(at, until)
            self._is_on[device] ^= 1
            self._draw(device)


class Traced:
    """Devices are on in these intervals, in seconds from the start, which come again after `loop_s`."""

    def __init__(self, intervals: Sequence[Sequence[Interval]], loop_s: float) -> None:
        self._intervals, self._loop_s = intervals, loop_s

    def after(self, device: int, at: float, seconds: float) -> float:
        """See Availability."""
        intervals, loop_s = self._intervals[device], self._loop_s
        on_s = sum(end - begin for begin, end in intervals)
        begun, place = divmod(at, loop_s)
        # After whole loops the place is the same.
        loops = max(0, math.ceil((seconds - ROUNDING_S) / on_s) - 1)
        seconds -= loops * on_s
        start = (begun + loops) * loop_s
        while True:
            for begin, end in intervals:
                since = max(begin, place)
                if since < end and seconds <= end - since + ROUNDING_S:
                    return start + min(end, since + seconds)
                seconds -= max(0.0, end - since)
            start, place = start + loop_s, 0.0
