"""What Linux grants this process of the machine: in a container, or as a service, less than there is (cgroups(7))."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

__all__ = ["granted_cores", "granted_memory"]

OF_PROCESS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def granted_memory() -> int | None:
    """Bytes that this process may still take; None where nothing limits it."""
    rooms = [_room(*group) for group in _groups("memory")]
    return min((room for room in rooms if room is not None), default=None)


def granted_cores() -> int | None:
    """Cores' worth of time that this process may take, rounded up; None where nothing limits it."""
    shares = [_share(*group) for group in _groups("cpu")]
    return min((share for share in shares if share is not None), default=None)


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The folders of the groups that limit this process, and whether they are of version 2.

    A limit counts for all groups below. Inside a container the place may be that on the machine, where nothing is to be
    seen, and the container's own group is at the root.
    """
    try:
        lines = OF_PROCESS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        group = root / place.lstrip("/")
        for at in (group, *group.parents):
            yield at, not controllers
            if at == root:
                break


def _room(group: Path, second: bool) -> int | None:
    """What a group leaves of its memory. Pages of files that were read count as free: they make room when need be."""
    limit, usage, cached = ("memory.max", "memory.current", "inactive_file")
    if not second:
        limit, usage, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        most, taken = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, most - taken + int(stat.get(cached, 0)))


def _share(group: Path, second: bool) -> int | None:
    try:
        if second:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return None
    return max(1, math.ceil(cores)) if cores > 0 else None  # version 1 says -1 for no limit
