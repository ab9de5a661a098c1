"""Whether a model's messages fit into RabbitMQ's limit, and what to do when they do not. Pure.

The record of a version and a server optimizer's moments are float32; the size of an update depends on its
codec. The plan and the layout say both, so that a model is refused before anybody trains it. Headers, of some
hundred bytes, are not counted.
"""

import math

from fluffle.compression import CODECS, most_bytes
from fluffle.errors import MessageTooLarge
from fluffle.model import Layout
from fluffle.plan import Plan
from fluffle.record import version_size_bytes
from fluffle.sealed.parameters import bytes_of
from fluffle.sealed.part import sealed_part
from fluffle.sealed.plan import SealedPlan
from fluffle.topology import MAX_MESSAGE_BYTES, MIB

HOW_TO_RAISE = (
    f"raise it, to {MAX_MESSAGE_BYTES // MIB} MiB at most: max_message_size = {MAX_MESSAGE_BYTES} in "
    f"RabbitMQ's rabbitmq.conf (RabbitMQ 4 takes 16 MiB without it), and FLUFFLE_MAX_MESSAGE_MIB here if it "
    f"is set"
)


def require_message_fits(what: str, size_bytes: int, limit_bytes: int, otherwise: str = "") -> None:
    """Raise MessageTooLarge for a message above the limit; it says how to raise it, or `otherwise`."""
    if size_bytes <= limit_bytes:
        return
    limit_mib = math.floor(10 * limit_bytes / MIB) / 10
    advice = f": {HOW_TO_RAISE}"
    if limit_bytes >= MAX_MESSAGE_BYTES:
        advice = ", which is all that RabbitMQ carries: use a smaller model"
    raise MessageTooLarge(
        f"{what} takes {_mib(size_bytes)} MiB, and one message has at most {limit_mib:,g} MiB{advice}"
        f"{otherwise and f'; or {otherwise}'}",
        limit_bytes,
    )


def require_version_fits(layout: Layout, limit_bytes: int, *, is_averaged: bool = False) -> None:
    """Raise MessageTooLarge when no version of this model, or none with its average, can be published."""
    what = f"a version of this model of {layout.size:,} parameters, float32 whatever the codec,"
    otherwise = ""
    if is_averaged:
        what = f"{what} with the average of the versions"
        otherwise = "leave out FLUFFLE_AVERAGE_VERSIONS: without the average it takes half as much"
    size_bytes = version_size_bytes(layout, is_averaged=is_averaged)
    require_message_fits(what, size_bytes, limit_bytes, otherwise)


def require_sealed_fits(layout: Layout, plan: SealedPlan, limit_bytes: int) -> None:
    """Raise MessageTooLarge when an update or a version of a sealed model would be above the limit."""
    part = sealed_part(layout, plan.only)
    sealed_bytes = bytes_of(part.size)
    update_bytes = sealed_bytes + 4 * part.open_size + layout.beside_vector_size_bytes
    version_bytes = version_size_bytes(layout, is_averaged=False, sealed_bytes=sealed_bytes)
    require_message_fits(
        f"a version of this sealed model (of {layout.size:,} parameters, {part.size:,} are encrypted, in 27 "
        f"bytes each; an update takes {_mib(update_bytes)} MiB)",
        version_bytes,
        limit_bytes,
        "seal only some tensors (FLUFFLE_SEALED_ONLY)",
    )


def require_moments_fit(layout: Layout, count: int, of: str, limit_bytes: int) -> None:
    """Raise MessageTooLarge when `count` vectors that are kept from step to step do not fit into a message.

    `of` is the server optimizer, or the strategy that has one of its own.
    """
    require_message_fits(
        f"the moments of {of} for this model of {layout.size:,} parameters",
        4 * layout.size * count,
        limit_bytes,
        "choose another FLUFFLE_SERVER_OPTIMIZER (momentum and adagrad have one float32 for each parameter, "
        "sgd none), or the strategy fedbuff, which has no other moments",
    )


def require_cache_fits(layout: Layout, size_bytes: int, strategy: str, codec: str, limit_bytes: int) -> None:
    """Raise MessageTooLarge when what a strategy keeps of two workers does not fit into its message."""
    smaller = "" if codec == "int8" else "cache_codec int8, or "
    require_message_fits(
        f"what {strategy} keeps of no more than two workers in {codec}, for this model of {layout.size:,} "
        "parameters,",
        size_bytes,
        limit_bytes,
        f"choose {smaller}the strategy fedbuff, which keeps nothing of a worker",
    )


def require_update_fits(layout: Layout, codec: str, limit_bytes: int) -> None:
    """Raise MessageTooLarge, which names the codecs that fit, when an update in this codec may not fit."""
    fitting = codecs_that_fit(layout, limit_bytes)
    named = ", ".join(f"{name} ({_mib(size_bytes)} MiB)" for name, size_bytes in fitting.items())
    require_message_fits(
        f"an update of this model of {layout.size:,} parameters in {codec}",
        most_bytes(codec, layout.size) + layout.beside_vector_size_bytes,
        limit_bytes,
        f"set FLUFFLE_CODEC at the aggregator to one that fits: {named}"
        if fitting
        else "use a smaller model, since no codec makes it small enough",
    )


def require_planned_update_fits(layout: Layout, plan: Plan, limit_bytes: int) -> None:
    """Raise MessageTooLarge when an update as a plan wants it, masked or in a codec, may not fit."""
    if plan.sealed:
        require_sealed_fits(layout, plan.sealed, limit_bytes)
        return
    if plan.secure is None:
        require_update_fits(layout, plan.codec, limit_bytes)
        return
    length = plan.secure.length(layout.size, layout.statistics_size)
    require_message_fits(
        f"a masked update of this model of {layout.size:,} parameters, modulo 2**{plan.secure.modulus_bits},",
        plan.secure.modulus.bytes_of(length),
        limit_bytes,
        "let the aggregator choose a smaller modulus",
    )


def codecs_that_fit(layout: Layout, limit_bytes: int) -> dict[str, int]:
    """Return the codecs in which an update of this model fits, and its bytes in each."""
    sizes = {name: most_bytes(name, layout.size) + layout.beside_vector_size_bytes for name in CODECS}
    return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes <= limit_bytes}


def _mib(size_bytes: int) -> str:
    # Rounded up, so that a size above a limit also looks above it.
    return f"{math.ceil(10 * size_bytes / MIB) / 10:,g}"
