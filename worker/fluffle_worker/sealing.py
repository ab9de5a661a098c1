"""A sealed federation at a worker or an evaluator: what it insists on, and where it decrypts and encrypts.

Who has a key trains and evaluates nothing that is not sealed. This module does without the library of
ciphers, which those without a key need not load: `fluffle.sealed.keys` has the key itself.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fluffle.codecs.sealed import SealedVector
from fluffle.errors import ConfigError
from fluffle.logs import get_logger
from fluffle.model import Layout, Vector, no_values, some_of
from fluffle.record import ModelVersion
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.part import is_matching, sealed_part
from fluffle.sealed.plan import SEALED, SealedPlan, SealedRefresh
from fluffle.sealed.residues import add_weighted, negated, unpack
from fluffle.update import WeightUpdate
from fluffle.vector_math import largest_magnitude
from fluffle_worker.clipping import MOST_CLIPPED, is_finite, share_beyond
from fluffle_worker.pace.share import TrainShare
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.sealed_versions import SETTING, SharedKey, largest_of, opened, require_key, sum_of
from fluffle_worker.spool import Spool
from fluffle_worker.unsent import drop_residual, drop_unsent

log = get_logger(__name__)

# Of the largest value of a sum, a refresh tells no more.
TOLD_BITS: Final = 4


@dataclass(kw_only=True, eq=False)
class SealedSite:
    """One worker's or evaluator's part in a sealed federation; without a `key` it takes part in none.

    Tensors that match a pattern of `only` must be sealed, all of them without patterns.
    """

    key: SharedKey | None = None
    only: tuple[str, ...] = ()
    who: str = "worker"
    train_share: TrainShare = 1.0
    _opened: ModelVersion | None = None
    _answered: tuple[int, int] | None = None
    _clipped: int = 0

    def prepare(self, spool: Spool) -> None:
        """Drop what an earlier life of a worker with a key has left in the clear, or under another key."""
        if self.key is None:
            return
        key_id = self.key.key_id
        if dropped := drop_unsent(spool, lambda update: update.codec == SEALED and update.key == key_id):
            log.warning(
                "dropped unsent updates that are not encrypted with this key",
                updates=dropped,
                spool=str(spool.folder),
            )

    def start_over(self) -> None:
        """Forget what a federation that was reset has asked: another one has the same numbers."""
        self._answered = None

    def opened(self, version: ModelVersion) -> ModelVersion:
        """Return a version with the values of its model: decrypted, if it is sealed.

        Raises ConfigError, before anything of it is used, when the plan and this key do not go together, or
        when no honest federation can have such a sum.
        """
        plan = version.plan.sealed
        if plan is None:
            self._require_none(version)
            return version
        key = require_key(plan, self.key, federation=version.federation, who=self.who)
        self._require_all(version, plan)
        if self._opened is None or self._opened.rank != version.rank:
            self._opened = opened(version, plan, key)
        return self._opened

    def add_sealed(self, spool: Spool, trained: TrainedUpdate, version: ModelVersion) -> None:
        """Encrypt an update, which began from this version, and put it into the spool."""
        plan = version.plan.sealed
        if self.key is None or plan is None:
            raise ConfigError("only a worker with a key can encrypt, and only for a plan that is sealed")
        drop_residual(spool, "before the federation was sealed")
        # In a ciphertext nobody could tell, and it would spoil the sum for ever.
        if not is_finite(largest_magnitude(trained.vector), trained):
            return
        part = sealed_part(version.layout, plan.only)
        values = part.sealed_of(trained.vector)
        self._note_clip(trained, values, plan)
        sealed = self.key.encrypt(np.clip(values, -plan.clip, plan.clip))
        vector = SealedVector.of(sealed, part.size, part.open_of(trained.vector))
        spool.add(replace(trained.update, codec=SEALED, key=self.key.key_id, vector=vector))

    def add_refresh(self, spool: Spool, version: ModelVersion, worker: str) -> bool:
        """Encrypt the sum of a version anew if it asks this worker to; tell whether that is in the spool now.

        What travels is the difference of the new ciphertexts and the old ones. It encrypts zero, so that the
        sum to which it is added may have grown meanwhile. Of the largest value no more is told than it takes:
        what is decrypted tells of the key.
        """
        plan, state, key = version.plan.sealed, version.sealed, self.key
        if key is None or plan is None or state is None or not version.sealed_sum or state.asked != worker:
            return False
        request = state.refreshes, state.asked_at
        if request == self._answered or not state.wants_refresh(plan):
            return False
        self._answered = request
        part = sealed_part(version.layout, plan.only)
        values = sum_of(version, plan, key)
        difference = key.encrypt(values)
        add_weighted(difference, negated(unpack(version.sealed_sum, part.size)))
        update = WeightUpdate(
            federation=version.federation,
            id=spool.next_id,
            base_term=version.term,
            base_version=version.version,
            layout_digest=version.layout.digest,
            sends="delta",
            codec=SEALED,
            vector=SealedVector.of(difference, part.size, no_values()),
            examples=0,
            key=key.key_id,
            refresh=SealedRefresh(
                refreshes=state.refreshes, weights=state.weights, largest=rounded_up(largest_of(values))
            ),
        )
        spool.add(update)
        log.info("encrypted the sum of all updates anew, as the aggregator asks", version=version.version)
        return True

    def _require_none(self, version: ModelVersion) -> None:
        if self.key:
            raise ConfigError(
                f"this {self.who} insists on a sealed federation, and the plan of {version.federation} is "
                f"not sealed: start the aggregator with --sealed, or this {self.who} without {SETTING}"
            )

    def _require_all(self, version: ModelVersion, plan: SealedPlan) -> None:
        if self.train_share != 1:
            raise ConfigError(
                f"{version.federation} is sealed, and each sealed update has all layers: start this worker "
                f"without --train-share {self.train_share}"
            )
        if in_clear := self._in_clear(version.layout, plan):
            raise ConfigError(
                f"the plan of {version.federation} would let {some_of(in_clear)} travel in the clear, and "
                f"this {self.who} wants them sealed: let the aggregator seal them, or say with --sealed-only "
                "here too what must be sealed"
            )

    def _in_clear(self, layout: Layout, plan: SealedPlan) -> list[str]:
        """Return the tensors that this site wants sealed, and that the plan does not seal."""
        return [
            each.name
            for each in layout.tensors
            if each.is_float
            and each.group in ("trained", "statistic")
            and is_matching(each.name, self.only)
            and (each.group == "statistic" or not is_matching(each.name, plan.only))
        ]

    def _note_clip(self, trained: TrainedUpdate, values: Vector, plan: SealedPlan) -> None:
        if not values.size or (share := share_beyond(values, plan.clip)) <= MOST_CLIPPED:
            return
        self._clipped += 1
        if self._clipped.bit_count() == 1:
            log.warning(
                "the clip changes updates of this worker much: --sealed-clip at the aggregator sets it",
                update=str(trained.update.id),
                clip=plan.clip,
                largest=float(f"{largest_magnitude(values):.4g}"),
                clipped_share=round(share, 4),
                updates=self._clipped,
            )


def rounded_up(number: float) -> float:
    """Return the least number with so few bits that is not below a number, and that a sum may come to."""
    mantissa, exponent = math.frexp(number)
    return min(LARGEST_VALUE, math.ldexp(math.ceil(math.ldexp(mantissa, TOLD_BITS)), exponent - TOLD_BITS))
