"""Many photos in many styles: what is to be done, what is done already, and doing the rest without losing any."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from styleapp.errors import ImageError, OptionError, StyleError
from styleapp.files import SUFFIXES, read_image, save_picture
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

__all__ = [
    "Done",
    "Job",
    "Journal",
    "Photo",
    "Summary",
    "find_photos",
    "find_styles",
    "make_jobs",
    "run_jobs",
    "settings_hash",
    "stopping",
    "summarize",
]

JOURNAL = ".styleapp-journal.jsonl"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{i}" for p in ("com", "lpt") for i in range(1, 10))}


@dataclass(frozen=True)
class Photo:
    """A file to stylize, and where it lies within the folder that was named."""

    path: Path
    relative: Path


@dataclass(frozen=True)
class Job:
    """One photo in one style, and where the result goes."""

    photo: Path
    style: str
    target: Path


@dataclass(frozen=True)
class Summary:
    """What a journal says: results, failures with their errors, and what a kill left unfinished.

    Attributes:
        done: number of results.
        seconds: that they took together.
        failed: error by output.
        unfinished: outputs that were begun.
    """

    done: int
    seconds: float
    failed: dict[str, str]
    unfinished: list[str]


@dataclass(frozen=True)
class Done:
    """What became of a job: a result, an error, or the result of an earlier run that still holds."""

    job: Job
    seconds: float = 0.0
    error: str = ""
    skipped: bool = False


# The plan


def find_photos(contents: Sequence[str]) -> list[Photo]:
    """Files, all that looks like an image in folders (and theirs), matches of glob patterns; "-": lines of stdin.

    In the order given, folders sorted, each file once. Links to folders are not followed: a loop would have no end.

    Raises:
        ImageError: for what does not exist, matches nothing, or is a folder without an image.
    """
    found: dict[Path, Photo] = {}
    for content in contents:
        path = Path(content)
        if content == "-":
            names = [line.rstrip("\r\n") for line in sys.stdin]
            photos = [Photo(Path(name), Path(Path(name).name)) for name in names if name]
            if not photos:
                raise ImageError("-: no path came in on standard input, one on each line")
        elif path.is_dir():
            photos = [Photo(p, p.relative_to(path)) for p in _images_in(path)]
            if not photos:
                raise ImageError(f"{content}: has no image in it (known: {', '.join(SUFFIXES)})")
        elif os.path.lexists(path):
            photos = [Photo(path, Path(path.name))]
        elif glob.has_magic(content):
            matches = sorted(Path(p) for p in glob.glob(content, recursive=True))  # noqa: PTH207 - absolute patterns too
            photos = [Photo(p, Path(p.name)) for p in matches if p.suffix.lower() in SUFFIXES and not p.is_dir()]
            if not photos:
                raise ImageError(f"{content}: matches no image")
        else:
            raise ImageError(f"{content}: no such file or folder")
        for photo in photos:
            found.setdefault(photo.path.absolute(), photo)
    return list(found.values())


def find_styles(styles: Sequence[str]) -> list[str]:
    """Names and files as they are; a folder as the images in it.

    Raises:
        ImageError: for a folder without an image.
    """
    found: list[str] = []
    for style in styles:
        if Path(style).is_dir():
            images = [str(p) for p in _images_in(Path(style))]
            if not images:
                raise ImageError(f"{style}: has no image in it (known: {', '.join(SUFFIXES)})")
            found += images
        else:
            found.append(style)
    return found


def _images_in(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(place) / name


def make_jobs(
    photos: Sequence[Photo], styles: Sequence[str], out: str, *, pairs: str = "all", seed: int = 0, suffix: str = ""
) -> list[Job]:
    """Which photo in which style, and where to.

    Args:
        out: a folder, in which the tree of the photos is kept (``folder/photo-style.jpg``), or a pattern with
            {stem}, {style}, {parent} and {ext}.
        pairs: "all" (every photo in every style), "zip" (the i-th in the i-th), or "random:K" (K styles
            for each photo, drawn with ``seed``).
        suffix: of the results, such as ".png"; that of the photo if empty.

    Raises:
        OptionError: for other ``pairs``, lists of different lengths to zip, or a pattern with another field.
    """
    targets: Counter[str] = Counter()
    jobs = []
    for photo, style in _paired(photos, styles, pairs, seed):
        ext = suffix or (photo.path.suffix if photo.path.suffix.lower() in SUFFIXES else ".png")
        fields = {
            "stem": _legal(photo.relative.stem),
            "style": _legal(Path(style).stem if _is_file(style) else style),
            "parent": "/".join(_legal(part) for part in photo.relative.parent.parts),
            "ext": ext.lstrip("."),
        }
        pattern = out if "{" in out else out.rstrip("/") + "/{parent}/{stem}-{style}.{ext}"
        try:
            target = Path(pattern.format_map(fields))
        except (KeyError, IndexError, ValueError) as error:
            raise OptionError(
                f"-o {out}: unknown field {error}; there are {{stem}}, {{style}}, {{parent}}, {{ext}}"
            ) from None
        # Case counts for nothing on some file systems: names that differ in it alone would meet.
        key = os.path.normpath(target).casefold()
        targets[key] += 1
        if targets[key] > 1:
            target = target.with_name(f"{target.stem}-{targets[key]}{target.suffix}")
            targets[os.path.normpath(target).casefold()] += 1
        jobs.append(Job(photo.path, style, target))
    return jobs


def _paired(photos: Sequence[Photo], styles: Sequence[str], pairs: str, seed: int) -> Iterator[tuple[Photo, str]]:
    kind, _, count = pairs.partition(":")
    if kind == "all" and not count:
        yield from ((photo, style) for photo in photos for style in styles)
    elif kind == "zip" and not count:
        if len(photos) != len(styles):
            raise OptionError(f"--pairs zip needs as many styles as photos, got {len(styles)} and {len(photos)}")
        yield from zip(photos, styles, strict=True)
    elif kind == "random" and count.isdigit() and 1 <= int(count) <= len(styles):
        for i, photo in enumerate(photos):
            yield from ((photo, style) for style in random.Random(f"{seed}:{i}").sample(list(styles), int(count)))
    else:
        raise OptionError(f"--pairs is all, zip, or random:K with K up to the {len(styles)} styles, got {pairs!r}")


def _is_file(style: str) -> bool:
    return Path(style).suffix.lower() in SUFFIXES


def _legal(name: str) -> str:
    """A name that every file system takes: no separators or control characters, not reserved, not too long."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]', "_", name).rstrip(". ") or "_"
    while len(name.encode()) > 120:
        name = name[:-1]
    return f"{name}_" if name.lower() in _RESERVED else name


