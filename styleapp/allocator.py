"""Make the C library keep memory that was freed, instead of handing it back at once.

A network frees and asks for tens of megabytes at every layer. glibc returns blocks of that size to the
system, and faulting their pages in again costs several times what an elementwise operation does:
``benchmarks/allocator.json`` has the measurement. For programs only: a library must not decide this
for the process that it lives in.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tune malloc for the rest of this process; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    largest = 2**31 - 1
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, largest),
            (_M_TOP_PAD, 64 * 2**20),
            (_M_ARENA_MAX, 1),  # what one thread has freed, another takes: a page answers from many
        )
    )
