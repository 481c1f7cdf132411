"""How much memory there is, and how much this process has taken."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

import torch

from styleapp.cgroups import granted_memory

__all__ = ["available", "is_out_of_memory", "release_freed_memory", "resident"]


def resident() -> int:
    """Bytes of physical memory that this process occupies; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def release_freed_memory() -> None:
    """Hand memory that was freed back to the system, where the C library is glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def available(device: torch.device) -> int:
    """Bytes that can be taken on a device without driving anything else out; a guess where it does not tell.

    In a container not more than it may have.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    there, granted = _there(), granted_memory()
    return there if granted is None else min(there, granted)


def _there() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) * 1024 if found else 4 * 10**9
    except OSError:
        return 4 * 10**9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
