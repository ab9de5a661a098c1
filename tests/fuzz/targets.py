"""What the fuzzer, and the replay of its corpus, hand bytes to; whatever these functions raise is a bug.

Nobody guesses a checksum, so each message is tried as it came, and again with a length of the payload and a
checksum that fit.
"""

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgpack
import numpy as np
import xxhash
from builders import a_config, a_strategy, an_update
from fake_broker import FakeBroker
from fuzz.invariants import BrokenInvariant, require_said_where, require_sound
from helping import HELPER, REGISTRY, first_close
from leading import Clock, a_server, newest, rejected, take_the_lead, unacked, work_off
from sealing import a_sealed_config, a_sealed_plan, a_sealed_update

from fluffle.errors import WireError
from fluffle.record import ModelVersion, MomentsRecord
from fluffle.record_wire import claimed_rank, decode_record, decode_version, encode_version
from fluffle.secure.closing import (
    CloseRecord,
    Opening,
    decode_answer,
    decode_close,
    decode_for_helper,
    encode_not_opened,
    opening_pieces,
)
from fluffle.secure.helping import Ledger, decode_ledger, encode_ledger, not_opened, openings
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound, encode_update
from fluffle_aggregator.config import AggregatorConfig
from fluffle_helper.comparing import decode_seen
from fluffle_helper.deciding import decide

MOST_OPENED = 10_000
HONEST = an_update("honest")
HONEST_SEALED = a_sealed_update("honest")


def read_inbound(body: bytes) -> None:
    """Read what anybody may send; what can be read can be sent on to F.rejected."""
    for each in _tries(body):
        try:
            message = decode_inbound(each)
        except WireError as error:
            require_said_where(error)
            continue
        require_sound(message)
        if isinstance(message, WeightUpdate):
            encode_update(message)


def read_record(body: bytes) -> None:
    """Read what an aggregator publishes; what can be read is a whole model, and can be written again."""
    for each in _tries(body):
        with suppress(WireError):
            claimed_rank(each)
    for each, decode in itertools.product(_tries(body), (decode_record, decode_version)):
        try:
            record = decode(each)
        except WireError as error:
            require_said_where(error)
            continue
        if isinstance(record, ModelVersion):
            if claimed_rank(each) != record.rank:
                raise BrokenInvariant("a record claims another rank than it has")
            _ = record.weights
            encode_version(record)
        elif (
            isinstance(record, MomentsRecord) and len({vector.size for vector in record.vectors.values()}) > 1
        ):
            raise BrokenInvariant("the moments differ in size")


def lead(body: bytes) -> None:
    """Send to a leader, as a worker and as an evaluator, and then send it an honest update."""
    _lead(body, a_config(a_strategy("fedbuff", buffer_size=1)), HONEST)


def lead_sealed(body: bytes) -> None:
    """Send to the leader of a sealed federation, which cannot see what is in an update."""
    _lead(body, a_sealed_config(a_sealed_plan(buffer_size=1)), HONEST_SEALED)


def _lead(body: bytes, config: AggregatorConfig, honest: WeightUpdate) -> None:
    worker_exchange, evaluator_exchange = config.topology.updates_in.name, config.topology.evaluations_in.name
    for each in _tries(body):
        server = a_server(config)
        for user, exchange, message in (
            ("w1", worker_exchange, each),
            ("e1", evaluator_exchange, each),
            ("honest", worker_exchange, encode_update(honest)),
        ):
            with FakeBroker(server, user=user) as sender:
                sender.publish(exchange, "", message, {})
        with FakeBroker(server) as broker:
            work_off(take_the_lead(broker, config, Clock()), broker)

        version, refused = newest(server, config), rejected(server, config)
        if honest.id not in version.applied or not np.isfinite(version.vector).all():
            raise BrokenInvariant("the honest update is not in the model, or the model is spoilt")
        if unacked(server, config) or not all(line["reason"] and line["detail"] for line in refused):
            raise BrokenInvariant("a message is neither applied nor refused with a reason")


def read_secure(body: bytes) -> None:
    """Read what a helper and a leader send each other, and a ledger; what can be read is decided about."""
    close = first_close()
    for each in _tries(body):
        for read in (
            decode_close,
            decode_for_helper,
            decode_ledger,
            decode_seen,
            lambda answer: decode_answer(answer, close),
        ):
            try:
                found = read(each)
            except WireError as error:
                require_said_where(error)
                continue
            if isinstance(found, CloseRecord):
                _decide(found)
            elif isinstance(found, Ledger) and decode_ledger(encode_ledger(found)) != found:
                raise BrokenInvariant("a ledger is another one after it was written and read")
            elif isinstance(found, Opening) and len(found.masks) != close.modulus.bytes_of(close.size):
                raise BrokenInvariant("an opening has another size than its sum")


def _decide(close: CloseRecord) -> None:
    decision = decide(close, Ledger(1), REGISTRY, helper="helper-1", fewest_workers=3)
    if decode_ledger(encode_ledger(decision.ledger)) != decision.ledger:
        raise BrokenInvariant("a helper cannot keep its ledger after this record")
    answer = decision.answer
    if answer and answer.refused:
        encode_not_opened(not_opened(close, "helper-1", answer.refused, decision.ledger))
    elif answer and close.size <= MOST_OPENED:
        for opening in openings(close, HELPER, REGISTRY, of_groups=answer.groups):
            bytes(opening_pieces(opening))
    if answer and not answer.refused and len({each.id.worker for each in close.updates}) < 3:
        raise BrokenInvariant("a helper would open a sum of too few workers")


def _tries(body: bytes) -> set[bytes]:
    unpacker = msgpack.Unpacker(object_pairs_hook=list, max_buffer_size=len(body) + 1)
    try:
        unpacker.feed(body)
        unpacker.unpack()
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return {body}
    start = unpacker.tell() + 5
    payload = body[start:]
    checksum_at = body.find(b"\xa8checksum\xcf", 0, start)
    if checksum_at < 0:
        return {body}
    mended = bytearray(body[:start])
    mended[checksum_at + 10 : checksum_at + 18] = xxhash.xxh3_64(payload).digest()
    mended[unpacker.tell() :] = b"\xc6" + len(payload).to_bytes(4, "big")
    return {body, bytes(mended + payload)}


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "inbound": read_inbound,
    "record": read_record,
    "leader": lead,
    "secure": read_secure,
}
