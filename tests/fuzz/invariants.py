"""What holds of every message that was let in, whoever sent it; fuzzer and hypothesis both hold it."""

import math
from collections.abc import Iterator, Mapping

from fluffle.codecs.sealed import SealedVector
from fluffle.compression import MASKED_CODECS, require_codec
from fluffle.errors import WireError
from fluffle.fields import MAX_METRICS, is_metric_name, is_name
from fluffle.model import MAX_PARAMETERS
from fluffle.record import Evaluation, Hello
from fluffle.sealed.parameters import PRIME
from fluffle.sealed.plan import SEALED
from fluffle.sealed.residues import unpack
from fluffle.sites import MAX_SITE_METRICS, SiteEvaluation, SiteMetric
from fluffle.survey import MAX_COLUMNS
from fluffle.survey.messages import SiteStatistics
from fluffle.update import WeightUpdate
from fluffle.wire import Inbound

SAYS_WHERE = (
    "field ",
    "unknown field ",
    "the name of a field",
    "the header ",
    "the payload ",
    "the masks ",
    "the message ",
    "its lists and maps ",
)


class BrokenInvariant(Exception):
    """A message was let in, or refused, as none may be."""


def require_sound(message: Inbound) -> None:
    """Raise BrokenInvariant unless everything that a leader leans on holds."""
    broken = [what for what, holds in _of(message) if not holds]
    if broken:
        raise BrokenInvariant(f"{', '.join(broken)} of {message}")


def require_said_where(error: WireError) -> None:
    """Raise BrokenInvariant unless a refusal says where the fault is, in one printable line."""
    if not str(error).startswith(SAYS_WHERE) or not str(error).isprintable():
        raise BrokenInvariant(f"this says not where: {error}") from error


def _of(message: Inbound) -> Iterator[tuple[str, bool]]:
    yield "federation", type(message.federation) is str and len(message.federation) <= 64
    match message:
        case WeightUpdate():
            yield "worker", is_name(message.id.worker)
            yield "run", is_name(message.id.run)
            yield "sequence", type(message.id.sequence) is int and 1 <= message.id.sequence < 2**64
            yield "base_term", type(message.base_term) is int and 1 <= message.base_term < 2**64
            yield "base_version", type(message.base_version) is int and 0 <= message.base_version < 2**64
            yield "sends", message.sends in {"delta", "weights"}
            if message.epoch:
                yield "codec", message.codec in MASKED_CODECS
            elif isinstance(message.vector, SealedVector):
                yield "codec", message.codec == SEALED
                yield "key", bool(message.key)
                yield "residues", unpack(message.vector.sealed, message.vector.sealed_size).max() < PRIME
            else:
                yield "codec", require_codec(message.codec) == message.codec
                blocks = sum(block.size for block in message.vector.blocks())
                yield "vector", blocks == message.vector.size
            yield "parameters", message.vector.size <= MAX_PARAMETERS
            yield "integers", type(message.integers) is bytes
            yield "examples", type(message.examples) is int
            yield "train_s", type(message.train_s) is float and math.isfinite(message.train_s)
            yield "loss", message.loss is None or type(message.loss) is float
        case Evaluation():
            yield "evaluator", is_name(message.evaluator)
            yield "version", type(message.version) is int and 0 <= message.version < 2**64
            yield "evaluate_s", type(message.evaluate_s) is float and math.isfinite(message.evaluate_s)
            yield "metrics", _are_metrics(message.metrics)
        case SiteEvaluation():
            yield "worker", is_name(message.worker)
            yield "term", type(message.term) is int and 1 <= message.term < 2**64
            yield "version", type(message.version) is int and 0 <= message.version < 2**64
            yield "examples", type(message.examples) is int and message.examples >= 1
            yield "evaluate_s", type(message.evaluate_s) is float and math.isfinite(message.evaluate_s)
            yield "metrics", bool(message.metrics) and _are_of_a_site(message.metrics)
            yield "tuned", _are_of_a_site(message.tuned)
        case Hello():
            yield "name", is_name(message.name)
        case SiteStatistics():
            yield "worker", is_name(message.worker)
            found = message.statistics
            yield "columns", len(found.columns) == len(found.names) <= MAX_COLUMNS
            yield "counts", all(each.values >= found.rows for each in found.columns)
            # Merged with itself, it is as sound as before.
            yield "merged", found.merged(found).rows == 2 * found.rows


def _are_of_a_site(metrics: tuple[SiteMetric, ...]) -> bool:
    names = {each.name for each in metrics}
    return len(names) == len(metrics) <= MAX_SITE_METRICS and all(
        is_metric_name(each.name)
        and each.pooling in {"mean", "root_mean", "site_mean"}
        and type(each.total) is float
        and type(each.count) is float
        and 0 <= each.count < math.inf
        for each in metrics
    )


def _are_metrics(metrics: Mapping[str, float]) -> bool:
    return len(metrics) <= MAX_METRICS and all(
        is_metric_name(name) and type(value) is float for name, value in metrics.items()
    )
