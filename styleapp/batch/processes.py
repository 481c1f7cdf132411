"""Workers in processes of their own: one a GPU, or several that share the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from styleapp.batch.work import Done, Settings, Task, Worker
from styleapp.errors import DeviceError, StyleError
from styleapp.process import cores

__all__ = ["run_processes", "settings_of_workers"]

ATTEMPTS = 2
"""A task that was in the hands of two workers when they ended is taken to be what ended them."""


def settings_of_workers(settings: Settings, workers: int) -> list[Settings]:
    """The settings of each worker: all GPUs where "cuda" or "auto" finds several, or so many shares of the CPU.

    Args:
        workers: how many; 0 for one on a CPU and one a GPU.
    """
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") and torch.cuda.is_available() else 0
    if gpus > 1:
        count = workers or gpus
        return [replace(settings, device=f"cuda:{i % gpus}") for i in range(count)]
    count = workers or 1
    threads = settings.threads or (max(1, cores() // count) if count > 1 and not gpus else 0)
    return [replace(settings, threads=threads)] * count


class _Process:
    """A worker process, what it has in hand, and how many tasks it may still be sent."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.settings = settings
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.in_hand: dict[str, tuple[Task, int]] = {}
        self.credit = 0
        self.ready = False
        self.told_to_end = False

    def send(self, task: Task, attempt: int) -> None:
        self.in_hand[str(task.job.target)] = (task, attempt)
        self.credit -= 1
        self.connection.send(task)


def run_processes(each: Sequence[Settings], tasks: Iterable[Task]) -> Iterator[Done]:
    """As :meth:`Worker.run`, with one process for each settings. A worker that ends is replaced and its tasks retried.

    Raises:
        StyleError: if a worker cannot start at all.
    """
    source = iter(tasks)
    again: deque[tuple[Task, int]] = deque()
    workers = [_Process(settings) for settings in each]
    more, stillborn = True, 0
    try:
        while workers:
            for worker in workers:
                while worker.credit > 0 and not worker.told_to_end:
                    task, attempt = again.popleft() if again else (next(source, None) if more else None, 1)
                    if task is None:
                        more = False
                        worker.told_to_end = not any(w.in_hand for w in workers if w is not worker)
                        if worker.told_to_end:
                            _quietly_send(worker, None)
                        break
                    try:
                        worker.send(task, attempt)
                    except (BrokenPipeError, ConnectionResetError):
                        break  # found below
            ready = wait([worker.connection for worker in workers])
            for worker in [w for w in workers if w.connection in ready]:
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    message = None
                if isinstance(message, Done):
                    worker.in_hand.pop(str(message.job.target), None)
                    worker.credit += 1
                    yield message
                elif isinstance(message, int):
                    worker.credit, worker.ready = message, True
                elif isinstance(message, StyleError):
                    raise message
                else:
                    workers.remove(worker)
                    stillborn += not worker.ready
                    if stillborn > len(each):
                        raise DeviceError(
                            f"worker processes end {_end_of(worker)} before they begin: too little memory?"
                        )
                    yield from _lost(worker, again)
                    if not worker.told_to_end or worker.in_hand:
                        workers.append(_Process(worker.settings))
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()


def _quietly_send(worker: _Process, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        worker.connection.send(message)


def _lost(worker: _Process, again: deque[tuple[Task, int]]) -> Iterator[Done]:
    """What a worker that ended had in hand: to be tried again, or, the second time, failed."""
    how = _end_of(worker)
    for task, attempt in worker.in_hand.values():
        if attempt < ATTEMPTS:
            again.append((task, attempt + 1))
        else:
            yield Done(task.job, error=f"{task.job.photo}: the worker process ended {how}, {ATTEMPTS} times")


def _end_of(worker: _Process) -> str:
    worker.process.join()
    code = worker.process.exitcode
    return f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"


def _work(connection: Connection, settings: Settings) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one decides
    try:
        worker = Worker(settings)
    except StyleError as error:
        connection.send(error)
        return
    in_hand = 0

    def tasks() -> Iterator[Task | None]:
        nonlocal in_hand
        while True:
            if in_hand and not connection.poll():
                yield None
                continue
            task = connection.recv()
            if task is None:
                return
            in_hand += 1
            yield task

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # whom we work for is gone
        connection.send(worker.ahead)
        for done in worker.run(tasks()):
            in_hand -= 1
            connection.send(done)
