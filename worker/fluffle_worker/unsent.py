"""What an earlier life of a worker has left in its spool, and must not be sent any more."""

from collections.abc import Callable

from fluffle.errors import WireError
from fluffle.logs import get_logger
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_worker.spool import Spool

log = get_logger(__name__)


def drop_unsent(spool: Spool, is_kept: Callable[[WeightUpdate], bool]) -> int:
    """Drop all unsent updates but those that `is_kept`; return how many were dropped.

    What cannot be read is dropped too.
    """

    def is_unwanted(body: bytes) -> bool:
        try:
            update = decode_inbound(body)
        except WireError:
            return True
        return not (isinstance(update, WeightUpdate) and is_kept(update))

    return spool.drop(is_unwanted)


def drop_residual(spool: Spool, before: str) -> None:
    """Drop what earlier updates have left out, if there is any, and say that it is of `before`."""
    if spool.has_residual:
        log.warning(f"what earlier updates left out is dropped: it is of {before}")
        spool.forget_residual()
