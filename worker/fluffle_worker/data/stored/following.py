"""What the log says while a data set is read: how far it is, and which rows are left out."""

import time
from collections.abc import Generator

from fluffle.logs import get_logger
from fluffle_worker.data.stored.source import Block

log = get_logger(__name__)

# What takes longer than this is waited for, and shows how far it is so often.
LOG_EVERY_S = 10.0


def followed(
    blocks: Generator[Block, None, None], *, url: str, rows: int | None, is_first: bool = True
) -> Generator[Block, None, None]:
    """Yield the blocks, and log how far a long pass is; `rows` are all, None where nobody knows.

    Rows without a label are told in the first pass alone.
    """
    began = logged = time.monotonic()
    read = left_out = 0
    try:
        for block in blocks:
            read += len(block)
            left_out += block.left_out
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                share = {} if rows is None else {"share": f"{(read + left_out) / rows:.0%}"}
                log.info("reading data", url=url, rows=read, **share)
            yield block
    finally:
        blocks.close()
    if (seconds := time.monotonic() - began) > LOG_EVERY_S:
        log.info("data read", url=url, rows=read, seconds=round(seconds, 1))
    if left_out and is_first:
        log.info("rows without a label are left out", url=url, rows=left_out, rows_left=read)
