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
from leading import Clock, a_server, newest, rejected, take_the_lead, unacked, work_off

from fluffle.errors import WireError
from fluffle.record import ModelVersion, MomentsRecord
from fluffle.record_wire import claimed_rank, decode_record, decode_version, encode_version
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound, encode_update

HONEST = an_update("honest")


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
    config = a_config(a_strategy("fedbuff", buffer_size=1))
    worker_exchange, evaluator_exchange = config.topology.updates_in.name, config.topology.evaluations_in.name
    for each in _tries(body):
        server = a_server(config)
        for user, exchange, message in (
            ("w1", worker_exchange, each),
            ("e1", evaluator_exchange, each),
            ("honest", worker_exchange, encode_update(HONEST)),
        ):
            with FakeBroker(server, user=user) as sender:
                sender.publish(exchange, "", message, {})
        with FakeBroker(server) as broker:
            work_off(take_the_lead(broker, config, Clock()), broker)

        version, refused = newest(server, config), rejected(server, config)
        if HONEST.id not in version.applied or not np.isfinite(version.vector).all():
            raise BrokenInvariant("the honest update is not in the model, or the model is spoilt")
        if unacked(server, config) or not all(line["reason"] and line["detail"] for line in refused):
            raise BrokenInvariant("a message is neither applied nor refused with a reason")


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
}
