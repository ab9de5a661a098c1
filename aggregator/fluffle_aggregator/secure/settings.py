"""The settings of secure aggregation, and the plan that follows from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.privacy.shares import SharedSums
from fluffle.secure.closing import MOST_UPDATES
from fluffle.secure.fixed_point import FEWEST_BITS, MOST_BITS, FixedPoint, greatest_factor
from fluffle.secure.modulus import Modulus
from fluffle.secure.plan import SecurePlan
from fluffle.secure.weights import MOST_APART, MOST_FACTOR
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.secure.masked_buffer import share_of_one

if TYPE_CHECKING:
    from fluffle_aggregator.secure.registry_file import RegistryWatch

log = get_logger(__name__)

BITS_WITHOUT_NEED_OF_MORE: Final = 16
BY_NORM: Final = "norm"
FEWEST_WORKERS: Final = 3


def parse_clip(text: str) -> tuple[float, bool]:
    """Return the largest absolute value of an element, or with "norm:5" the largest L2 norm, and True.

    Raises ValueError, which says what is expected.
    """
    word, _, number = text.rpartition(":")
    try:
        clip = float(number)
    except ValueError:
        clip = 0.0
    if word not in ("", BY_NORM) or not 0 < clip < float("inf"):
        raise ValueError(f"must be a number above 0 such as 0.5, or a norm such as norm:5, not {text!r}")
    return clip, word == BY_NORM


def _require_bits(bits: int) -> int:
    Modulus(bits)
    return bits


class SecureSettings(BaseModel):
    """The settings of secure aggregation."""

    secure_aggregation: bool = Field(
        False,
        description="Learn the sum of each buffer and no single update: workers mask their updates, and a "
        "committee of helpers takes the masks off the sum. Needs a registry (`fluffle keys`) and a helper "
        "for each of its names (`fluffle helper`). The strategy is then fedbuff unless given.",
    )
    secure_registry: Path | None = Field(
        None,
        description="File with the registry of helpers and workers, signed by the operator: registry.json of "
        "`fluffle keys registry`.",
    )
    secure_operator: Path | None = Field(
        None, description="File with the operator's public key: operator.pub of `fluffle keys init`."
    )
    secure_clip: Annotated[str, readable_by(parse_clip)] = Field(
        "0.5",
        description="Largest absolute value of an element of an update, such as 0.5; or of its L2 norm, such "
        "as norm:5. Workers clip what is larger, and say so.",
    )
    secure_bits: int | None = Field(
        None,
        ge=FEWEST_BITS,
        le=MOST_BITS,
        description=f"Bits to which an element of an update is rounded. Default: "
        f"as many as fit, at most {BITS_WITHOUT_NEED_OF_MORE}.",
    )
    secure_modulus: Annotated[int, AfterValidator(_require_bits)] = Field(
        24, description="Bits of an element in a message and in a sum: 16, 24 or 32."
    )
    secure_min_workers: int = Field(
        FEWEST_WORKERS,
        ge=2,
        description="Fewest workers in a sum. The helpers open no sum of fewer than their own setting says.",
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        given = [name for name in SecureSettings.model_fields if name in self.model_fields_set]
        if not self.secure_aggregation and (idle := [each for each in given if each != "secure_aggregation"]):
            raise ValueError(f"{idle[0]} has no effect without secure_aggregation: give both, or none")
        return self

    def registry_watch(
        self, federation: str, buffer_size: int, *, has_one_of_each: bool
    ) -> "RegistryWatch | None":
        """Return who takes part; None without secure aggregation. Raises ConfigError if that is not known.

        A buffer `has_one_of_each` worker in synchronous rounds, and with shares of noise. Warns when so few
        workers never fill a buffer; the operator may add others at any time.
        """
        if not self.secure_aggregation:
            return None
        if self.secure_registry is None or self.secure_operator is None:
            missing = "secure_registry" if self.secure_registry is None else "secure_operator"
            raise ConfigError(
                f"secure_aggregation needs {missing}: make keys and registry with `fluffle keys`, and give "
                "secure_registry and secure_operator"
            )
        # Only here: the library of ciphers takes long to load.
        from fluffle_aggregator.secure.registry_file import RegistryFiles, RegistryWatch

        watch = RegistryWatch(RegistryFiles(self.secure_registry, self.secure_operator), federation)
        if (count := len(watch.registry.workers)) < self.secure_min_workers:
            raise ConfigError(
                f"{self.secure_registry} has {count} workers, and a sum needs updates of "
                f"{self.secure_min_workers} (secure_min_workers): add workers with `fluffle keys registry`"
            )
        if (wanted := getattr(self, "survey", None)) and wanted > count:
            log.warning(
                "the survey asks for more answers than the registry has workers, and waits for others",
                survey=wanted,
                workers=count,
            )
        of_one = 1 if has_one_of_each else share_of_one(buffer_size, self.secure_min_workers)
        if count * of_one < buffer_size:
            log.warning(
                "the workers in the registry never fill a buffer: lower buffer_size, or each version waits "
                "for buffer_timeout",
                workers=count,
                updates_of_one=of_one,
                buffer_size=buffer_size,
            )
        return watch

    def _require_enough_answers(self) -> None:
        """Raise ConfigError for a survey whose answers could never be opened."""
        wanted = getattr(self, "survey", None)
        if wanted is None:
            if getattr(self, "survey_seconds", None) is not None:
                raise ConfigError(
                    "secure_aggregation needs a number of answers to a survey: give survey too, and "
                    "survey_seconds ends it earlier"
                )
            return
        if not self.secure_min_workers <= wanted <= MOST_UPDATES:
            raise ConfigError(
                f"survey asks for {wanted} answers, and secure_aggregation opens the sum of "
                f"{self.secure_min_workers} (secure_min_workers) to {MOST_UPDATES}"
            )

    def require_openable(self, buffer_size: int) -> None:
        """Raise ConfigError when nobody could open a full buffer."""
        if buffer_size > MOST_UPDATES:
            raise ConfigError(
                f"buffer_size is {buffer_size}, and with secure_aggregation it is at most {MOST_UPDATES}"
            )
        if self.secure_min_workers > buffer_size:
            raise ConfigError(
                f"secure_min_workers is {self.secure_min_workers}, and a buffer has {buffer_size} updates "
                "(buffer_size): no sum would ever be opened"
            )

    def shared_sums(self, buffer_size: int, size: int) -> SharedSums:
        """Return the sums of a model of so many trained parameters, to which workers add shares of noise."""
        return SharedSums(
            size=size,
            honest=self.secure_min_workers,
            buffer_size=buffer_size,
            modulus_bits=self.secure_modulus if "secure_modulus" in self.model_fields_set else None,
        )

    def make_secure_plan(
        self, epoch: int, buffer_size: int, *, is_synchronous: bool, metrics: tuple[str, ...] = ()
    ) -> SecurePlan:
        """Return what workers are told; `metrics` are those that travel in updates.

        Raises ConfigError when sums of so many updates could overflow.
        """
        clip, by_norm = parse_clip(self.secure_clip)
        modulus = Modulus(self.secure_modulus)
        self.require_openable(buffer_size)
        self._require_enough_answers()
        # In synchronous rounds all updates weigh the same.
        wanted = 1 if is_synchronous else MOST_APART

        def greatest(bits: int) -> int:
            return greatest_factor(modulus, FixedPoint(clip, bits, by_norm), buffer_size)

        bits = self.secure_bits
        if bits is None:
            # One bit is left over, so that a sum of nonsense shows as one.
            fitting = [
                each
                for each in range(BITS_WITHOUT_NEED_OF_MORE, FEWEST_BITS - 1, -1)
                if greatest(each) >= 2 * wanted
            ]
            bits = fitting[0] if fitting else FEWEST_BITS
        factor = min(1 if is_synchronous else MOST_FACTOR, greatest(bits))
        if self.secure_bits is None:
            factor = max(min(wanted, factor), min(factor, greatest(bits) // 2))
        if factor < 1:
            most = max((each for each in range(FEWEST_BITS, MOST_BITS + 1) if greatest(each) >= 1), default=0)
            largest = ((1 << modulus.bits - 1) - 1) // FixedPoint(clip, FEWEST_BITS, by_norm).levels
            fits = (
                f"at most {most} bits fit" if most else f"at most {largest} updates of {FEWEST_BITS} bits fit"
            )
            raise ConfigError(
                f"sums of {buffer_size} updates (buffer_size) of {bits} bits can overflow modulo "
                f"2**{modulus.bits}: {fits}; lower secure_bits or buffer_size, or raise secure_modulus"
            )
        plan = SecurePlan(
            epoch=epoch,
            clip=clip,
            by_norm=by_norm,
            bits=bits,
            modulus_bits=modulus.bits,
            greatest=factor,
            metrics=metrics,
        )
        return plan.numbered()