# The journal


class Journal:
    """Lines of JSON beside the results: a job's result is about to be written, is done, or the job failed.

    A record holds the input and its hash, style, hash of the settings, the output, and seconds or the error.
    Lines that a kill cut off are ignored. Use as a context manager; two runs cannot hold one journal.

    Raises:
        OptionError: if another process is at work on this output, or the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = folder / JOURNAL
        self.settings = settings
        self.records: dict[str, dict[str, Any]] = {}
        self.ours: set[str] = set()
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OptionError(f"{self.path.parent}: cannot be written ({error.strerror})") from None
        if not _lock(self._file):
            self._file.close()
            raise OptionError(f"{self.path.parent}: another styleapp is at work on this output")
        for record in _lines(self.path):
            self._remember(record)
        self._file.write("\n")  # the last line may have been cut off
        for leftover in self.path.parent.rglob(".styleapp-*"):
            if re.fullmatch(r"\.styleapp-[0-9a-f]{12}\.\w+", leftover.name):
                leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def holds(self, job: Job, digest: str) -> bool:
        """Whether the result is there, made of this input with these settings."""
        record = self.records.get(str(job.target))
        return (
            record is not None
            and "seconds" in record
            and record.get("hash") == digest
            and record.get("settings") == self.settings
            and record.get("style") == job.style
            and record.get("style_hash") == style_hash(job.style)
            and job.target.is_file()
        )

    def start(self, job: Job, digest: str) -> None:
        """Note that the result is about to be written: what a kill leaves there is ours to replace."""
        self._add(job, digest, {"started": True})

    def write(self, done: Done, digest: str) -> None:
        """Note what became of a job."""
        self._add(done.job, digest, {"error": done.error} if done.error else {"seconds": round(done.seconds, 4)})

    def _add(self, job: Job, digest: str, outcome: dict[str, Any]) -> None:
        record = {
            "input": str(job.photo),
            "hash": digest,
            "style": job.style,
            "style_hash": style_hash(job.style),
            "settings": self.settings,
            "output": str(job.target),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **outcome,
        }
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        self.records[record["output"]] = record
        if "error" not in record:  # once written by us it is ours to replace, whatever fails later
            self.ours.add(record["output"])


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of each output."""
    return {record["output"]: record for record in _lines(path)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order. Lines that were cut off are ignored.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    for line in text.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("output"), str):
                yield record


