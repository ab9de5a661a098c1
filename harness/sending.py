"""Updates that a test sends itself to a real aggregator, as if it were a worker."""

from collections.abc import Iterable

import numpy as np

from fluffle.codecs.floats import Float32Vector
from fluffle.record import ModelVersion
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from harness.federation import Federation, Part

WORKER = "site-9"


def an_update_for(version: ModelVersion, sequence: int) -> WeightUpdate:
    """Return an update that starts from this version and moves every weight a little."""
    return WeightUpdate(
        federation=version.federation,
        id=UpdateId(WORKER, "r1", sequence),
        base_term=version.term,
        base_version=version.version,
        layout_digest=version.layout.digest,
        sends="delta",
        codec="float32",
        vector=Float32Vector.of(np.full(version.layout.size, 0.01, np.float32)),
        integers=version.integers,
        examples=10,
    )


def send(federation: Federation, bodies: Iterable[bytes]) -> None:
    """Send messages in the worker's name; the private node's one user may."""
    with federation.connect() as broker:
        for body in bodies:
            broker.publish_as(WORKER, federation.topology.updates_in.name, "", body, {})


def send_from_one_base(federation: Federation, sequences: Iterable[int]) -> None:
    """Send updates one after the other, all trained from the newest version of now."""
    base = federation.newest()
    send(federation, [encode_update(an_update_for(base, sequence)) for sequence in sequences])


def commit(federation: Federation, leader: Part, sequences: Iterable[int]) -> None:
    """Send updates, and wait until a leader with a buffer of one has made a version of each."""
    for sequence in sequences:
        before = len(leader.events("version committed"))
        send_from_one_base(federation, [sequence])
        leader.wait_for("version committed", before + 1)
