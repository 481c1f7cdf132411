"""Doing jobs: read, stylize, write, each beside the others; the same in one process, in several, and on a cluster."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from styleapp.batch.plan import Job
from styleapp.errors import ImageError, StyleError
from styleapp.files import ANIMATED, Animation, check_size, read_animation, read_image, save_animation, save_picture
from styleapp.images import MAX_PIXELS, Picture
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

__all__ = ["Done", "Settings", "Task", "Worker"]


@dataclass(frozen=True)
class Settings:
    """What a worker needs besides its tasks; it travels to other processes.

    Attributes:
        batch_size: so many photos of equal size go through the network at once; 0 for what suits the device.
        threads: of the CPU, for the network; 0 for PyTorch's own choice.
        weights: folder with manifest.json; None for the shipped one.
        compile: use torch.compile.
        code_cache: folder in which codes of paintings outlive the process; None for memory alone.
    """

    options: Options
    device: str = "auto"
    precision: str = "auto"
    max_pixels: int = MAX_PIXELS
    quality: int = 95
    batch_size: int = 0
    threads: int = 0
    weights: str | None = None
    compile: bool = False
    code_cache: str | None = None

    def transfer(self) -> StyleTransfer:
        """The networks, on their device.

        Raises:
            StyleError: as :class:`styleapp.pipeline.StyleTransfer`.
        """
        return StyleTransfer(
            self.device,
            self.precision,
            weights=self.weights,
            max_pixels=self.max_pixels,
            compile=self.compile,
            code_cache=self.code_cache,
        )


@dataclass(frozen=True)
class Task:
    """A job, and the hash of the photo that its result was made of where it is there already."""

    job: Job
    known: str | None = None


@dataclass(frozen=True)
class Done:
    """What became of a job: a result, an error, or the result of an earlier run that still holds.

    Attributes:
        digest: hash of the photo; empty if it could not be read.
        seconds: of reading, stylizing and writing, whatever went on beside it.
    """

    job: Job
    digest: str = ""
    seconds: float = 0.0
    error: str = ""
    skipped: bool = False


@dataclass
class _Read:
    task: Task
    digest: str
    picture: Picture | Animation
    seconds: float

    @property
    def shape(self) -> object:
        """What photos have in common that go through the network at once; a moving one goes alone."""
        return self.task.job.target if isinstance(self.picture, Animation) else self.picture.pixels.shape


class Worker:
    """A network on one device, with threads that read and write beside it.

    Raises:
        StyleError: as :class:`styleapp.pipeline.StyleTransfer`.
    """

    def __init__(self, settings: Settings, transfer: StyleTransfer | None = None) -> None:
        self.settings = settings
        self.transfer = transfer or settings.transfer()
        on_gpu = self.transfer.device.type == "cuda"
        if threads := settings.threads or int(on_gpu):  # each helper would have a team of as many as there are cores
            torch.set_num_threads(threads)
        self.batch_size = settings.batch_size or (8 if on_gpu else 1)
        self.helpers = 6 if on_gpu else 1
        self._styles: dict[str, Any] = {}

    @property
    def ahead(self) -> int:
        """How many tasks are in hand at most; it bounds the memory."""
        return 3 if self.batch_size == 1 and self.helpers == 1 else 2 * self.helpers + 4 * self.batch_size

    def run(self, tasks: Iterable[Task | None]) -> Iterator[Done]:
        """Do the tasks; every failure is an outcome and the others go on.

        Never more than :attr:`ahead` tasks are taken without an outcome.

        Args:
            tasks: None among them stands for none at the moment: go on with what is in hand.
        """
        waiting = iter(tasks)
        reading: deque[Future[_Read | Done]] = deque()
        buckets: dict[Any, list[_Read]] = {}
        writing: deque[Future[Done]] = deque()
        more = True
        with ThreadPoolExecutor(self.helpers) as readers, ThreadPoolExecutor(self.helpers) as writers:
            while True:
                in_hand = len(reading) + len(writing) + sum(map(len, buckets.values()))
                while more and in_hand < self.ahead:
                    try:
                        task = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    if task is None:
                        break
                    reading.append(readers.submit(self._read, task))
                    in_hand += 1
                if not in_hand:
                    if not more:
                        return
                    continue
                if reading:
                    found = reading.popleft().result()
                    if isinstance(found, Done):
                        yield found
                        continue
                    bucket = buckets.setdefault(found.shape, [])
                    bucket.append(found)
                    held = sum(map(len, buckets.values()))
                    if len(bucket) < self.batch_size and (reading or more) and held < 4 * self.batch_size:
                        continue
                if buckets:
                    fullest = max(buckets, key=lambda key: len(buckets[key]))
                    for read, outcome in self._stylize(buckets.pop(fullest)):
                        if isinstance(outcome, Done):
                            yield outcome
                        else:
                            writing.append(writers.submit(self._write, read, *outcome))
                while writing and (writing[0].done() or len(writing) > self.helpers or not (reading or buckets)):
                    yield writing.popleft().result()

    def _read(self, task: Task) -> _Read | Done:
        start = time.perf_counter()
        digest = ""
        try:
            data = _bytes_of(task.job)
            digest = hashlib.sha256(data).hexdigest()[:16]
            if digest == task.known:
                return Done(task.job, digest, skipped=True)
            try:
                picture = self._picture(task.job, data)
            except ImageError as error:
                raise ImageError(str(error).replace("image data", str(task.job.photo), 1)) from None
        except Exception as error:
            return Done(task.job, digest, error=_told(error, task.job))
        return _Read(task, digest, picture, time.perf_counter() - start)

    def _picture(self, job: Job, data: bytes) -> Picture | Animation:
        """All frames, where there are several that the result can hold."""
        most = self.settings.max_pixels
        moving = job.photo.suffix.lower() in ANIMATED and job.target.suffix.lower() in ANIMATED
        if film := read_animation(data, most) if moving else None:
            return film
        picture = self.transfer.fit(read_image(data, most), self.settings.options)
        check_size(job.target, picture.size)
        return picture

    def _stylize(self, group: list[_Read]) -> Iterator[tuple[_Read, tuple[Picture | Animation, float] | Done]]:
        start = time.perf_counter()
        options = self.settings.options
        try:
            styles = [self._style(read.task.job.style) for read in group]
            results: Sequence[Picture | Animation]
            if isinstance(film := group[0].picture, Animation):
                results = [self.transfer.animate(film, styles[0], options)]
            else:
                stills = [read.picture for read in group if isinstance(read.picture, Picture)]
                results = self.transfer.pictures(stills, styles, options)
        except Exception as error:
            if len(group) > 1:  # find out whose fault it is
                for read in group:
                    yield from self._stylize([read])
                return
            yield group[0], Done(group[0].task.job, group[0].digest, error=_told(error, group[0].task.job))
            return
        seconds = (time.perf_counter() - start) / len(group)
        yield from ((read, (result, seconds)) for read, result in zip(group, results, strict=True))

    def _write(self, read: _Read, picture: Picture | Animation, seconds: float) -> Done:
        start = time.perf_counter()
        job = read.task.job
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(picture, Animation):
                save_animation(picture, job.target, quality=self.settings.quality)
            else:
                save_picture(picture, job.target, quality=self.settings.quality)
        except Exception as error:
            return Done(job, read.digest, error=_told(error, job))
        return Done(job, read.digest, read.seconds + seconds + time.perf_counter() - start)

    def _style(self, name: str) -> Any:
        if name not in self._styles:
            self._styles[name] = self.transfer.prepare(name, self.settings.options)
        return self._styles[name]


def _bytes_of(job: Job) -> bytes:
    try:
        data = job.photo.read_bytes()
    except IsADirectoryError:
        raise ImageError(f"{job.photo}: is a folder, not an image file") from None
    except OSError as error:
        raise ImageError(f"{job.photo}: cannot be read ({error.strerror or error})") from None
    if not data:
        raise ImageError(f"{job.photo}: the file is empty")
    return data


def _told(error: Exception, job: Job) -> str:
    """One line. An error that nobody foresaw must not end the others' work, but must be seen for what it is."""
    if isinstance(error, StyleError):
        return str(error)
    if isinstance(error, OSError):
        return f"{job.target}: cannot be written ({error.strerror or error})"
    return f"{job.photo}: {type(error).__name__}: {error}"
