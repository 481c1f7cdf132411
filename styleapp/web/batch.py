"""Many photos at once."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from styleapp.files import save_picture
from styleapp.options import Options
from styleapp.web.fields import MODEL, stroke_field, style_field
from styleapp.web.service import Service

__all__ = ["MOST", "batch_tab"]

MOST = 200


def batch_tab(service: Service) -> None:
    """Build it inside the current tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label=f"Up to {MOST} photos", file_count="multiple", file_types=["image"], height=220)
            styles = style_field(service, "Styles: one result for each", multiselect=True, value=None)
            alpha = gr.Slider(0, 1, 1, step=0.05, label="Strength")
            style_size = stroke_field(service)
            size = gr.Number(0, label="Short side of the results (0: as the photos)", precision=0)
            with gr.Row():
                button = gr.Button("Stylize all", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1)
        with gr.Column(scale=3, min_width=320):
            status = gr.Markdown("Results appear here one by one; Cancel keeps what is done.")
            results = gr.Gallery([], label="Results", columns=4, height=520, format="png", object_fit="contain")
            download = gr.DownloadButton("Download all (zip)", interactive=False)

    def run(
        files: list[str] | None, styles: list[str] | None, alpha: float, style_size: float, size: float | None
    ) -> Iterator[tuple[Any, ...]]:
        if not files or not styles:
            raise gr.Error("Choose photos and at least one style.", print_exception=False)
        if len(files) > MOST:
            raise gr.Error(f"At most {MOST} photos at once; these are {len(files)}.", print_exception=False)
        options = Options(alpha=alpha, style_size=round(style_size), size=round(size or 0))
        folder = service.scratch()
        archive = folder / "stylized.zip"
        shown: list[tuple[str, str]] = []
        failed: list[str] = []
        total = len(files) * len(styles)
        for file in files:
            for style in styles:
                name = f"{len(shown) + len(failed) + 1:03}-{Path(file).stem[:60]}-{style}.jpg"
                try:
                    _, after, _ = service.stylize(file, style, options, kind="batch")
                    path = folder / name
                    save_picture(after, path)
                except gr.Error as error:
                    failed.append(f"{Path(file).name}: {error.message}")
                else:
                    shown.append((str(path), name))
                    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as zipped:
                        zipped.write(path, name)
                line = f"{len(shown) + len(failed)} of {total}" + "".join(f"\n- {text}" for text in failed)
                ready = gr.DownloadButton(value=str(archive), interactive=True) if shown else gr.skip()
                yield line, shown, ready

    private: dict[str, Any] = {"api_visibility": "private"}
    event = button.click(
        run, [files, styles, alpha, style_size, size], [status, results, download], show_progress_on=status,
        **private, **MODEL,
    )  # fmt: skip
    cancel.click(None, cancels=[event], **private)
