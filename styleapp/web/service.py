"""What the page does with the network: one rendering at a time, nothing of a visitor kept."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from styleapp.errors import OptionError, StyleError, unknown_name
from styleapp.files import frames_in, save_picture
from styleapp.gallery import BuiltInStyle
from styleapp.images import Metadata, Picture, from_pil, on_white, to_pil
from styleapp.memory import release_freed_memory, resident
from styleapp.options import Options
from styleapp.pipeline import Style, StyleTransfer
from styleapp.web.together import Progress, Together

__all__ = ["BUSY", "FORMATS", "PREVIEW", "Progress", "Service", "caption", "settings_of", "shown", "told"]

PREVIEW = 256
"""Short side of the picture that follows the sliders."""

FORMATS = ("png", "jpg", "webp")
KEPT_SECONDS = 3600
TIDY_EVERY = 10
THUMBNAIL = 256
TOGETHER = 8
"""Photos of one size that a GPU takes at once."""

BUSY = "Many people are here at once. Please try again in a minute."


class _CancelledError(StyleError):
    """The visitor wants no result any more."""


class Service:
    """The network behind the page, shared by all visitors.

    Args:
        transfer: what stylizes.
        wait_seconds: how long a request waits for its turn before it is told to come back.
        work_seconds: how long it may then take; looked at after each tile, and each step of refining a code.
        together: photos of one size that go through the network at once; None for what suits the device.
    """

    def __init__(
        self,
        transfer: StyleTransfer,
        *,
        wait_seconds: float = 120.0,
        work_seconds: float = 300.0,
        together: int | None = None,
    ) -> None:
        self.transfer = transfer
        self.wait_seconds = wait_seconds
        self.work_seconds = work_seconds
        self.together = Together(transfer, together or (TOGETHER if transfer.device.type == "cuda" else 1))
        self.counts: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.waiting = 0
        self._device = threading.Lock()
        self._cancelled: dict[str, float] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="styleapp-page-")
        self.thumbnails = self._thumbnails()

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(caption, name) of every named style."""
        return [(caption(style), name) for name, style in self.transfer.styles.gallery.styles.items()]

    @property
    def stroke(self) -> int:
        """The usual size at which a painting is measured, within what the gallery has."""
        sizes = self.transfer.styles.gallery.sizes
        return min(max(Options().style_size, sizes[0]), sizes[-1])

    def check_names(self, *styles: str) -> None:
        """Refuse what is no name of a style: nothing that a visitor writes may become a path.

        Raises:
            OptionError: with what was meant, perhaps.
        """
        for style in styles:
            if style not in self.transfer.styles.gallery.styles:
                raise unknown_name("style", style, self.transfer.styles.gallery.styles)

    def network(self, *styles: str | None, color: str = "none", style_size: float | None = None) -> str:
        """The norm that the page takes by itself: "cin" where it knows every one of these, else "adain".

        The thumbnails show the same.

        Args:
            style_size: that of the page if None.
        """
        options = Options(color=color, style_size=round(style_size or self.stroke))
        return self.transfer.styles.settled(options, [s or "" for s in styles]).norm

    @property
    def queue(self) -> dict[str, Any]:
        """For every event of the page that uses the network: they take turns, also across tabs."""
        return {"concurrency_id": "model", "concurrency_limit": self.together.most}

    @contextmanager
    def turn(
        self, kind: str, *files: str | None, session: str | None = None, progress: Progress = lambda share: None
    ) -> Iterator[Progress]:
        """Wait for the network; inside, errors of a visitor become messages, without the places of files.

        Args:
            kind: what is done, for the metrics.
            files: uploads, whose paths are nothing to show.
            session: of the visitor, who may cancel.
            progress: told the share of the work.

        Yields:
            What to call with the share of the work that is done: it ends what was cancelled or takes too long.
        """
        with self._counted(kind, *files), self._device_had(session, progress) as watch:
            yield watch

    @contextmanager
    def _counted(self, kind: str, *files: str | None) -> Iterator[None]:
        outcome, start = "failed", time.perf_counter()
        try:
            with told(*files):
                try:
                    yield
                    outcome = "done"
                except _CancelledError:
                    outcome = "cancelled"
                    raise
                except StyleError:
                    outcome = "refused"
                    raise
                except gr.Error as error:
                    outcome = "busy" if error.message == BUSY else "refused"
                    raise
        finally:
            self.counts[kind, outcome] += 1
            self.seconds[kind] += time.perf_counter() - start
            if sum(self.counts.values()) % TIDY_EVERY == 0:
                release_freed_memory()  # requests come in many threads, and each leaves some behind

    @contextmanager
    def _device_had(self, session: str | None, progress: Progress) -> Iterator[Progress]:
        self.waiting += 1
        got = self._device.acquire(timeout=self.wait_seconds)
        self.waiting -= 1
        if not got:
            raise gr.Error(BUSY, print_exception=False)
        try:
            yield self._watch(session, progress)
        finally:
            self._device.release()

    def _watch(self, session: str | None, progress: Progress) -> Progress:
        start = time.monotonic()

        def watch(share: float) -> None:
            if session is not None and self._cancelled.get(session, -1.0) >= start:
                raise _CancelledError("cancelled")
            if time.monotonic() - start > self.work_seconds and share < 1:
                raise OptionError(
                    f"this takes longer than the {self.work_seconds:g} seconds that a request may take here; "
                    "choose a smaller size"
                )
            progress(share)

        return watch

    def cancel(self, session: str | None) -> None:
        """End what this visitor has in work, after the tile in hand."""
        if session is not None:
            now = time.monotonic()
            self._cancelled = {s: t for s, t in self._cancelled.items() if now - t < KEPT_SECONDS} | {session: now}

    def stylize(
        self,
        photo: str | None,
        style: Style | None,
        options: Options,
        *,
        regions: Any = (),
        kind: str = "stylize",
        files: tuple[str | None, ...] = (),
        session: str | None = None,
        progress: Progress = lambda share: None,
    ) -> tuple[Image.Image, Image.Image, str]:
        """(photo as it was stylized, result, a line about it). ``session`` and ``progress`` as in :meth:`turn`."""
        turn = partial(self._device_had, session, progress)
        with self._counted(kind, photo, *files):
            if photo is None:
                raise OptionError("choose a photo first")
            if style is None and not regions:
                raise OptionError("choose a painting or one of the built-in styles")
            start = time.perf_counter()
            picture = self.transfer.fit(photo, options)
            seconds = time.perf_counter() - start
            notes = [picture.metadata.note]
            if (frames := frames_in(Path(photo))) > 1:
                notes.append(f"this is the first of {frames} frames; the command line stylizes all")
            if style is not None and not regions and self.together.most > 1:
                result, working = self.together.picture(picture, style, options, turn)
            else:
                with turn() as watch:
                    start = time.perf_counter()
                    result = self.transfer.picture(picture, style, options, regions=regions, progress=watch)
                working = time.perf_counter() - start
            seconds += working
        height, width = result.size
        where = f"{self.transfer.device}, {self.transfer.precision}"
        about = "; ".join([f"{width} × {height} px in {seconds:.2f} s ({where})", *(note for note in notes if note)])
        return shown(picture), to_pil(result), about

    def preview(
        self, photo: str | None, style: Style | None, options: Options, regions: Any = ()
    ) -> tuple[str, str] | None:
        """Files of photo and result at a small size; None where there is nothing to show yet.

        A painting's code is not refined for it: a preview is there at once, also while its stroke size is moved.
        """
        if photo is None or (style is None and not regions):
            return None
        small = replace(options, size=PREVIEW, refine=0)
        before, after, _ = self.stylize(photo, style, small, regions=regions, kind="preview")
        return self.pair(before, after)

    def file(self, picture: Image.Image, fmt: str, settings: dict[str, Any], name: str = "stylized") -> str:
        """The picture as a file to download, with what it was made with in its EXIF description."""
        self._tidy()
        exif = Image.Exif()
        exif[0x010E] = json.dumps(settings, ensure_ascii=True)
        exif[0x0131] = "StyleApp"
        path = Path(tempfile.mkdtemp(dir=self._folder.name)) / f"{name}.{fmt}"
        save_picture(replace(from_pil(picture), metadata=Metadata(exif=exif.tobytes())), path)
        return str(path)

    def pair(self, before: Image.Image, after: Image.Image | str) -> tuple[str, str]:
        """Two pictures to be shown, as files that are written quickly; Gradio's own way compresses PNG thoroughly."""
        folder = self.scratch()
        paths = []
        for name, picture in (("before", before), ("after", after)):
            if isinstance(picture, str):
                paths.append(picture)
                continue
            path = folder / f"{name}.png"
            on_white(picture).save(path, compress_level=1)
            paths.append(str(path))
        return paths[0], paths[1]

    def scratch(self) -> Path:
        """A new folder for files to download; removed after an hour."""
        self._tidy()
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def _tidy(self) -> None:
        now = time.time()
        for folder in Path(self._folder.name).iterdir():
            with suppress(FileNotFoundError):  # another request may tidy, too
                if now - folder.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(folder)

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        lines = ["# TYPE styleapp_requests_total counter"]
        lines += [
            f'styleapp_requests_total{{kind="{k}",outcome="{o}"}} {n}' for (k, o), n in sorted(self.counts.items())
        ]
        lines.append("# TYPE styleapp_seconds_total counter")
        lines += [f'styleapp_seconds_total{{kind="{k}"}} {s:.3f}' for k, s in sorted(self.seconds.items())]
        lines += ["# TYPE styleapp_waiting gauge", f"styleapp_waiting {self.waiting}"]
        lines.append("# TYPE styleapp_batches_total counter")
        lines += [f'styleapp_batches_total{{photos="{size}"}} {n}' for size, n in sorted(self.together.sizes.items())]
        lines += ["# TYPE styleapp_memory_bytes gauge", f"styleapp_memory_bytes {resident()}"]
        return "\n".join(lines) + "\n"

    def _thumbnails(self) -> list[tuple[Image.Image, str]]:
        """The same photo in every named style, small, with the name of each."""
        from styleapp.files import example_photos

        photos = example_photos()
        if not photos:
            return []
        options = Options(size=max(THUMBNAIL, self.transfer.networks.adain.min_size))
        photo = self.transfer.fit(photos[0], options)
        height, width = photo.size
        top, left = 0, (width - min(height, width)) // 2
        edge = min(height, width)
        square = replace(photo, pixels=photo.pixels[..., top : top + edge, left : left + edge])
        sizes = self.transfer.styles.gallery.sizes
        size = min(max(256, sizes[0]), sizes[-1])
        styles = self.transfer.styles.gallery.styles
        looks = {n: replace(options, style_size=size, norm=self.network(n, style_size=size)) for n in styles}
        return [(to_pil(self.transfer.picture(square, n, how)), n) for n, how in looks.items()]


@contextmanager
def told(*files: str | None) -> Iterator[None]:
    """A visitor's errors as messages on the page; ``files`` by their names alone."""
    try:
        yield
    except StyleError as error:
        text = str(error)
        for path in files:
            if path:
                text = text.replace(path, os.path.basename(path))  # noqa: PTH119
        names = [os.path.basename(path) for path in files if path]  # noqa: PTH119
        if not text.startswith(tuple(names)):
            text = text[:1].upper() + text[1:]
        raise gr.Error(text, print_exception=False) from None
    except MemoryError:
        raise gr.Error("This picture is too large for the memory here. Choose a smaller size.") from None


def shown(picture: Picture) -> Image.Image:
    """In 8 bits RGB, on white, as a page can show it."""
    return on_white(to_pil(picture))


def caption(style: BuiltInStyle) -> str:
    """Title, artist and year, as far as they are known."""
    title = style.title.split(" (")[0]
    return f"{title} · {style.artist}, {style.year}" if style.artist else title


def settings_of(options: Options, style: str) -> dict[str, Any]:
    """What is written into a file that is downloaded."""
    said = {k: v for k, v in asdict(options).items() if k not in ("tile", "max_memory")}
    return {"style": style, **said}
