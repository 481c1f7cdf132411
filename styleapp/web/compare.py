"""The methods side by side."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from styleapp.compare import Comparison, compare, group_sweep
from styleapp.errors import OptionError
from styleapp.options import Options
from styleapp.web.fields import MODEL, photo_field, style_field, upload
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
}


def compared(
    service: Service, photo: str | None, style: str | None, methods: list[str], size: float, kind: str = "compare"
) -> Comparison:
    """One photo, one style, several methods, one after another.

    Raises:
        gr.Error: for what a visitor can do wrong.
    """
    with service.turn(kind, photo, style):
        if photo is None:
            raise OptionError("choose a photo first")
        if style is None:
            raise OptionError("choose a style")
        if not methods:
            raise OptionError("choose at least one method")
        options = Options(size=round(size), style_size=service.stroke)
        return compare(service.transfer, service.transfer.fit(photo, options), [style], methods, options)


def compare_tab(service: Service) -> None:
    """Build it inside the current tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            photo = photo_field(height=220)
            style = style_field(service)
            with gr.Accordion("Or your own painting (WCT and EFDM need one)", open=False):
                painting = upload("Painting", 180)
            methods = gr.CheckboxGroup(
                [(v, k) for k, v in METHODS.items()], value=["adain", "cin", "in", "adaln", "adagn"], label="Methods"
            )
            groups = gr.Slider(0, 9, 5, step=1, label="Groups of AdaGN, as a power of two: 0 is layer norm, 9 instance")
            size = gr.Slider(128, 512, 256, step=32, label="Size of the pictures")
            button = gr.Button("Compare", variant="primary", size="lg")
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
        photo: str | None, style: str | None, painting: str | None, methods: list[str], groups: float, size: float
    ) -> str:
        chosen = [f"adagn:{2 ** round(groups)}" if m == "adagn" else m for m in METHODS if m in methods]
        return frame(compared(service, photo, painting or style, chosen, size))

    def run_sweep(photo: str | None, style: str | None, painting: str | None, size: float) -> str:
        channels = service.transfer.stylizer.encoder.num_channels
        return frame(compared(service, photo, painting or style, group_sweep(channels), size, "sweep"))

    private: dict[str, Any] = {"api_visibility": "private"}
    button.click(run, [photo, style, painting, methods, groups, size], shown, **private, **MODEL)
    sweep.click(run_sweep, [photo, style, painting, size], shown, **private, **MODEL)
