"""How much memory each part uses over the whole soak, whoever of its lives it is."""

from dataclasses import dataclass, field
from statistics import median

from harness.process_memory import memory_bytes

MB = 1_000_000
# Young processes still import, and RabbitMQ still recovers: what they use says nothing about a leak.
WARM_UP_S = 20.0
# More than this much growth from the first to the last samples is a leak, whichever is larger.
GROWTH_MB, GROWTH_SHARE = 10.0, 0.2
# RabbitMQ takes more until its allocators have what they need for the worst moment, and then no more: in a
# soak of an hour 135 to 138 MB, at most 167, where one of 20 minutes went from 140 to 188.
RABBITMQ_GROWTH_MB = 60.0


@dataclass
class MemoryOfPart:
    """Samples of one part: seconds since the soak began, and megabytes in memory."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    peak_mb: float = 0.0
    growth_mb: float = GROWTH_MB

    def sample(self, process_id: int, *, now_s: float, age_s: float) -> None:
        """Take one sample; of young or dead processes only the peak counts, if there is any."""
        used = resident_mb(process_id)
        self.peak_mb = max(self.peak_mb, used)
        if used and age_s >= WARM_UP_S:
            self.samples.append((now_s, used))

    @property
    def first_mb(self) -> float:
        """The median of the first tenth."""
        return self._median_of(slice(None, self._tenth))

    @property
    def last_mb(self) -> float:
        """The median of the last tenth."""
        return self._median_of(slice(-self._tenth, None))

    @property
    def slope_mb_per_minute(self) -> float:
        """The slope of the line nearest to the samples, by least squares."""
        if len(self.samples) < 2:
            return 0.0
        mean_s = sum(at for at, _ in self.samples) / len(self.samples)
        mean_mb = sum(used for _, used in self.samples) / len(self.samples)
        spread = sum((at - mean_s) ** 2 for at, _ in self.samples)
        return 60 * sum((at - mean_s) * (used - mean_mb) for at, used in self.samples) / spread

    @property
    def is_flat(self) -> bool:
        """Whether the last samples are not much above the first ones."""
        return self.last_mb - self.first_mb <= max(self.growth_mb, GROWTH_SHARE * self.first_mb)

    @property
    def _tenth(self) -> int:
        return max(1, len(self.samples) // 10)

    def _median_of(self, part: slice) -> float:
        return median([used for _, used in self.samples[part]] or [0.0])


def resident_mb(process_id: int) -> float:
    """Return what a process has in memory, 0 when it is gone."""
    return memory_bytes(process_id, "VmRSS") / MB
