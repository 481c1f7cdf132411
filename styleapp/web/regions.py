"""Styles on parts of the photo, painted with a brush."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from styleapp.errors import OptionError
from styleapp.images import from_pil, on_white
from styleapp.options import Options
from styleapp.pipeline import Region
from styleapp.web.fields import cancels, renders, slider, style_field, upload, variant
from styleapp.web.service import PREVIEW, Service, shown, told

__all__ = ["masks_of", "regions_tab"]

COLOURS = {"red": "#e6194b", "green": "#3cb44b", "blue": "#4363d8", "yellow": "#ffe119"}


def masks_of(strokes: Image.Image) -> list[Image.Image | None]:
    """For each colour of the brush a grey mask of where it was painted, or None.

    Args:
        strokes: RGBA; what is not painted is transparent. Soft edges of a stroke belong to the nearest colour, in
            proportion to how opaque they are.
    """
    pixels = np.asarray(strokes.convert("RGBA")).astype(np.int32)
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS.values()])
    nearest = ((pixels[..., None, :3] - palette) ** 2).sum(-1).argmin(-1)
    masks: list[Image.Image | None] = []
    for k in range(len(palette)):
        mask = np.where(nearest == k, pixels[..., 3], 0).astype(np.uint8)
        masks.append(Image.fromarray(mask) if mask.any() else None)
    return masks


def check_size(path: str, max_pixels: int) -> None:
    """Refuse a picture of more pixels than that.

    Raises:
        gr.Error: with a message for the visitor.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        raise gr.Error("This file is not a picture that can be read.", print_exception=False) from None
    if width * height > max_pixels:
        raise gr.Error(
            f"The picture has {width} × {height} pixels; at most {max_pixels / 1e6:g} megapixels are allowed.",
            print_exception=False,
        )


def regions_tab(service: Service) -> None:
    """Build it inside the current tab."""
    names = [name for _, name in service.choices]

    def decoded(field: gr.ImageEditor, payload: Any) -> Any:
        """As Gradio decodes it, after a look at the header: a small file may hold a huge picture."""
        for part in () if payload is None else (payload.background, payload.composite, *payload.layers):
            if part is not None:
                check_size(part.path, service.transfer.max_pixels)
        return gr.ImageEditor.preprocess(field, payload)

    gr.Markdown("Drop a photo and paint on it: each colour of the brush takes a style of its own.", elem_classes="hint")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            editor = variant(gr.ImageEditor, decoded)(
                label="Photo",
                type="pil",
                format="png",
                brush=gr.Brush(colors=list(COLOURS.values()), default_color=COLOURS["red"], color_mode="fixed"),
                sources=["upload", "clipboard"],
                transforms=(),
                layers=False,
                height=460,
                elem_id="editor",
            )
            result = gr.ImageSlider(
                label="Photo and result", format="png", interactive=False, max_height=460, buttons=["fullscreen"]
            )
            status = gr.Markdown()
        with gr.Column(scale=2, min_width=300):
            fields = []
            for i, colour in enumerate(COLOURS):
                with gr.Group():
                    given = names[i % len(names)] if names else None
                    fields.append(style_field(service, f"Where it is {colour}", value=given))
                    fields.append(slider(0, 1, 1, step=0.05, label="Strength"))
            mask = upload("Or a grey picture as the red mask", 160)
            rest = gr.Dropdown([("the photo", ""), *service.choices], value="", label="The rest")
            feather = slider(0, 60, 8, step=1, label="Softness of the borders, in pixels")
            with gr.Row():
                button = gr.Button("Stylize regions", variant="primary", size="lg", scale=3)
                cancel = gr.Button("Cancel", size="lg", scale=1, min_width=80)

    does = _Handlers(service)
    inputs = [editor, mask, rest, feather, *fields]
    both = [result, status]
    events = renders(service, button, does.render, both, inputs, does.preview, both, show_progress_on=result)
    cancels(service, cancel, *events)


class _Handlers:
    """What the button and the brush do."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def _network(self, chosen: Sequence[Region], rest: str) -> str:
        return self.service.network(*(str(style) for _, style, _ in chosen), *([rest] if rest else []))

    def render(
        self,
        request: gr.Request,
        progress: gr.Progress,
        edited: dict[str, Any] | None,
        mask: str | None,
        rest: str,
        feather: float,
        *fields: Any,
    ) -> tuple[Any, str]:
        if not edited or edited.get("background") is None:
            raise gr.Error("Drop a photo first.", print_exception=False)
        photo = edited["background"]
        chosen = _asked(edited, mask, fields)
        with told():
            if not chosen and not rest:
                raise OptionError("paint on the photo first, or choose a style for the rest")
            options = Options(feather=feather, style_size=self.service.stroke, norm=self._network(chosen, rest))
        told_share: dict[str, Any] = {
            "session": request.session_hash,
            "progress": lambda share: progress(share, desc="Stylizing"),
        }
        with self.service.turn("regions", mask, **told_share) as watch:
            picture = from_pil(on_white(photo), self.service.transfer.max_pixels)
            result = self.service.transfer.picture(picture, rest or None, options, regions=chosen, progress=watch)
        return self.service.pair(photo, shown(result)), f"{photo.width} × {photo.height} px"

    def preview(
        self, edited: dict[str, Any] | None, mask: str | None, rest: str, feather: float, *fields: Any
    ) -> tuple[Any, Any]:
        """At a small size, while one paints."""
        if not edited or edited.get("background") is None:
            return gr.skip(), gr.skip()
        photo, chosen = edited["background"], _asked(edited, mask, fields)
        if not chosen and not rest:
            return gr.skip(), gr.skip()
        scale = min(1.0, PREVIEW / min(photo.size))
        options = Options(
            feather=feather * scale,
            style_size=self.service.stroke,
            size=round(scale * min(photo.size)),
            norm=self._network(chosen, rest),
        )
        with self.service.turn("preview", mask):
            picture = self.service.transfer.fit(from_pil(on_white(photo), self.service.transfer.max_pixels), options)
            result = self.service.transfer.picture(picture, rest or None, options, regions=chosen)
        return self.service.pair(shown(picture), shown(result)), "Preview. Press Stylize regions for the full size."


def _asked(edited: dict[str, Any], mask: str | None, fields: Sequence[Any]) -> list[Region]:
    """The regions that are painted and have a style."""
    layers = edited.get("layers") or []
    masks: list[Any] = masks_of(layers[0]) if layers else [None] * len(COLOURS)
    if mask is not None:
        masks[0] = mask
    return [(m, s, a) for m, s, a in zip(masks, fields[::2], fields[1::2], strict=True) if m is not None and s]
