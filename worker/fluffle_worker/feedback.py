"""Error feedback: what a codec leaves out of one update, the worker adds to the next. Pure but for the spool.

At any time, the sum of all deltas is the sum of what the model took of them, of what is on its way, and of
what the spool keeps. Nothing counts twice; where a choice has to be made, something counts not at all. An
update that was refused goes back into what is kept, and the next update says so (`absorbs`): the model then
takes that one or this one, never both.

Source: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (2019, arXiv
1901.09847), Algorithm 1, with a learning rate of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fluffle.codecs.compressed import CompressedVector
from fluffle.compression import compress, leaves_out
from fluffle.logs import get_logger
from fluffle.model import Vector, largest_magnitude
from fluffle.update import MAX_ABSORBS, AppliedUpdates, RunLog, UpdateId, WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_worker.digested_file import Damaged
from fluffle_worker.spool import Residual, Spool

log = get_logger(__name__)

# Where nobody ever learns what became of what was sent, the oldest is taken for applied.
MAX_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A delta to be sent, with the refused updates whose content is in it, and what it leaves out."""

    vector: CompressedVector
    absorbs: tuple[int, ...]
    residual: Residual


def compress_with_feedback(
    spool: Spool, applied: AppliedUpdates, codec: str, delta: Vector, random: np.random.Generator
) -> Compressed:
    """Return a delta, with all that was left out before, in a codec; `applied` is of the newest version."""
    kept = _settled(spool, applied, delta.size)
    if not math.isfinite(largest_magnitude(delta)):
        # It will be refused for that; what was left out before has no part in it.
        return Compressed(compress(codec, delta, random), (), kept)
    whole, absorbed = np.add(kept.vector, delta, out=kept.vector), kept.absorbed
    if not math.isfinite(largest_magnitude(whole)):
        log.warning("what was left out so far is no number any more: beginning anew")
        whole, absorbed = delta.copy(), ()
    vector = compress(codec, whole, random)
    if leaves_out(codec):
        vector.add_to(whole, -1.0)
    else:
        whole = np.empty(0, np.float32)
    return Compressed(vector, absorbed, replace(kept, vector=whole, absorbed=absorbed))


def _settled(spool: Spool, applied: AppliedUpdates, size: int) -> Residual:
    """Return what is left out so far, after what became of the updates before; its vector may be written to.

    It is the same however often it is asked for, since the files change only with the next update.
    """
    run, sent = spool.next_id.run, _readable(spool)
    owner, before = spool.residual() or (spool.next_id, None)
    was_absorbed = [replace(owner, sequence=each) for each in before.absorbed] if before else []
    if before is None or before.vector.size not in {0, size} or any(one not in sent for one in was_absorbed):
        # For the first time; or it is of another model, or damaged. Then nobody knows what is in it.
        before, was_absorbed, sent = Residual(np.empty(0, np.float32)), [], {}
    rest = before.vector.copy() if before.vector.size else np.zeros(size, np.float32)

    stand_ins = {one for update in sent.values() if update.id in applied for one in update.absorbed}
    absorbed = [one for one in was_absorbed if one.run == run and one not in applied]
    for one in set(was_absorbed) - set(absorbed) - stand_ins:
        # It came late, or an operator sent it again; or it is of a run that no update can name any more.
        sent[one].vector.add_to(rest, -1.0)
    open_ends = [one for one in sent if one not in was_absorbed and one not in applied and one.run == run]
    highest = applied.runs.get((spool.next_id.worker, run), RunLog()).highest
    for one in open_ends:
        # Updates are taken in their order: where a later one is applied, an earlier one was refused.
        if one.sequence < highest and _may_return(sent[one], size):
            log.info("an update was refused: its content goes into the next one", update=str(one))
            sent[one].vector.add_to(rest, 1.0)
            absorbed.append(one)
    absorbed.sort()
    for one in absorbed[:-MAX_ABSORBS]:
        log.warning("an update was refused for good: too many were", update=str(one))
        sent[one].vector.add_to(rest, -1.0)
    in_flight = [one for one in open_ends if one.sequence > highest]
    return Residual(
        rest, tuple(one.sequence for one in absorbed[-MAX_ABSORBS:]), tuple(in_flight[-MAX_IN_FLIGHT:])
    )


def _may_return(update: WeightUpdate, size: int) -> bool:
    return (
        update.sends == "delta"
        and update.vector.size == size
        and math.isfinite(update.vector.largest_magnitude())
    )


def _readable(spool: Spool) -> Mapping[UpdateId, WeightUpdate]:
    """Return the updates that were sent, oldest first; but those that are damaged."""
    found = {}
    for one in spool.sent:
        try:
            update = decode_inbound(spool.body(one))
        except (Damaged, OSError) as error:
            log.warning(
                "an update that was sent cannot be read any more", update=str(one), because=str(error)
            )
            continue
        if isinstance(update, WeightUpdate):
            found[one] = update
    return found
