"""The keys of a worker for secure aggregation, and its masks."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.secure.key_files import WorkerKey, public_part, read_operator, read_private
from fluffle.secure.limbs import LARGEST
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, read_registry
from fluffle.update import WeightUpdate
from fluffle.vector_math import largest_magnitude

log = get_logger(__name__)

# Of the elements of an update; more than these are worth a warning.
MOST_CLIPPED = 0.01
# Where the largest element is so much smaller than the clip, most of the bits are wasted.
LEAST_OF_CLIP = 1 / 64
LOOK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class SecureFiles:
    """Where a worker's key, the registry and the operator's public key lie."""

    key: Path
    registry: Path
    operator: Path


@dataclass(eq=False)
class WorkerSecrets:
    """What a worker of this name needs for secure aggregation.

    Raises ConfigError when a file is missing, damaged, or for somebody else.
    """

    files: SecureFiles
    federation: str
    worker: str
    registry: Registry = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the files."""
        self._key = read_private(self.files.key, WorkerKey)
        found, expected = (self._key.federation, self._key.name), (self.federation, self.worker)
        if found != expected:
            raise ConfigError(
                f"{self.files.key} is the key of the worker {found[1]!r} in the federation {found[0]!r}, and "
                f"this is {expected[1]!r} in {expected[0]!r}: give --secure-key its own file, or --name"
            )
        self._rounds_clipped = 0
        self._has_said_too_wide = False
        self.read_registry()

    def read_registry(self) -> None:
        """Read the registry again."""
        path = self.files.registry
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the registry {path} cannot be read: {error}") from error
        try:
            found = read_registry(text, read_operator(self.files.operator))
            known = found.worker_key(self.worker)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        if found.federation != self.federation:
            raise ConfigError(f"{path} is for the federation {found.federation!r}, not {self.federation!r}")
        if known.public_bytes_raw().hex() != public_part(self._key.private):
            raise ConfigError(
                f"{path} has another public key of {self.worker!r} than that of {self.files.key}: send "
                "the file that ends with .pub to the operator again"
            )
        self.registry = found

    def await_epoch(self, epoch: int, stop: threading.Event) -> bool:
        """Wait for the registry of the plan's epoch; False when asked to stop, or if the plan is older.

        The operator replaces the file when the keys are rotated.
        """
        looks = 0
        while self.registry.epoch != epoch and not stop.is_set():
            try:
                self.read_registry()
            except ConfigError as error:
                log.warning("the registry cannot be used", because=str(error))
            if self.registry.epoch == epoch:
                break
            if self.registry.epoch > epoch:
                line = "waiting for a version with the epoch of the registry"
                log.info(line, registry=self.registry.epoch, plan=epoch)
                stop.wait(LOOK_AGAIN_S)
                return False
            looks += 1
            if looks.bit_count() == 1:
                log.warning(
                    "waiting for the registry of the epoch that the aggregator has: get the new "
                    "registry.json from the operator",
                    registry=str(self.files.registry),
                    epoch=self.registry.epoch,
                    needed=epoch,
                )
            stop.wait(LOOK_AGAIN_S)
        return not stop.is_set()

    def numbers(
        self, delta: Vector, statistics: Vector, plan: SecurePlan, random: np.random.Generator
    ) -> Residues:
        """Return an update in whole numbers, and say if much of it had to be clipped."""
        self._warn_of_clip(delta, plan)
        largest = largest_magnitude(statistics) if statistics.size else 0.0
        if largest > LARGEST:
            log.warning("statistics are clipped: secure aggregation has none above 2**36", largest=largest)
        return whole_numbers(delta, statistics, plan, random)

    def masked(self, update: WeightUpdate, numbers: Residues, plan: SecurePlan) -> WeightUpdate:
        """Return an update that holds these numbers under the masks of its id."""
        return Masks(self.registry, self._key.private).masked(update, numbers, plan)

    def _warn_of_clip(self, delta: Vector, plan: SecurePlan) -> None:
        largest = largest_magnitude(delta)
        if plan.by_norm:
            size = float(np.linalg.norm(delta.astype(np.float64)))
            is_clipped, facts = size > plan.clip, {"norm": round(size, 4)}
        else:
            share = float(np.mean(np.abs(delta) > plan.clip)) if largest > plan.clip else 0.0
            is_clipped, facts = share > MOST_CLIPPED, {"largest": round(largest, 4), "share": round(share, 4)}
        if is_clipped:
            self._rounds_clipped += 1
            if self._rounds_clipped.bit_count() == 1:
                line = "updates are clipped: let the aggregator have a larger --secure-clip"
                log.warning(line, clip=plan.clip, rounds=self._rounds_clipped, **facts)
        elif not plan.by_norm and 0 < largest < plan.clip * LEAST_OF_CLIP and not self._has_said_too_wide:
            self._has_said_too_wide = True
            line = "updates are rounded coarsely: a smaller --secure-clip of the aggregator is more precise"
            log.warning(line, clip=plan.clip, largest=largest)
