"""A sum on its way from closed to opened: which helpers have answered, and what comes out. Pure."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluffle.model import Vector
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.skellam import SkellamNoise
from fluffle.secure.closing import NotOpened, Opening, digest_of
from fluffle.secure.committee import Committee
from fluffle.secure.limbs import LARGEST, decode_limbs, largest_digit, largest_in
from fluffle.secure.measured import Values
from fluffle.secure.modulus import Signed
from fluffle.secure.plan import SecurePlan
from fluffle.secure.sums import SumRecord
from fluffle.secure.surveyed import SurveySums, sums_in
from fluffle.vector_math import norm
from fluffle_aggregator.secure.alternatives import Alternatives


@dataclass(frozen=True, slots=True, eq=False)
class OpenedSum:
    """The sum over all updates of weight times value, where a fresh update has the weight 1.

    `delta` is float32 [size], `statistics` float64 [statistics_size], and `measured` float64
    [plan.measured_size]. `largest_digit` is the largest magnitude of the sums of digits that they are from.
    """

    delta: Vector
    statistics: NDArray[np.float64]
    measured: Values
    largest_digit: int


class AwaitedSum:
    """A closed sum that waits for the helpers' openings.

    The masks of a group are taken off when its first member answers, and kept nowhere. If nobody honest can
    have made what comes out, the sum is in doubt: then all answers are kept, until they show which are wrong.
    """

    def __init__(self, record: SumRecord, committee: Committee) -> None:
        """Begin without any answer."""
        self.record = record
        self.digest = digest_of(record.close)
        self.refusals: dict[str, NotOpened] = {}
        # Why what came out is unsound, and since when it is not clear what to do about the sum.
        self.unsound = ""
        self.undecided_from: float | None = None
        self._committee = committee
        self._total = record.residues.copy()
        self._is_tried = False
        self._alternatives: Alternatives | None = None
        # Of each group, a digest of the masks that are taken off.
        self._choice: dict[int, bytes] = {}
        # Of each group, who has answered since all answers count.
        self._answered: list[set[str]] = [set() for _ in committee.groups]
        # Of each group, digests of what each helper has ever answered: the first one, and one other at most.
        self._seen: list[dict[str, list[bytes]]] = [{} for _ in committee.groups]

    @property
    def helpers(self) -> tuple[str, ...]:
        """The helpers whose openings are in the sum, but for the suspects."""
        return tuple(sorted(set().union(*self._answered) - set(self.suspects)))

    @property
    def suspects(self) -> tuple[str, ...]:
        """The helpers that have answered otherwise than others.

        When a sum in doubt is opened, those that have not sent what is taken off. Else nobody knows which of
        those that disagree is wrong.
        """
        found: set[str] = set()
        for group, seen in enumerate(self._seen):
            answers = {each for given in seen.values() for each in given}
            right = {self._choice[group]} if self.is_in_doubt and group in self._choice else set()
            if len(answers) > 1:
                found |= {helper for helper, given in seen.items() if set(given) != right}
        return tuple(sorted(found))

    @property
    def is_open(self) -> bool:
        """Whether the masks of all groups are taken off, or can be."""
        return not self._unanswered

    @property
    def is_in_doubt(self) -> bool:
        """Whether all answers are kept, since what came out of the first ones is unsound."""
        return self._alternatives is not None

    @property
    def has_all_answers(self) -> bool:
        """Whether nobody is left that could open a group, or open it differently."""
        groups = zip(self._committee.groups, self._answered, strict=True)
        return all(set(members) <= {*answered, *self.refusals} for members, answered in groups)

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
    def missing(self) -> str:
        """The groups of which no helper has answered, in words: those of their members that may yet do so."""
        left = [[each for each in members if each not in self.refusals] for members in self._unanswered]
        return ", ".join(" or ".join(members) for members in left if members)

    @property
    def _unanswered(self) -> list[tuple[str, ...]]:
        groups = zip(self._committee.groups, self._answered, strict=True)
        return [members for members, answered in groups if not answered]

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
        return self._take_masks(answer)

    def _take_masks(self, answer: Opening) -> str:
        group, helper = answer.group, answer.helper
        digest, seen = hashlib.sha256(answer.masks).digest(), self._seen[group]
        others = [each for each, given in seen.items() if digest not in given]
        own = seen.setdefault(helper, [])
        if digest not in own and len(own) < 2:
            own.append(digest)
        self._answered[group].add(helper)
        # Its operator has perhaps put its registry right.
        self.refusals.pop(helper, None)
        if self._alternatives:
            self._alternatives.add(group, helper, digest, answer.masks)
        elif group not in self._choice:
            self._take_off(answer.masks)
            self._choice[group] = digest
        return f"{helper} and {others[0]} open the same group differently" if others else ""

    def _take_off(self, masks: memoryview) -> None:
        self.record.close.modulus.add_packed(self._total, masks, -1)

    def doubt(self, now: float) -> None:
        """Begin anew, and keep all answers: all members of each group are to be asked again."""
        self.undecided_from = now
        self._alternatives = Alternatives(self._committee)
        self._choice.clear()
        self._answered = [set() for _ in self._committee.groups]

    def open_anew(self) -> bool:
        """Take the masks off in a way that was not tried before; False if there is none by now."""
        if not self._alternatives:
            is_new = self.is_open and not self._is_tried
            self._is_tried |= is_new
            return is_new
        choice = self._alternatives.next_choice()
        if choice is None:
            self._choice = {}
            return False
        self._total = self.record.residues.copy()
        for masks in self._alternatives.masks(choice):
            self._take_off(masks)
        self._choice = dict(enumerate(choice))
        return True

    @property
    def signed(self) -> Signed:
        """The numbers of the sum. Raises ValueError while masks are on it."""
        if not self.is_open:
            raise ValueError(f"the masks of {self.missing} are still on the sum")
        return self.record.close.modulus.signed(self._total)

    def opened(self, size: int) -> OpenedSum:
        """Return the sum of a model of `size` trained values. Raises ValueError while masks are on it."""
        plan, signed = self.record.plan, self.signed
        delta = plan.fixed_point.decode(signed[:size], plan.greatest)
        values = decode_limbs(signed[size:], plan.bits) / plan.greatest
        statistics_size = values.size - plan.measured_size
        return OpenedSum(delta, values[:statistics_size], values[statistics_size:], largest_in(signed[size:]))


def sound_sum(
    awaited: AwaitedSum, size: int, promised: PrivacyPlan | None = None
) -> OpenedSum | SurveySums | None:
    """Open a sum in the ways that were not tried, until what comes out can be one of honest updates.

    The model has `size` trained values, to which workers have added the shares of noise that were `promised`.
    None if no way is left for now; then `unsound` says what was found.
    """
    record, noise = awaited.record, promised.shares if promised else None
    weights = [each.factor / record.plan.greatest for each in record.close.updates]
    while awaited.open_anew():
        awaited.unsound = ""
        if record.shape:
            try:
                return sums_in(awaited.signed, record.shape, len(weights))
            except ValueError as error:
                awaited.unsound = str(error)
                continue
        opened = awaited.opened(size)
        awaited.unsound = why_unsound(opened, weights, record.plan, noise)
        if not awaited.unsound:
            return opened
    return None


def why_unsound(
    opened: OpenedSum, weights: Sequence[float], plan: SecurePlan, noise: SkellamNoise | None = None
) -> str:
    """Return why a sum cannot be one of honest updates with these weights, in words; empty when it can.

    Each honest delta is at most as large as the clip, but for its rounding up by one step, and for the shares
    of `noise`. What travels as digits is bounded in each of them, and as a value.
    """
    weight = math.fsum(weights)
    most_of_digits = round(weight * plan.greatest) * largest_digit(plan.bits)
    if opened.largest_digit > most_of_digits:
        found = f"a digit of its statistics is {opened.largest_digit}"
        return f"{found}, and those of honest updates come to at most {most_of_digits}"
    for each, what in ((opened.statistics, "statistics"), (opened.measured, "evaluations")):
        largest = float(np.max(np.abs(each), initial=0.0))
        if largest > weight * LARGEST * (1 + 1e-9):
            return f"its {what} hold {largest:.3g}, and honest ones come to at most {weight * LARGEST:.3g}"
    step = plan.clip / plan.fixed_point.levels
    if plan.by_norm:
        length = norm(opened.delta)
        most = weight * (plan.clip + step * math.sqrt(opened.delta.size))
        if noise:
            most += step * noise.longest(len(weights), opened.delta.size)
        return (
            f"its norm is {length:.3g}, and honest updates have at most {most:.3g}" if length > most else ""
        )
    largest = float(np.max(np.abs(opened.delta), initial=0.0))
    # Decoding rounds to float32.
    most = weight * plan.clip * (1 + 1e-6)
    return f"it holds {largest:.3g}, and honest updates come to at most {most:.3g}" if largest > most else ""
