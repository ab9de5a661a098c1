"""A sum on its way from closed to opened: which helpers have answered, and what comes out. Pure."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle.secure.closing import NotOpened, Opening, digest_of
from fluffle.secure.committee import Committee
from fluffle.secure.limbs import decode_limbs
from fluffle.secure.modulus import add_multiple
from fluffle.secure.plan import SecurePlan
from fluffle.secure.sums import SumRecord
from fluffle.vector_math import matching_blocks, squared_length


@dataclass(frozen=True, slots=True, eq=False)
class OpenedSum:
    """The sum over all updates of weight times value, where a fresh update has the weight 1.

    `delta` is float32 [size], `statistics` float64 [statistics_size].
    """

    delta: Vector
    statistics: NDArray[np.float64]


class AwaitedSum:
    """A closed sum that waits for the helpers' openings."""

    def __init__(self, record: SumRecord, committee: Committee) -> None:
        """Begin without any answer."""
        self.record = record
        self.digest = digest_of(record.close)
        self.refusals: dict[str, NotOpened] = {}
        self._committee = committee
        self._total = record.residues.copy()
        # Of each group that is opened, who answered first and a digest of the masks.
        self._answers: dict[int, tuple[str, bytes]] = {}

    @property
    def helpers(self) -> tuple[str, ...]:
        """The helpers whose openings are in the sum."""
        return tuple(sorted({helper for helper, _ in self._answers.values()}))

    @property
    def is_open(self) -> bool:
        """Whether the masks of all groups are taken off."""
        return len(self._answers) == len(self._committee.groups)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many helpers have refused that the others cannot open it."""
        left = [each for each in self._committee.helpers if each not in self.refusals]
        return not self.is_open and not self._committee.can_open(left)

    @property
    def newest_record(self) -> tuple[int, str] | None:
        """The number and the digest of the newest close record; None while too few helpers agree.

        Of those that do, at least one is honest. A helper that opens this sum has this record.
        """
        own = self.record.close.number, self.digest
        said = dict.fromkeys(self.helpers, own) | {
            name: (one.number, one.last) for name, one in self.refusals.items()
        }
        found = Counter(said.values()).most_common(1)
        return found[0][0] if found and found[0][1] > self._committee.colluding else None

    @property
    def has_all_refusals(self) -> bool:
        """Whether no helper is left that could answer otherwise."""
        return len(self.refusals) == len(self._committee.helpers)

    @property
    def missing(self) -> str:
        """The groups of which no helper has answered, in words."""
        groups = enumerate(self._committee.groups)
        return ", ".join(" or ".join(members) for number, members in groups if number not in self._answers)

    def take_in(self, answer: Opening | NotOpened, sender: str | None) -> str:
        """Take in an answer of a verified sender; return what is wrong with it, empty if nothing is.

        An answer to another close record is passed over.
        """
        if answer.helper != sender or answer.helper not in self._committee.helpers:
            return f"it speaks for the helper {answer.helper!r}, but comes from the RabbitMQ user {sender!r}"
        if answer.digest != self.digest:
            return ""
        if isinstance(answer, NotOpened):
            self.refusals[answer.helper] = answer
            return ""
        groups = self._committee.groups
        if answer.group >= len(groups) or answer.helper not in groups[answer.group]:
            return f"{answer.helper} has no key of group {answer.group}"
        seen = hashlib.sha256(answer.masks).digest()
        if answer.group in self._answers:
            first, known = self._answers[answer.group]
            return "" if seen == known else f"{answer.helper} and {first} open the same group differently"
        modulus, size = self.record.close.modulus, self.record.close.size
        if not self.is_open:
            add_multiple(self._total, modulus.unpack(answer.masks, size), -1)
            self._answers[answer.group] = answer.helper, seen
        return ""

    def opened(self, plan: SecurePlan, size: int) -> OpenedSum:
        """Return the sum of a model of `size` trained values. Raises ValueError while masks are on it."""
        if not self.is_open:
            raise ValueError(f"the masks of {self.missing} are still on the sum")
        signed = self.record.close.modulus.signed(self._total)
        delta = plan.fixed_point.decode(signed[:size], plan.greatest)
        return OpenedSum(delta, decode_limbs(signed[size:], plan.bits) / plan.greatest)


def why_unsound(opened: OpenedSum, weights: Sequence[float], plan: SecurePlan) -> str:
    """Return why a sum cannot be one of honest updates with these weights, in words; empty when it can.

    Each honest delta is at most as large as the clip, but for its rounding up by one step.
    """
    weight = math.fsum(weights)
    step = plan.clip / plan.fixed_point.levels
    if plan.by_norm:
        norm = math.sqrt(squared_length(block for (block,) in matching_blocks(opened.delta)))
        most = weight * (plan.clip + step * math.sqrt(opened.delta.size))
        return f"its norm is {norm:.3g}, and honest updates have at most {most:.3g}" if norm > most else ""
    largest = float(np.max(np.abs(opened.delta), initial=0.0))
    # Decoding rounds to float32.
    most = weight * plan.clip * (1 + 1e-6)
    return f"it holds {largest:.3g}, and honest updates come to at most {most:.3g}" if largest > most else ""
