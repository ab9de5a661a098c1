"""What is sealed in a federation, as far as anybody without the key knows. Pure."""

from dataclasses import dataclass

from fluffle.sealed.parameters import LARGEST_VALUE, bytes_of
from fluffle_cli.watching.view import Version
from fluffle_cli.words import count

KEY_CHARACTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """The sealed part of a model, whose sum takes `sum_bytes` in each version and each update.

    `range_used` is the share of the ciphertexts' range that the sum may have come to. It was encrypted anew
    so many times (`refreshes`), and `asked` is the worker that is to do so now.
    """

    key: str
    parameters: int
    sealed_parameters: int
    sum_bytes: int
    range_used: float
    refreshes: int
    asked: str

    @property
    def in_words(self) -> str:
        """Return it in a line."""
        asked = f", {self.asked} is asked to do so now" if self.asked else ""
        return (
            f"sealed with the key {self.key[:KEY_CHARACTERS]}: {self.sealed_parameters:,} of "
            f"{self.parameters:,} parameters are encrypted, {self.sum_bytes / 1e6:,.2f} MB in each update "
            f"and version; {self.range_used:.0%} of the range is used, encrypted anew "
            f"{count(self.refreshes, 'time')}{asked}"
        )


def sealed_model(version: Version | None) -> SealedModel | None:
    """Return what a version says of what is sealed; None where nothing is."""
    if version is None or version.sealed is None or version.plan.sealed is None:
        return None
    plan, state = version.plan.sealed, version.sealed
    return SealedModel(
        key=plan.key,
        parameters=version.parameters,
        sealed_parameters=version.sealed_parameters,
        sum_bytes=bytes_of(version.sealed_parameters),
        range_used=state.bound(plan) / LARGEST_VALUE,
        refreshes=state.refreshes,
        asked=state.asked,
    )
