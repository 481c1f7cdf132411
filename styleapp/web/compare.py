"""The methods side by side."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from styleapp.compare import Comparison, compare, group_sweep
from styleapp.errors import OptionError
from styleapp.options import Options
from styleapp.web.fields import cancels, photo_field, slider, style_field, upload
from styleapp.web.service import Service

__all__ = ["compare_tab", "compared"]

METHODS = {
    "adain": "AdaIN",
    "cin": "CIN",
    "in": "IN",
    "adaln": "AdaLN",
    "adagn": "AdaGN",
    "efdm": "EFDM",
    "wct": "WCT",
    "ot": "OT",
}


def compared(
    service: Service,
    photo: str | None,
    style: str | None,
    methods: list[str],
    size: float,
    kind: str = "compare",
    **more: Any,
) -> Comparison:
    """One photo, one style, several methods, one after another.

    Args:
        more: ``session`` and ``progress`` of :meth:`Service.turn`.

    Raises:
        gr.Error: for what a visitor can do wrong.
    """
    with service.turn(kind, photo, style, **more) as watch:
        if photo is None:
            raise OptionError("choose a photo first")
        if style is None:
            raise OptionError("choose a style")
        if not methods:
            raise OptionError("choose at least one method")
        options = Options(size=round(size), style_size=service.stroke)
        picture = service.transfer.fit(photo, options)
        found = compare(
            service.transfer, picture, [style], methods, options, progress=lambda done, total: watch(done / total)
        )
    name = Path(style).name  # an upload by its name, not by its place here
    cells = [replace(c, style=name, reason=c.reason.replace(style, name)) for row in found.cells for c in row]
    return replace(found, cells=[cells])


def compare_tab(service: Service) -> None:
    """Build it inside the current tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            photo = photo_field(height=220)
            style = style_field(service)
            with gr.Accordion("Or your own painting", open=False):
                painting = upload("Painting", 180)
            methods = gr.CheckboxGroup(
                [(v, k) for k, v in METHODS.items()], value=["adain", "cin", "in", "adaln", "adagn"], label="Methods"
            )
            groups = slider(0, 9, 5, step=1, label="AdaGN groups, log₂")
            size = slider(128, 512, 256, step=32, label="Size of the pictures")
            gr.Markdown(
                "EFDM, WCT and OT need a painting of your own. AdaGN of 2⁰ groups is layer norm, of 2⁹ instance norm.",
                elem_classes="hint",
            )
            with gr.Row():
                button = gr.Button("Compare", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1, min_width=80)
            sweep = gr.Button("All numbers of groups")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(
                "<p class='hint'>Each method gets the same photo and style. Lay any two results on one another.</p>"
            )

    def frame(found: Comparison) -> str:
        """The page that the command line writes, in a frame of its own."""
        return (
            f'<iframe title="Results side by side" srcdoc="{html.escape(found.page(), quote=True)}" '
            'style="width:100%;height:1180px;border:0" sandbox="allow-scripts"></iframe>'
        )

    def run(
        photo: str | None,
        style: str | None,
        painting: str | None,
        methods: list[str],
        groups: float,
        size: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> str:
        chosen = [f"adagn:{2 ** round(groups)}" if m == "adagn" else m for m in METHODS if m in methods]
        more = {"session": request.session_hash, "progress": lambda share: progress(share, desc="Comparing")}
        return frame(compared(service, photo, painting or style, chosen, size, **more))

    def run_sweep(
        photo: str | None,
        style: str | None,
        painting: str | None,
        size: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        channels = service.transfer.networks.adain.encoder.num_channels
        more = {"session": request.session_hash, "progress": lambda share: progress(share, desc="Comparing")}
        return frame(compared(service, photo, painting or style, group_sweep(channels), size, "sweep", **more))

    private: dict[str, Any] = {"api_visibility": "private"}
    events = [
        button.click(run, [photo, style, painting, methods, groups, size], shown, **private, **service.queue),
        sweep.click(run_sweep, [photo, style, painting, size], shown, **private, **service.queue),
    ]
    cancels(service, cancel, *events)
