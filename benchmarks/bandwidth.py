"""What the memory gives: a copy and an in-place y += a * x of float32, on one core."""

from collections.abc import Callable

import numpy as np
from scipy.linalg.blas import saxpy
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Spread, in_turns, random_floats, seconds
from fluffle.model import Vector

# So much is moved in one measurement, so that the clock does not show.
LEAST_BYTES = 200_000_000


def bandwidths(size: int, repeats: int) -> dict[str, Spread]:
    """Return bytes of float32 a second for "copy" and "saxpy" of vectors of so many elements."""
    times = in_turns({name: timed(action, size) for name, action in moves(size).items()}, repeats)
    return {name: spread.rates(4 * size) for name, spread in times.items()}


def moves(size: int) -> dict[str, Callable[[], object]]:
    """Return the two actions, each on vectors of its own that are in memory already."""
    values, total, target = random_floats(size), random_floats(size, 1), np.ones(size, np.float32)
    return {
        "copy": lambda: np.copyto(target, values),
        "saxpy": lambda: saxpy_in_place(total, values, 0.5),
    }


def saxpy_in_place(total: Vector, values: Vector, scale: float) -> None:
    """Add scale * values to `total` by BLAS, as fast as memory allows."""
    saxpy(values, total, a=scale)


def timed(action: Callable[[], object], size: int) -> Callable[[], float]:
    """Return a measurement of the seconds that one action on so many float32 takes, on one core."""
    times = max(1, LEAST_BYTES // (4 * size))

    def measure() -> float:
        with threadpool_limits(1):
            return seconds(lambda: [action() for _ in range(times)]) / times

    return measure
