"""What a program of ours settles for its process, and a library must leave to the program that it lives in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from styleapp.allocator import keep_freed_memory
from styleapp.cgroups import granted_cores

__all__ = ["cores", "stopping", "tune_process"]


def tune_process() -> None:
    """Keep freed memory, and take no more threads than cores are granted.

    PyTorch takes one for each core of the machine; in a container that may use two of sixty-four they would be stopped
    most of the time. OMP_NUM_THREADS, where it is set, is the user's word.
    """
    keep_freed_memory()
    granted = granted_cores()
    if granted is not None and granted < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(granted)


def cores() -> int:
    """How many this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, granted_cores() or there)


@contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Inside, Ctrl-C and SIGTERM are remembered instead of raised: the number of the first, 0 for none.

    A second one is raised as KeyboardInterrupt.
    """
    seen = 0

    def remember(number: int, _: object) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {n: signal.signal(n, remember) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
