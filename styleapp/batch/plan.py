"""What is to be done: which photos, in which styles, and where each result goes."""

from __future__ import annotations

import glob
import os
import random
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from styleapp.errors import ImageError, OptionError
from styleapp.files import SUFFIXES, VIDEOS, header

__all__ = [
    "JOURNAL",
    "Estimate",
    "Job",
    "Photo",
    "estimate",
    "find_photos",
    "find_styles",
    "is_file",
    "make_jobs",
    "output_key",
    "place",
]

JOURNAL = ".styleapp-journal.jsonl"
"""What a run leaves in the folder of its results, see :mod:`styleapp.batch.journal`."""

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


def place(text: str) -> Path:
    """A path, or with a scheme such as s3:// or gs:// what behaves like one.

    Raises:
        OptionError: for a scheme without what it needs being installed.
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        found = UPath(text)
        found.exists()
    except ImportError as error:
        raise OptionError(
            f"{text}: {error}; pip install 'styleapp[cloud]' and the package of the store, such as s3fs or gcsfs"
        ) from None
    except (ValueError, OSError) as error:
        raise OptionError(f"{text}: {error}") from None
    return cast(Path, found)


def find_photos(
    contents: Sequence[str], results: Container[str] = (), left_out: Callable[[Path], None] = lambda film: None
) -> list[Photo]:
    """Files, all that looks like an image in folders (and theirs), matches of glob patterns; "-": lines of stdin.

    In the order given, folders sorted, each file once. Links to folders are not followed: a loop would have no end.
    Folders of a store (s3://bucket/photos) are listed in the same way. Results of earlier runs are no photos: what lies
    in a folder that such a run wrote to is left out, unless that folder is named itself.

    Args:
        results: absolute paths of further ones, which are left out where they were not named one by one.
        left_out: called with each film in a folder: films are named one by one.

    Raises:
        ImageError: for what does not exist, matches nothing, or is a folder without an image.
    """
    found: dict[str, Photo] = {}
    for content in contents:
        path = place(content)
        if content == "-":
            names = [line.rstrip("\r\n") for line in sys.stdin]
            photos = [Photo(place(name), Path(Path(name).name)) for name in names if name]
            if not photos:
                raise ImageError("-: no path came in on standard input, one on each line")
        elif path.is_dir():
            images = [p for p in _images_in(path, left_out) if output_key(p) not in results]
            photos = [Photo(p, Path(str(p.relative_to(path)))) for p in images]
            if not photos:
                raise ImageError(f"{content}: has no image in it (known: {', '.join(SUFFIXES)})")
        elif not isinstance(path, Path) or os.path.lexists(path):
            if not isinstance(path, Path) and not path.exists():
                raise ImageError(f"{content}: no such file or folder")
            photos = [Photo(path, Path(path.name))]
        elif glob.has_magic(content):
            matches = sorted(Path(p) for p in glob.glob(content, recursive=True))  # noqa: PTH207 - absolute patterns too
            images = [p for p in matches if p.suffix.lower() in SUFFIXES and not p.is_dir()]
            photos = [Photo(p, Path(p.name)) for p in images if output_key(p) not in results]
            if not photos:
                raise ImageError(f"{content}: matches no image")
        else:
            raise ImageError(f"{content}: no such file or folder")
        for photo in photos:
            found.setdefault(str(photo.path.absolute()), photo)
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


def output_key(path: Path) -> str:
    """What is the same for the same file, from whatever folder it is looked at."""
    return os.path.abspath(path) if isinstance(path, Path) else str(path)  # noqa: PTH100 - Path's own keeps ".."


def _images_in(folder: Path, left_out: Callable[[Path], None] = lambda film: None) -> Iterator[Path]:
    if not isinstance(folder, Path):
        for path in sorted(folder.rglob("*"), key=str):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                yield path
        return
    for at, folders, names in os.walk(folder):
        if JOURNAL in names and Path(at) != folder:
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            path = Path(at) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield path
            elif path.suffix.lower() in VIDEOS and not name.startswith("."):
                left_out(path)


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
        OptionError: for other ``pairs``, lists of different lengths to zip, or a pattern with another field or without
            a format at its end.
    """
    pattern = out if "{" in out else out.rstrip("/") + "/{parent}/{stem}-{style}.{ext}"
    _check_pattern(pattern)
    targets: Counter[str] = Counter()
    jobs = []
    for photo, style in _paired(photos, styles, pairs, seed):
        ext = suffix or (photo.path.suffix if photo.path.suffix.lower() in SUFFIXES else ".png")
        fields = {
            "stem": _legal(photo.relative.stem),
            "style": _legal(Path(style).stem if is_file(style) else style),
            "parent": "/".join(_legal(part) for part in photo.relative.parent.parts),
            "ext": ext.lstrip("."),
        }
        wanted = target = place(pattern.format_map(fields))
        # Case counts for nothing on some file systems: names that differ in it alone would meet.
        while _key(target) in targets:
            targets[_key(wanted)] += 1
            target = wanted.with_name(f"{wanted.stem}-{targets[_key(wanted)]}{wanted.suffix}")
        targets[_key(target)] += 1
        jobs.append(Job(photo.path, style, target))
    return jobs


FIELDS = ("stem", "style", "parent", "ext")


def _check_pattern(pattern: str) -> None:
    there = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise OptionError(f"-o {pattern}: {error}; fields are {there}") from None
    for _, field, form, conversion in parts:
        if field is not None and (field not in FIELDS or form or conversion):
            raise OptionError(f"-o {pattern}: unknown field {field!r}; there are {there}")
    if not pattern.endswith(".{ext}") and Path(pattern).suffix.lower() not in SUFFIXES:
        raise OptionError(f"-o {pattern}: must end with .{{ext}}, or a format: {', '.join(SUFFIXES)}")


def _key(target: Path) -> str:
    return (os.path.normpath(target) if isinstance(target, Path) else str(target)).casefold()


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


def is_file(style: str) -> bool:
    """Whether a style is a painting, not a name."""
    return Path(style).suffix.lower() in SUFFIXES


def _legal(name: str) -> str:
    """A name that every file system takes: no separators or control characters, not reserved, not too long."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]', "_", name).rstrip(". ") or "_"
    while len(name.encode()) > 120:
        name = name[:-1]
    return f"{name}_" if name.lower() in _RESERVED else name


# What it will take


@dataclass(frozen=True)
class Estimate:
    """What a plan will take, from the headers of a sample of the photos.

    Attributes:
        results: how many.
        megapixels: of all results together.
        seconds: at the measured speed; None where it was not measured.
        disk: bytes of the results, at a typical size a pixel for each format.
        unreadable: how many of the sample are no images.
    """

    results: int
    megapixels: float
    seconds: float | None
    disk: int
    unreadable: int


_BYTES_PER_PIXEL = {".jpg": 0.6, ".jpeg": 0.6, ".webp": 0.5, ".avif": 0.4, ".heic": 0.4, ".png": 2.2, ".gif": 0.9}
"""Of stylized photos, which are rich in detail, at quality 95; others are written without loss."""


ENLARGING = 0.4
"""What a pixel of a photo that is reduced for the network takes, of what one takes that goes through it: on two CPU
cores 0.2 of 0.4 to 0.5 µs."""


def estimate(
    jobs: Sequence[Job],
    size: int,
    megapixels_per_second: float | None = None,
    sample: int = 200,
    work_size: int = 0,
) -> Estimate:
    """What a plan will take.

    Args:
        size: the short side that is asked for, 0 for that of each photo.
        work_size: the one that the network sees at most; 0 for any.
        megapixels_per_second: speed of the network.
        sample: so many photos, spread over the plan, are looked at.
    """
    chosen = jobs[:: max(1, len(jobs) // sample)]
    pixels, worked, weight, readable = 0.0, 0.0, 0.0, 0
    for job in chosen:
        try:
            with header(job.photo if isinstance(job.photo, Path) else job.photo.read_bytes()) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError):
            continue
        scale = size / min(width, height) if size else 1.0
        readable += 1
        pixels += width * height * scale**2
        reduction = work_size / (scale * min(width, height)) if work_size else 1.0
        worked += width * height * scale**2 * (reduction**2 + ENLARGING if reduction < 1 else 1)
        weight += width * height * scale**2 * _BYTES_PER_PIXEL.get(job.target.suffix.lower(), 3.0)
    factor = len(jobs) / max(1, len(chosen))
    megapixels = pixels * factor / 1e6
    seconds = worked * factor / 1e6 / megapixels_per_second if megapixels_per_second else None
    return Estimate(len(jobs), megapixels, seconds, round(weight * factor), len(chosen) - readable)
