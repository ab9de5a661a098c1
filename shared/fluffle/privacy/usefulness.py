"""Whether anything can be learnt through the noise: how long it is beside the updates. Pure.

The noise of an element of the model is what all versions have added. Beside it stands the most that updates
can do: each version moves the model by the clip, always in one direction. What is real is less, so a model
whose noise is as long as that has learnt nothing.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Final

from fluffle.privacy.correlated import noise_after

MOST_WORKERS: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyRun:
    """A federation whose workers all send all the updates that they may.

    `std` is the standard deviation of the noise that is added to each sum, which then is divided by the
    `buffer_size`; or with `to_each_update` of that which is added to each update, as the mechanism local
    does.
    """

    workers: int
    updates: int
    separation: int
    buffer_size: int
    size: int
    clip: float
    std: float
    bands: int = 1
    to_each_update: bool = False

    @property
    def steps(self) -> int:
        """The number of versions."""
        return max(1, self.workers * self.updates // self.buffer_size)

    @property
    def noise_to_updates(self) -> float:
        """How many times as long as all updates together the noise in the last model is."""
        of_sum = self.std * (math.sqrt(self.buffer_size) if self.to_each_update else 1.0)
        noise = of_sum * noise_after(self.steps, self.bands) * math.sqrt(self.size)
        return noise / (self.buffer_size * self.steps * self.clip)

    def useful_buffer(self) -> int | None:
        """Return the smallest buffer, from this one on, in which the noise is shorter than the updates.

        None if the workers can fill no such buffer.
        """
        sizes = range(self.buffer_size, self.workers // self.separation + 1)
        first = bisect_left(sizes, True, key=lambda size: replace(self, buffer_size=size).is_useful)
        return sizes[first] if first < len(sizes) else None

    def enough_workers(self) -> int | None:
        """Return from how many workers on the noise is shorter than the updates; None if from none on."""
        numbers = range(1, MOST_WORKERS + 1)
        first = bisect_left(numbers, True, key=lambda workers: replace(self, workers=workers).is_useful)
        return numbers[first] if first < len(numbers) else None

    @property
    def is_useful(self) -> bool:
        """Whether the noise is shorter than all updates together can be."""
        return self.noise_to_updates < 1

    def warnings(self) -> list[str]:
        """Return what to say to whoever starts such a run; nothing if something can be learnt."""
        if self.is_useful:
            return []
        advice = "a larger epsilon, more workers or fewer parameters"
        if useful := self.useful_buffer():
            advice = f"a buffer_size of {useful} or more"
        return [
            f"the noise is so strong that little can be learnt: after {self.steps} versions it is "
            f"{self.noise_to_updates:.1f} times as long as all updates together can be; take {advice}"
        ]
