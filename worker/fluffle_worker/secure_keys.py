"""A worker's key and the registry that it trusts, read from files; with the library `cryptography`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.privacy.skellam import SkellamNoise, encode_within
from fluffle.secure.key_files import WorkerKey, public_part, read_operator, read_private
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.measured import measured_values
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry, read_registry
from fluffle.secure.surveyed import numbers_of, survey_plan
from fluffle.sites import SiteEvaluation
from fluffle.survey.statistics import DataStatistics
from fluffle.update import UpdateId, WeightUpdate

log = get_logger(__name__)


class SecureKeys:
    """A worker's private key, and the registry of the epoch that it was read for."""

    def __init__(self, *, federation: str, worker: str, key: Path, registry: Path, operator: Path) -> None:
        """Read the three files. Raises ConfigError, which says what to do, if they do not fit together."""
        found = read_private(key, WorkerKey)
        if (found.federation, found.name) != (federation, worker):
            raise ConfigError(
                f"the key in {key} is that of the worker {found.name!r} of {found.federation!r}, and this is "
                f"{worker!r} of {federation!r}: give --secure-key this worker's own key, or start the worker "
                f"with the --name and --federation of the key"
            )
        self._federation, self._worker, self._registry_file = federation, worker, registry
        self._private, self._operator = found.private, read_operator(operator)
        self._masks = self._accepted(_read(registry, self._operator))

    @property
    def epoch(self) -> int:
        """The epoch of the registry that was read last."""
        return self._masks.registry.epoch

    @property
    def digest(self) -> str:
        """The digest of the helpers' keys in that registry."""
        return self._masks.registry.keys_digest

    def reread(self) -> str:
        """Read the registry's file again; return why it cannot be used, empty if it can.

        Raises ConfigError when the operator has signed a registry in which this worker cannot take part.
        """
        try:
            found = _read(self._registry_file, self._operator)
        except ConfigError as error:
            # Somebody may be copying it.
            return str(error)
        if found.epoch > self.epoch:
            self._masks = self._accepted(found)
            log.info("read the registry of a new epoch", epoch=found.epoch, file=str(self._registry_file))
        return ""

    def masking(
        self,
        update: WeightUpdate,
        delta: Vector,
        found: SiteEvaluation | None,
        plan: SecurePlan,
        random: np.random.Generator,
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of a delta, its update's statistics, and what this site has found at last.

        Return what masks them under an id.
        They are rounded once, so that the same id has the same bytes. Raises ConfigError for a plan of
        another epoch.
        """
        measured = measured_values(found, plan)
        values = np.concatenate([update.statistics, measured])
        return self._under(update, whole_numbers(delta, values, plan, random), plan)

    def masking_with_noise(
        self,
        update: WeightUpdate,
        delta: Vector,
        noise: SkellamNoise,
        plan: SecurePlan,
        random: np.random.Generator,
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of a delta, and add this worker's share of the noise to them.

        Return what masks them under an id. They are rounded with `random`, and the noise is drawn once, so
        that the same id has the same bytes. Raises ConfigError for a plan of another epoch.
        """
        numbers = encode_within(plan.fixed_point, delta, noise.l2, random)
        # Seeded by the operating system, and used for nothing else.
        noise.add_share(numbers, np.random.default_rng())
        return self._under(update, numbers, plan)

    def masking_answer(
        self, update: WeightUpdate, statistics: DataStatistics, plan: SecurePlan
    ) -> Callable[[UpdateId], WeightUpdate]:
        """Make whole numbers of what a survey asks for; return what masks them under an id.

        Raises ConfigError for a plan of another epoch, and TaskError for statistics that cannot be masked.
        """
        numbers, answer = numbers_of(statistics), replace(update, shape=statistics.shape)
        return self._under(answer, numbers, survey_plan(plan))

    def _under(
        self, update: WeightUpdate, numbers: Residues, plan: SecurePlan
    ) -> Callable[[UpdateId], WeightUpdate]:
        if plan.epoch != self.epoch:
            raise ConfigError(f"the plan is of epoch {plan.epoch}, and the registry of epoch {self.epoch}")
        masks = self._masks
        return lambda other: masks.masked(replace(update, id=other), numbers, plan)

    def _accepted(self, registry: Registry) -> Masks:
        """Return the masks of an epoch. Raises ConfigError if the registry is not for this worker's key."""
        file = self._registry_file
        if registry.federation != self._federation:
            raise ConfigError(
                f"{file} is the registry of {registry.federation!r}, and this worker is for "
                f"{self._federation!r}: ask the operator for the registry of {self._federation!r}"
            )
        if self._worker in registry.revoked:
            raise ConfigError(
                f"the worker {self._worker!r} is revoked in {file}, epoch {registry.epoch}: ask the "
                "operator; it can come back under another name, with another key"
            )
        registered = registry.worker_key(self._worker)
        if registered.public_bytes_raw().hex() != public_part(self._private):
            raise ConfigError(
                f"{file} has another public key for {self._worker!r} than that of this worker's private key: "
                f"give --secure-key the key that was registered, or let the operator register "
                f"{self._worker}.pub again"
            )
        try:
            for public in registry.public_group_keys:
                self._private.exchange(public)
        except ValueError as error:
            raise ConfigError(
                f"{file} has a key of helpers with which no mask can be made ({error}): ask the operator to "
                "make the helpers' keys again"
            ) from error
        return Masks(registry, self._private)


def _read(file: Path, operator: Ed25519PublicKey) -> Registry:
    try:
        return read_registry(file.read_text(encoding="utf-8"), operator)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot read the registry {file}: {why}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
