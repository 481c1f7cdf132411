"""Arrays in files, mapped into memory: for what memory has no room for."""

from __future__ import annotations

import math
import mmap
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

__all__ = ["MappedArray", "can_map", "map_array", "room_on_disk", "scratch_array", "scratch_folder"]


@dataclass(frozen=True)
class MappedArray:
    """(1, C, H, W), channels_last, in a file."""

    tensor: Tensor
    mapped: mmap.mmap

    def forget(self) -> None:
        """Take its pages out of this process's memory; what was written to them stays in the file."""
        self.mapped.madvise(mmap.MADV_DONTNEED)


def can_map() -> bool:
    """Whether this system has what is needed."""
    return hasattr(os, "posix_fallocate") and hasattr(mmap, "MADV_DONTNEED")


def map_array(file: BinaryIO, shape: tuple[int, int, int], dtype: torch.dtype) -> MappedArray:
    """A file, made as long as (H, W, C) takes where it is shorter, as an array.

    Raises:
        OSError: if there is too little room on the disk.
    """
    size = math.prod(shape) * dtype.itemsize
    os.posix_fallocate(
        file.fileno(), 0, size
    )  # a mapped file that finds no room when it is written to ends the process
    mapped = mmap.mmap(file.fileno(), size)
    flat = torch.frombuffer(mapped, dtype=dtype)
    return MappedArray(flat.view(1, *shape).permute(0, 3, 1, 2), mapped)


def scratch_folder() -> Path:
    """Where large temporary files go: $TMPDIR, else /var/tmp, which is on a disk where /tmp is in memory."""
    wanted = os.environ.get("TMPDIR") or "/var/tmp"
    return Path(wanted if os.access(wanted, os.W_OK) else tempfile.gettempdir())


def room_on_disk() -> int:
    """Bytes that arrays may take in :func:`scratch_folder`: half of what is free, 0 where that is memory."""
    folder = scratch_folder()
    if not can_map() or _is_in_memory(folder):
        return 0
    try:
        return shutil.disk_usage(folder).free // 2
    except OSError:
        return 0


def scratch_array(shape: tuple[int, int, int], dtype: torch.dtype) -> MappedArray:
    """An array (H, W, C) in a file without a name, which goes with it, also if this process is killed.

    Raises:
        OSError: if there is too little room on the disk.
    """
    with tempfile.TemporaryFile(dir=scratch_folder()) as file:
        return map_array(file, shape, dtype)


def _is_in_memory(folder: Path) -> bool:
    try:
        table = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return False
    mounts = re.findall(r"^\S+ \S+ \S+ \S+ (\S+) .* - (\S+) ", table, re.M)
    parts = {Path(point): kind for point, kind in mounts}
    at = next((parent for parent in (folder.resolve(), *folder.resolve().parents) if parent in parts), None)
    return at is not None and parts[at] in ("tmpfs", "ramfs")
