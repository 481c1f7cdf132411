"""Many photos at once."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from styleapp.files import save_picture
from styleapp.options import Options
from styleapp.web.fields import cancels, slider, stroke_field, style_field
from styleapp.web.service import Service, told

__all__ = ["MOST", "SoFar", "batch_tab", "stylize_all"]

MOST = 200


@dataclass
class SoFar:
    """Attributes: (path, name) of each result, a line for each failure, how many there will be, and a zip of all."""

    total: int
    archive: Path
    done: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many are done or failed."""
        return len(self.done) + len(self.failed)


def stylize_all(
    service: Service, files: list[str] | None, styles: list[str] | None, options: Options, session: str | None = None
) -> Iterator[SoFar]:
    """Every photo in every style, one after another; what fails does not stop the others.

    Raises:
        gr.Error: for no photos, no styles or too many photos.
    """
    if not files or not styles:
        raise gr.Error("Choose photos and at least one style.", print_exception=False)
    if len(files) > MOST:
        raise gr.Error(f"At most {MOST} photos at once; these are {len(files)}.", print_exception=False)
    folder = service.scratch()
    found = SoFar(len(files) * len(styles), folder / "stylized.zip")
    for file in files:
        for style in styles:
            keep_uploads(files)
            name = f"{found.count + 1:03}-{Path(file).stem[:60]}-{style}.jpg"
            chosen = replace(options, norm=service.network(style, color=options.color, style_size=options.style_size))
            try:
                _, after, _ = service.stylize(file, style, chosen, kind="batch", session=session)
                path = folder / name
                save_picture(after, path)
            except gr.Error as error:
                text, label = str(error.message), Path(file).name
                found.failed.append(text if text.startswith(label) else f"{label}: {text}")
            else:
                found.done.append((str(path), name))
                with zipfile.ZipFile(found.archive, "a", zipfile.ZIP_STORED) as zipped:
                    zipped.write(path, name)
            yield found


def keep_uploads(files: Iterable[str]) -> None:
    """Let the hour for which uploads are kept begin anew: many photos may take longer than that."""
    for file in files:
        with suppress(OSError):
            os.utime(file)


def batch_tab(service: Service) -> None:
    """Build it inside the current tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label=f"Up to {MOST} photos", file_count="multiple", file_types=["image"], height=220)
            styles = style_field(service, "Styles: one result for each", multiselect=True, value=None)
            alpha = slider(0, 1, 1, step=0.05, label="Strength")
            style_size = stroke_field(service)
            size = gr.Number(0, label="Short side of the results (0: as the photos)", precision=0)
            with gr.Row():
                button = gr.Button("Stylize all", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1)
        with gr.Column(scale=3, min_width=320):
            status = gr.Markdown("Results appear here one by one; Cancel keeps what is done.")
            results = gr.Gallery(
                [], label="Results", columns=4, height=520, format="png", object_fit="contain", elem_id="results"
            )
            download = gr.DownloadButton("Download all (zip)", interactive=False)

    def run(
        files: list[str] | None,
        styles: list[str] | None,
        alpha: float,
        style_size: float,
        size: float | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> Iterator[tuple[Any, ...]]:
        with told():
            options = Options(alpha=alpha, style_size=round(style_size), size=round(size or 0))
        for so_far in stylize_all(service, files, styles, options, request.session_hash):
            progress((so_far.count, so_far.total), desc="Stylizing", unit="pictures")
            line = f"{so_far.count} of {so_far.total}" + "".join(f"\n- {text}" for text in so_far.failed)
            ready = gr.DownloadButton(value=str(so_far.archive), interactive=True) if so_far.done else gr.skip()
            yield line, so_far.done, ready

    private: dict[str, Any] = {"api_visibility": "private"}
    event = button.click(
        run, [files, styles, alpha, style_size, size], [status, results, download], show_progress_on=status,
        **private, **service.queue,
    )  # fmt: skip
    cancels(service, cancel, event)
