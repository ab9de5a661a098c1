"""What a refused message contains, for people."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from fluffle.compression import decompressed
from fluffle.errors import WireError
from fluffle.model import Vector
from fluffle.wire import decode_inbound

Fact = tuple[str, str]


def message_facts(body: bytes) -> list[Fact]:
    """Return the fields of a message and statistics of its vector, or why it cannot be read."""
    try:
        message = decode_inbound(body)
    except WireError as error:
        return [("cannot be read", str(error)), ("begins with", bytes(body[:32]).hex(" "))]
    facts = [("kind", type(message).__name__)]
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name == "vector":
            facts += _vector_facts(decompressed(value))
        elif isinstance(value, bytes):
            facts.append((field.name.replace("_", " "), f"{len(value)} bytes"))
        else:
            facts.append((field.name.replace("_", " "), str(value)))
    return facts


def _vector_facts(vector: Vector) -> Iterator[Fact]:
    yield "parameters", f"{vector.size:,}"
    finite = vector[np.isfinite(vector)]
    yield "NaN", f"{np.count_nonzero(np.isnan(vector)):,}"
    yield "infinite", f"{np.count_nonzero(np.isinf(vector)):,}"
    if finite.size:
        # In float64, a little at a time: a square of a large float32 would overflow.
        squared = float(np.einsum("i,i->", finite, finite, dtype=np.float64, casting="safe"))
        yield "finite values", f"min {finite.min():.4g}, max {finite.max():.4g}, L2 norm {squared**0.5:.4g}"