def summarize(path: Path) -> Summary:
    """Of a journal, or of the folder that it lies in."""
    records = read_journal(path / JOURNAL if path.is_dir() else path)
    finished = [r for r in records.values() if "seconds" in r]
    return Summary(
        len(finished),
        sum(float(r["seconds"]) for r in finished),
        {k: str(r["error"]) for k, r in records.items() if "error" in r},
        [k for k, r in records.items() if "seconds" not in r and "error" not in r],
    )


def _lock(file: TextIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def style_hash(style: str) -> str:
    """Of the file of a painting; "" for a built-in style, or a file that is not there."""
    try:
        return hashlib.sha256(Path(style).read_bytes()).hexdigest()[:16] if _is_file(style) else ""
    except OSError:
        return ""


def settings_hash(options: Options, precision: str, quality: int, encoder: str) -> str:
    """What a result depends on besides photo and style."""
    said = {k: v for k, v in asdict(options).items() if k not in ("tile", "max_memory")}
    text = json.dumps([said, precision, quality, encoder], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# The run


def run_jobs(
    transfer: StyleTransfer,
    jobs: Iterable[Job],
    options: Options,
    journal: Journal,
    *,
    quality: int = 95,
    overwrite: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Done]:
    """Do the jobs in order; every failure is an outcome and the others go on.

    Reading the next photo and writing the last result go on beside the network, one of each. ``stop`` is asked
    before each job; what is in hand is finished.
    """
    waiting = deque(jobs)
    styles = _styles(transfer, options)
    writing: tuple[Job, str, float, Future[str]] | None = None

    def next_read(pool: ThreadPoolExecutor) -> tuple[Job, Future[tuple[str, bytes]]] | None:
        if not waiting or stop():
            return None
        job = waiting.popleft()
        return job, pool.submit(_load, job.photo)

    def settle(entry: tuple[Job, str, float, Future[str]]) -> Done:
        job, digest, start, future = entry
        try:
            future.result()
            done = Done(job, time.perf_counter() - start)
        except StyleError as error:
            done = Done(job, error=str(error))
        journal.write(done, digest)
        return done

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        current = next_read(reader)
        while current is not None:
            job, reading = current
            digest, start = "", time.perf_counter()
            try:
                digest, data = reading.result()
                current = next_read(reader)
                if not overwrite and journal.holds(job, digest):
                    yield Done(job, skipped=True)
                    continue
                if not overwrite and job.target.exists() and str(job.target) not in journal.ours:
                    raise ImageError(f"{job.target}: exists already; --overwrite replaces it")
                picture = transfer.fit(_named(data, job.photo, transfer), options)
                result = transfer.picture(picture, styles(job.style), options)
                if writing is not None:
                    finished, writing = writing, None
                    yield settle(finished)
                journal.start(job, digest)
                writing = (job, digest, start, writer.submit(_save, result, job.target, quality))
            except StyleError as error:
                if current is not None and current[0] is job:
                    current = next_read(reader)
                done = Done(job, error=str(error))
                journal.write(done, digest)
                yield done
        if writing is not None:
            yield settle(writing)


def _styles(transfer: StyleTransfer, options: Options) -> Callable[[str], Any]:
    """Each style encoded once, and a style that cannot be used told each time."""
    known: dict[str, Any] = {}

    def style(name: str) -> Any:
        if name not in known:
            known[name] = transfer.prepare(name, options)
        return known[name]

    return style


def _load(path: Path) -> tuple[str, bytes]:
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise ImageError(f"{path}: the file is empty")
    return hashlib.sha256(data).hexdigest()[:16], data


def _named(data: bytes, path: Path, transfer: StyleTransfer) -> Any:
    try:
        return read_image(data, transfer.max_pixels)
    except ImageError as error:
        raise ImageError(str(error).replace("image data", str(path), 1)) from None


def _save(picture: Any, target: Path, quality: int) -> str:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{target.parent}: cannot be made ({error.strerror})") from None
    return save_picture(picture, target, quality=quality)


@contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Inside, Ctrl-C and SIGTERM are remembered instead of raised: the number of the first, 0 for none.

    A second one is raised as KeyboardInterrupt.
    """
    import signal
    import threading

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
