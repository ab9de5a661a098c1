"""Whether a model's messages fit into RabbitMQ's limit, and what to do when they do not. Pure.

The record of a version and a server optimizer's moments are float32; the size of an update depends on its
codec. The plan and the layout say both, so that a model is refused before anybody trains it. Headers, of some
hundred bytes, are not counted.
"""

import math

from fluffle.compression import CODECS, most_bytes
from fluffle.errors import MessageTooLarge
from fluffle.model import Layout
from fluffle.topology import MAX_MESSAGE_BYTES, MIB

HOW_TO_RAISE = (
    f"raise it, to {MAX_MESSAGE_BYTES // MIB} MiB at most: max_message_size = {MAX_MESSAGE_BYTES} in "
    f"RabbitMQ's rabbitmq.conf (RabbitMQ 4 takes 16 MiB without it), and FLUFFLE_MAX_MESSAGE_MIB here if it "
    f"is set"
)


def require_message_fits(what: str, size_bytes: int, limit_bytes: int) -> None:
    """Raise MessageTooLarge, which says how to raise the limit, for a message above it."""
    if size_bytes > limit_bytes:
        raise MessageTooLarge(_too_large(what, size_bytes, limit_bytes), limit_bytes)


def require_version_fits(layout: Layout, limit_bytes: int) -> None:
    """Raise MessageTooLarge when no version of this model can be published."""
    size_bytes = 4 * layout.size + layout.beside_vector_size_bytes
    what = f"a version of this model of {layout.size:,} parameters, float32 whatever the codec,"
    require_message_fits(what, size_bytes, limit_bytes)


def require_moments_fit(layout: Layout, count: int, optimizer: str, limit_bytes: int) -> None:
    """Raise MessageTooLarge when the `count` moments of a server optimizer do not fit into their message."""
    size_bytes = 4 * layout.size * count
    if size_bytes > limit_bytes:
        what = f"the moments of {optimizer} for this model of {layout.size:,} parameters"
        raise MessageTooLarge(
            f"{_too_large(what, size_bytes, limit_bytes)}; or choose another FLUFFLE_SERVER_OPTIMIZER: "
            f"momentum and adagrad have one float32 for each parameter, sgd none",
            limit_bytes,
        )


def require_update_fits(layout: Layout, codec: str, limit_bytes: int) -> None:
    """Raise MessageTooLarge, which names the codecs that fit, when an update in this codec may not fit."""
    size_bytes = most_bytes(codec, layout.size) + layout.beside_vector_size_bytes
    if size_bytes > limit_bytes:
        what = f"an update of this model of {layout.size:,} parameters in {codec}"
        raise MessageTooLarge(
            f"{_too_large(what, size_bytes, limit_bytes)}; or {_advice(layout, limit_bytes)}", limit_bytes
        )


def codecs_that_fit(layout: Layout, limit_bytes: int) -> dict[str, int]:
    """Return the codecs in which an update of this model fits, and its bytes in each."""
    sizes = {name: most_bytes(name, layout.size) + layout.beside_vector_size_bytes for name in CODECS}
    return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes <= limit_bytes}


def _advice(layout: Layout, limit_bytes: int) -> str:
    fitting = codecs_that_fit(layout, limit_bytes)
    if not fitting:
        return "use a smaller model, since no codec makes it small enough"
    named = ", ".join(f"{name} ({_mib(size_bytes)} MiB)" for name, size_bytes in fitting.items())
    return f"set FLUFFLE_CODEC at the aggregator to one that fits: {named}"


def _too_large(what: str, size_bytes: int, limit_bytes: int) -> str:
    limit_mib = math.floor(10 * limit_bytes / MIB) / 10
    found = f"{what} takes {_mib(size_bytes)} MiB, and one message has at most {limit_mib:,g} MiB"
    if limit_bytes >= MAX_MESSAGE_BYTES:
        return f"{found}, which is all that RabbitMQ carries: use a smaller model"
    return f"{found}: {HOW_TO_RAISE}"


def _mib(size_bytes: int) -> str:
    # Rounded up, so that a size above a limit also looks above it.
    return f"{math.ceil(10 * size_bytes / MIB) / 10:,g}"
