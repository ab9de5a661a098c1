"""Error feedback: what a codec leaves out of one update, the worker adds to the next one.

At any time, the sum of all deltas is the sum of what the model contains of them, what is in flight, and what
the spool keeps (the residual). Nothing counts twice; in doubt, something does not count at all. The content
of a refused update goes into the next one, which names it in `absorbs`: the model then accepts one of the
two, never both.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (2019, arXiv
1901.09847), Algorithm 1, with a learning rate of 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fluffle.codecs.compressed import CompressedVector
from fluffle.compression import compress, leaves_out
from fluffle.errors import WireError
from fluffle.logs import get_logger
from fluffle.model import Vector
from fluffle.record import ModelVersion
from fluffle.sites import SiteEvaluation
from fluffle.update import MAX_ABSORBS, AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle.vector_math import largest_magnitude
from fluffle.wire import decode_inbound
from fluffle_worker.clipping import is_finite
from fluffle_worker.local_noise import with_noise
from fluffle_worker.masking import SecureSite
from fluffle_worker.round import TrainedUpdate
from fluffle_worker.spool import Damaged, NoRoomForResidual, Residual, Spool

log = get_logger(__name__)

# Where the fate of sent updates never becomes known, the oldest are taken for applied.
MAX_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A delta to be sent, the refused updates whose content is in it, and what it leaves out."""

    vector: CompressedVector
    absorbs: tuple[int, ...]
    residual: Residual


def add_to_spool(
    spool: Spool,
    trained: TrainedUpdate,
    found: SiteEvaluation | None,
    version: ModelVersion,
    secure: SecureSite,
    *,
    seed: int,
) -> None:
    """Compress an update, or mask it if the plan says so, and put it into the spool.

    With differential privacy at the workers, noise is added first: error feedback then goes on with what has
    the noise already.

    `version` is the one that the round started from, the newest that is known, and `found` the newest
    evaluation at this site.
    """
    update, applied = trained.update, version.applied
    if version.plan.privacy:
        update = update.saying_nothing
        trained = replace(trained, update=update)
        if version.plan.privacy.mechanism == "local":
            if not is_finite(largest_magnitude(trained.vector), trained):
                return
            update = replace(update, released=secure.count_next(update.id.worker, version))
            trained = replace(trained, vector=with_noise(trained.vector, version.plan.privacy))
    random = np.random.default_rng([seed, update.id.sequence, 1])
    if version.plan.secure:
        secure.add_masked(spool, trained, found, version, random)
        return
    if update.sends == "delta" and (leaves_out(update.codec) or spool.has_residual):
        try:
            made = compress_with_feedback(spool, applied, update.codec, trained.vector, random)
            spool.add(replace(update, vector=made.vector, absorbs=made.absorbs), made.residual)
        except NoRoomForResidual as error:
            log.warning("the disk is full: what the codec left out is lost", because=str(error))
        else:
            return
    spool.add(replace(update, vector=compress(update.codec, trained.vector, random)))


def compress_with_feedback(
    spool: Spool, applied: AppliedUpdates, codec: str, delta: Vector, random: np.random.Generator
) -> Compressed:
    """Compress a delta plus all that was left out before; `applied` is of the newest version."""
    kept = _settled(spool, applied, delta.size)
    if not math.isfinite(largest_magnitude(delta)):
        # It will be refused, so the residual is not added to it.
        return Compressed(compress(codec, delta, random), (), kept)
    whole, absorbed = np.add(kept.vector, delta, out=kept.vector), kept.absorbed
    if not math.isfinite(largest_magnitude(whole)):
        log.warning("the residual of earlier updates is not finite: it is dropped")
        whole, absorbed = delta.copy(), ()
    vector = compress(codec, whole, random)
    if leaves_out(codec):
        vector.add_to(whole, -1.0)
    else:
        whole = np.empty(0, np.float32)
    return Compressed(vector, absorbed, replace(kept, vector=whole, absorbed=absorbed))


def _settled(spool: Spool, applied: AppliedUpdates, size: int) -> Residual:
    """Return the residual, corrected by what became of the sent updates; its vector may be written to.

    Repeated calls return the same, since the files change only with the next update.
    """
    run, sent = spool.next_id.run, _readable(spool)
    owner, before = spool.residual() or (spool.next_id, None)
    was_absorbed = [replace(owner, sequence=each) for each in before.absorbed] if before else []
    if before and before.vector.size not in {0, size}:
        log.warning(
            "what earlier updates left out is dropped: it is of another model, or of another --train-share",
            elements=before.vector.size,
            now=size,
        )
    if before is None or before.vector.size not in {0, size} or any(one not in sent for one in was_absorbed):
        # There is none yet; or it is of another model, or damaged, so that its content is unknown.
        before, was_absorbed, sent = Residual(np.empty(0, np.float32)), [], {}
    rest = before.vector.copy() if before.vector.size else np.zeros(size, np.float32)

    stand_ins = {one for update in sent.values() if update.id in applied for one in update.absorbed}
    absorbed = [one for one in was_absorbed if one.run == run and one not in applied]
    for one in set(was_absorbed) - set(absorbed) - stand_ins:
        # It was applied late, perhaps because an operator sent it again; or no update can name its run now.
        sent[one].vector.add_to(rest, -1.0)
    open_ends = [one for one in sent if one not in was_absorbed and one not in applied and one.run == run]
    highest = applied.runs.get((spool.next_id.worker, run), RunLog()).highest
    for one in open_ends:
        # Updates are applied in order: where a later one is applied, an earlier one was refused.
        update = sent[one]
        fits = update.sends == "delta" and update.vector.size == size
        if one.sequence < highest and fits and math.isfinite(update.vector.magnitude_bound()):
            log.info("an update was refused: the next one contains it", update=str(one))
            update.vector.add_to(rest, 1.0)
            absorbed.append(one)
    absorbed.sort()
    for one in absorbed[:-MAX_ABSORBS]:
        log.warning("a refused update is lost: too many were refused", update=str(one))
        sent[one].vector.add_to(rest, -1.0)
    in_flight = [one for one in open_ends if one.sequence > highest]
    return Residual(
        rest, tuple(one.sequence for one in absorbed[-MAX_ABSORBS:]), tuple(in_flight[-MAX_IN_FLIGHT:])
    )


def _readable(spool: Spool) -> Mapping[UpdateId, WeightUpdate]:
    """Return the updates that were sent, oldest first, except damaged ones."""
    found = {}
    for one in spool.sent:
        try:
            update = decode_inbound(spool.sent_message(one))
        except (Damaged, WireError) as error:
            log.warning("cannot read a sent update", update=str(one), because=str(error))
            continue
        if isinstance(update, WeightUpdate):
            found[one] = update
    return found
