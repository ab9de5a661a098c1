"""How much memory a simulation may need, estimated before it starts."""

from dataclasses import dataclass

from fluffle.errors import ConfigError
from fluffle.plan import Plan

# A device's own objects: its state, its event and its round.
DEVICE_BYTES = 2_000


def needed_bytes(
    *,
    clients: int,
    model_bytes: int,
    plan: Plan,
    optimizer_bytes: int,
    local_bytes: int,
    noise_bytes: int = 0,
) -> int:
    """Return the most that the devices of a simulation may hold at one time.

    Each device holds an update that has not been taken in, and its local weights and its optimizer. It keeps
    the version that it started from, too, unless all devices start from the same one (synchronous rounds).
    With differential privacy, the leader keeps the noise of earlier sums.
    """
    own = model_bytes + local_bytes + (optimizer_bytes if plan.keep_optimizer else 0) + DEVICE_BYTES
    versions = 1 if plan.one_update_per_version else clients
    return clients * own + versions * model_bytes + noise_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """What one run may take of `available` bytes, when `runs` are played at a time.

    `available` is None where it is unknown.
    """

    available: int | None
    runs: int = 1

    def require(self, needed: int, *, clients: int, model_bytes: int) -> None:
        """Raise ConfigError when the run needs more bytes than its part."""
        if self.available is None or needed <= self.available // self.runs:
            return
        share = "" if self.runs == 1 else f" for each of the {self.runs} runs that are played at a time"
        raise ConfigError(
            f"{clients:,} clients with a model of {model_bytes / 1e6:,.1f} MB may need "
            f"{needed / 1e9:,.1f} GB of memory, and {self.available // self.runs / 1e9:,.1f} GB are "
            f"available{share}: simulate fewer clients"
        )
