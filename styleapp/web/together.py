"""Requests of one size that wait at the same time go through the network as one batch."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from styleapp.images import Picture
from styleapp.options import Options
from styleapp.pipeline import Style, StyleTransfer

__all__ = ["Progress", "Together"]

Progress = Callable[[float], None]
"""Told the share of the work that is done, from 0 to 1."""


@dataclass(eq=False)
class _Job:
    photo: Picture
    style: Style
    options: Options
    key: tuple[Any, ...]
    result: Picture | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    ready: bool = False


class Together:
    """Who gets the device takes others along that wait with a photo of the same size and the same options.

    Args:
        transfer: what stylizes.
        most: so many photos at once; 1 where it does not pay, as on a CPU.
    """

    def __init__(self, transfer: StyleTransfer, most: int) -> None:
        self.transfer = transfer
        self.most = most
        self.sizes: Counter[int] = Counter()
        """How many batches there were of so many photos."""
        self._waiting: list[_Job] = []
        self._lock = threading.Lock()

    def picture(
        self, photo: Picture, style: Style, options: Options, turn: Callable[[], AbstractContextManager[Progress]]
    ) -> tuple[Picture, float]:
        """As :meth:`StyleTransfer.picture`, with the seconds in work. What goes wrong with one photo is that photo's.

        Args:
            turn: waits for the device and holds it; gives what to tell the share of the work that is done, which ends
                work that is wanted no more. (Of a batch nothing is told: it is one short step.)
        """
        job = _Job(photo, style, options, (tuple(photo.pixels.shape), photo.pixels.dtype, options))
        with self._lock:
            self._waiting.append(job)
        try:
            with turn() as watch:
                if not job.ready:
                    self._work(self._batch_of(job), watch)
        finally:
            with self._lock:
                if job in self._waiting:
                    self._waiting.remove(job)
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result, job.seconds

    def _batch_of(self, job: _Job) -> list[_Job]:
        with self._lock:
            others = [j for j in self._waiting if j is not job and j.key == job.key]
            jobs = [job, *others[: self.most - 1]]
            self._waiting = [j for j in self._waiting if j not in jobs]
        return jobs

    def _work(self, jobs: list[_Job], watch: Progress) -> None:
        """``watch`` is of the first job, whose thread this is."""
        self.sizes[len(jobs)] += 1
        start = time.perf_counter()
        try:
            if len(jobs) == 1 or not self._worked_at_once(jobs):
                for job in jobs:
                    self._work_alone(job, watch if job is jobs[0] else lambda share: None)
        finally:
            for job in jobs:
                job.seconds, job.ready = time.perf_counter() - start, True

    def _worked_at_once(self, jobs: list[_Job]) -> bool:
        try:
            found = self.transfer.pictures([j.photo for j in jobs], [j.style for j in jobs], jobs[0].options)
        except Exception:  # whose it is shows one by one
            return False
        for job, result in zip(jobs, found, strict=True):
            job.result = result
        return True

    def _work_alone(self, job: _Job, watch: Progress) -> None:
        try:
            job.result = self.transfer.picture(job.photo, job.style, job.options, progress=watch)
        except Exception as error:
            job.error = error
