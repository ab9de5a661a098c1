"""Updates that a test sends itself to real aggregators, and the history that these make of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from federation import Federation

from fluffle.codecs.floats import Float32Vector
from fluffle.framing import record_digest
from fluffle.model import Layout
from fluffle.record import ModelVersion
from fluffle.record_wire import decode_version
from fluffle.safetensors_file import read_model, write_model
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update

PARAMETERS = 1000


def write_initial_model(folder: Path) -> None:
    weights = {"kernel": np.random.default_rng(0).standard_normal(PARAMETERS, np.float32)}
    write_model(folder / "initial.safetensors", weights)


def some_updates(federation: Federation, count: int) -> list[WeightUpdate]:
    """Updates of two workers, all from version 0, and so more and more stale."""
    rng = np.random.default_rng(1)
    layout = Layout.of(read_model(federation.folder / "initial.safetensors"))
    return [
        WeightUpdate(
            federation=federation.name,
            id=UpdateId(f"site-{number % 2}", "run", number // 2 + 1),
            base_term=1,
            base_version=0,
            layout_digest=layout.digest,
            sends="delta",
            codec="float32",
            vector=Float32Vector.of(rng.standard_normal(PARAMETERS, np.float32)),
            integers=b"",
            examples=10,
        )
        for number in range(count)
    ]


def send(federation: Federation, updates: Sequence[WeightUpdate]) -> None:
    """Publish updates, each in the name of its worker."""
    with federation.connect() as broker:
        for update in updates:
            exchange = federation.topology.updates_in.name
            broker.publish_as(update.id.worker, exchange, "", encode_update(update), {"kind": "update"})


def everything_in_the_stream(federation: Federation) -> list[bytes]:
    """Return the messages in the stream, whoever published them."""
    bodies = []
    with (
        federation.connect() as broker,
        broker.read_stream(federation.topology.models.name, offset="first") as reader,
    ):
        while body := reader.next_body(1.0):
            bodies.append(body)
    return bodies


def assert_history_is_one_line(federation: Federation) -> list[ModelVersion]:
    """The stream holds one chain of records, in which each update is once; return it."""
    bodies = everything_in_the_stream(federation)
    versions = [decode_version(body) for body in bodies]
    assert [version.rank for version in versions] == sorted({version.rank for version in versions})
    assert [version.parent for version in versions[1:]] == [record_digest(body) for body in bodies[:-1]]
    folded = [one.id for version in versions for one in version.folded]
    assert len(folded) == len(set(folded)) == versions[-1].updates
    return versions
