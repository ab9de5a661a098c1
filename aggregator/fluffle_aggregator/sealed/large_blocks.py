"""How a process keeps memory of large messages that is free again."""

import ctypes
import sys
from contextlib import suppress
from typing import Final

# glibc's mallopt.h.
_MMAP_THRESHOLD: Final = -3
LARGE_BYTES: Final = 4 * 2**20


def give_back_large_blocks() -> None:
    """Let the system have the memory of large blocks again as soon as they are free, on Linux.

    Otherwise glibc keeps blocks of up to 32 MB to use them again. Ciphertexts of some hundred thousand
    parameters are as large, and there are several of them at a time: that would be a third more memory.
    """
    if sys.platform == "linux":
        # Another C library has no such function, and does not keep them.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
