"""Two to four styles on the corners of a square, and everything between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from styleapp.images import on_white
from styleapp.options import Options
from styleapp.web.fields import cancels, photo_field, renders, slider, style_field
from styleapp.web.service import Service

__all__ = ["corner_weights", "mix_tab", "mixed"]

STEPS, CELL = 5, 112
CORNERS = ("Top left", "Top right", "Bottom left", "Bottom right")


def corner_weights(x: float, y: float) -> list[float]:
    """Bilinear: of the corners top left, top right, bottom left, bottom right, for x and y from 0 to 1."""
    return [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]


def mixed(styles: Sequence[str | None], x: float, y: float) -> list[tuple[str, float]]:
    """The styles that are in the corners, with weights; where none but empty ones are near, those of just beside."""
    beside = (min(max(t, 1e-3), 1 - 1e-3) for t in (x, y))
    for weights in (corner_weights(x, y), corner_weights(*beside)):
        found = [(style, w) for style, w in zip(styles, weights, strict=True) if style and w > 0]
        if found:
            return found
    return []


def mix_tab(service: Service) -> None:
    """Build it inside the current tab."""
    names = [name for _, name in service.choices]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photo = photo_field()
            corners: list[gr.Dropdown] = []
            for pair in (CORNERS[:2], CORNERS[2:]):
                with gr.Row():
                    for text in pair:
                        given = names[len(corners) % len(names)] if len(corners) < 2 and names else None
                        corners.append(style_field(service, text, value=given, min_width=140))
            gr.Markdown("Leave a corner empty to mix fewer styles.", elem_classes="hint")
            x = slider(0, 1, 0.5, step=0.01, label="Left to right")
            y = slider(0, 1, 0.5, step=0.01, label="Top to bottom")
            with gr.Row():
                button = gr.Button("Mix", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1, min_width=80)
        with gr.Column(scale=3, min_width=320):
            result = gr.ImageSlider(
                label="Photo and mix", format="png", interactive=False, max_height=480, buttons=["fullscreen"]
            )
            status = gr.Markdown("The square below shows all mixes: click anywhere in it.")
            pad = gr.Image(
                label="All mixes",
                format="png",
                interactive=False,
                height=STEPS * CELL + 40,
                buttons=[],
                elem_id="pad",
            )

    def mixture(styles: tuple[str | None, ...], x: float, y: float) -> list[tuple[str, float]]:
        found = mixed(styles, x, y)
        if not found:
            raise gr.Error("Choose at least one style.", print_exception=False)
        return found

    def options_of(styles: tuple[str | None, ...], size: int = 0) -> Options:
        return Options(size=size, style_size=service.stroke, norm=service.network(*filter(None, styles)))

    def render(
        request: gr.Request, progress: gr.Progress, photo: str | None, x: float, y: float, *styles: str | None
    ) -> tuple[Any, str]:
        before, after, line = service.stylize(
            photo,
            mixture(styles, x, y),
            options_of(styles),
            kind="mix",
            session=request.session_hash,
            progress=lambda share: progress(share, desc="Mixing"),
        )
        return service.pair(before, after), line

    def preview(photo: str | None, x: float, y: float, *styles: str | None) -> Any:
        found = service.preview(photo, mixture(styles, x, y), options_of(styles)) if photo else None
        return found or gr.skip()

    # What Gradio puts in by itself comes first: behind *styles it would not find its place.
    def square(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
        photo: str | None = None,
        *styles: str | None,
    ) -> Any:
        if photo is None or not any(styles):
            return gr.skip()
        sheet = Image.new("RGB", (STEPS * CELL, STEPS * CELL))
        for row in range(STEPS):
            for column in range(STEPS):
                _, after, _ = service.stylize(
                    photo,
                    mixture(styles, column / (STEPS - 1), row / (STEPS - 1)),
                    options_of(styles, CELL),
                    kind="mix",
                    session=request.session_hash,
                )
                progress((row * STEPS + column + 1) / STEPS**2, desc="All mixes")
                edge = min(after.size)
                left, top = (after.width - edge) // 2, (after.height - edge) // 2
                cell = on_white(after).crop((left, top, left + edge, top + edge)).resize((CELL, CELL))
                sheet.paste(cell, (column * CELL, row * CELL))
        return sheet

    def point(event: gr.SelectData) -> tuple[float, float]:
        side = STEPS * CELL
        return tuple(round(min(1.0, max(0.0, (v - CELL / 2) / (side - CELL))), 2) for v in event.index)  # type: ignore[return-value]

    private: dict[str, Any] = {"api_visibility": "private"}
    inputs = [photo, x, y, *corners]
    events = renders(service, button, render, [result, status], inputs, preview, [result], show_progress_on=result)
    squares = [
        field.change(square, [photo, *corners], pad, trigger_mode="always_last", **private, **service.queue)
        for field in (photo, *corners)
    ]
    cancels(service, cancel, *events, *squares)
    pad.select(point, None, [x, y], **private)
