"""The web page: a photo, a painting, a stylized photo.

One model in memory, one rendering at a time; the handlers hold nothing of a visitor.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import gradio as gr
from PIL import Image

from styleapp.errors import OptionError, StyleError
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.weights import BuiltInStyle

__all__ = ["build", "launch"]

_CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
#title h1 { font-weight: 600; letter-spacing: -0.02em; margin-bottom: 0; }
#status { min-height: 1.6em; opacity: 0.75; }
footer { display: none !important; }
"""


def build(transfer: StyleTransfer) -> gr.Blocks:
    """The page and its one named endpoint, ``/stylize``."""
    lock = threading.Lock()  # direct API calls do not pass through the queue
    defaults = Options()
    sizes = transfer.gallery.sizes
    stroke = min(max(defaults.style_size, sizes[0]), sizes[-1])
    choices = [(_caption(style), name) for name, style in transfer.gallery.styles.items()]

    def stylize(
        photo: str | None, painting: str | None, style: str | None, alpha: float, style_size: float, size: float
    ) -> tuple[Image.Image, str]:
        """Stylize a photo.

        Args:
            photo: image file.
            painting: image file whose style is taken; if None, ``style`` is used.
            style: name of a built-in style.
            alpha: strength of the style, 0 to 1.
            style_size: pixels at which the painting is measured: larger means broader strokes.
            size: short side of the result in pixels, 0 for that of the photo.

        Returns:
            The picture, and a line with its size, the seconds it took and the device.
        """
        try:
            if photo is None:
                raise OptionError("Choose a photo first.")
            if painting is None and style is None:
                raise OptionError("Choose a painting or one of the built-in styles.")
            with lock:
                start = time.perf_counter()
                picture = transfer.stylize(
                    photo, painting or style or "", alpha=alpha, style_size=round(style_size), size=round(size)
                )
                seconds = time.perf_counter() - start
        except StyleError as error:
            # The file's place on this machine is nothing to show a visitor.
            text = str(error)
            for path in (photo, painting):
                if path:
                    text = text.replace(path, os.path.basename(path))  # noqa: PTH119
            raise gr.Error(text, print_exception=False) from None
        device = f"{transfer.device}, {transfer.precision}"
        return picture, f"{picture.width} × {picture.height} px in {seconds:.2f} s ({device})"

    with gr.Blocks(title="StyleApp", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# StyleApp\nYour photo, in the style of a painting.", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                photo = _upload("Photo")
                style = gr.Dropdown(choices, value=choices[0][1] if choices else None, label="Built-in style")
                with gr.Accordion("Or your own painting", open=False):
                    painting = _upload("Painting")
                alpha = gr.Slider(0, 1, defaults.alpha, step=0.05, label="Strength")
                style_size = gr.Slider(sizes[0], sizes[-1], stroke, step=1, label="Stroke size")
                size = gr.Number(defaults.size, label="Short side of the result (0: as the photo)", precision=0)
                button = gr.Button("Stylize", variant="primary", size="lg")
            with gr.Column(scale=3, min_width=320):
                result = gr.Image(
                    label="Result", format="png", interactive=False, height=520, buttons=["download", "fullscreen"]
                )
                status = gr.Markdown(elem_id="status")
        button.click(
            stylize,
            [photo, painting, style, alpha, style_size, size],
            [result, status],
            api_name="stylize",
            concurrency_id="model",
            concurrency_limit=1,
        )
    return page.queue(max_size=32)


def launch(
    transfer: StyleTransfer, *, host: str = "127.0.0.1", port: int = 7860, max_upload: str = "20mb", **more: Any
) -> Any:
    """Serve the page. ``port`` 0 takes a free one; ``more`` goes to gradio's ``launch``."""
    return build(transfer).launch(
        server_name=host,
        server_port=port or None,
        max_file_size=max_upload,
        share=False,
        footer_links=[],
        run_history=False,
        theme=gr.themes.Base(
            primary_hue="orange",
            neutral_hue="stone",
            radius_size="lg",
            font=["system-ui", "sans-serif"],
            font_mono=["monospace"],
        ),
        css=_CSS,
        **more,
    )


def _upload(label: str) -> gr.Image:
    """An image field that hands over the uploaded file as it is.

    Gradio's own decodes it first: without a limit on pixels, in 8 bits, and with errors that show the
    file's place on this machine. (No subclass: Gradio writes a stub beside the source of each.)
    """
    field = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=240)
    field.preprocess = _as_uploaded
    return field


def _as_uploaded(payload: Any) -> str | None:
    if payload is None:
        return None
    if not payload.path:  # an image inlined in the request as a data: URL
        raise gr.Error("Send the image as an uploaded file.", print_exception=False)
    return str(payload.path)


def _caption(style: BuiltInStyle) -> str:
    return f"{style.title.split(' (')[0]} · {style.artist}, {style.year}"
