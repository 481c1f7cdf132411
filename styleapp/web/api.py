"""The endpoints for programs: named, typed, described; see docs/api.md."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from styleapp.compare import as_records
from styleapp.options import COLOURS, NORM_EXAMPLES, Options
from styleapp.web.compare import compared
from styleapp.web.fields import MODEL, upload
from styleapp.web.service import Service, told

__all__ = ["endpoints"]


def endpoints(service: Service) -> None:
    """Add them to the page, without anything to see."""
    sizes = service.transfer.gallery.sizes

    def stylize(
        photo: str | None,
        painting: str | None,
        style: str | None,
        alpha: float,
        style_size: float,
        size: float,
        norm: str,
        color: str,
    ) -> tuple[Image.Image, str]:
        """Stylize a photo.

        Args:
            photo: image file.
            painting: image file whose style is taken; if None, ``style`` is used.
            style: name of a built-in style, see /styles.
            alpha: strength of the style, 0 to 1.
            style_size: pixels at which the painting is measured: larger means broader strokes.
            size: short side of the result in pixels, 0 for that of the photo.
            norm: what of the style is matched: adain, cin, in, adaln, adagn:32, adabn, efdm or wct.
            color: none, luma, coral, histogram or palette.

        Returns:
            The picture, and a line with its size, the seconds it took and the device.
        """
        with told():
            options = Options(
                alpha=alpha, style_size=round(style_size), size=round(size), norm=norm or "adain", color=color or "none"
            )
        _, after, line = service.stylize(photo, painting or style, options, files=(painting,))
        return after, line

    def mix(photo: str | None, weights: dict[str, float], alpha: float, size: float) -> tuple[Image.Image, str]:
        """Stylize a photo with a mix of styles.

        Args:
            photo: image file.
            weights: JSON object of names of built-in styles and their weights, normalised to sum 1.
            alpha: strength of the style, 0 to 1.
            size: short side of the result in pixels, 0 for that of the photo.

        Returns:
            The picture, and a line about it.
        """
        with told():
            options = Options(alpha=alpha, size=round(size), style_size=service.stroke)
        if not isinstance(weights, dict) or not all(isinstance(w, int | float) for w in weights.values()):
            raise gr.Error('weights is a JSON object such as {"great-wave": 0.7, "wheat-field": 0.3}')
        _, after, line = service.stylize(photo, list(weights.items()), options, kind="mix")
        return after, line

    def compare(photo: str | None, style: str | None, methods: list[str], size: float) -> list[dict[str, Any]]:
        """Stylize a photo by several methods.

        Args:
            photo: image file.
            style: name of a built-in style.
            methods: JSON list of norms, such as ["adain", "cin", "adagn:32"].
            size: short side of the pictures in pixels.

        Returns:
            For each method its seconds, content loss and style loss, or the reason why there is no result.
        """
        return as_records(compared(service, photo, style, list(methods or []), size))

    def styles() -> list[dict[str, str]]:
        """The named styles: name, title, artist, year, museum and licence, and whether the CIN network knows it."""
        learned = service.learned
        return [
            {
                "name": s.name,
                "title": s.title,
                "artist": s.artist,
                "year": s.year,
                "museum": s.museum,
                "licence": s.licence,
                "learned": str(s.name in learned).lower(),
            }
            for s in service.transfer.gallery.styles.values()
        ]

    with gr.Group(visible=False):
        photo, painting = upload("photo"), upload("painting")
        style = gr.Dropdown([name for _, name in service.choices], label="style", value=None)
        alpha = gr.Slider(0, 1, 1.0, label="alpha")
        style_size = gr.Slider(sizes[0], sizes[-1], service.stroke, label="style_size")
        size = gr.Number(0, label="size")
        norm = gr.Textbox("adain", label="norm", info=", ".join(NORM_EXAMPLES))
        color = gr.Dropdown(COLOURS, value="none", label="color")
        weights, methods = gr.JSON(label="weights"), gr.JSON(label="methods")
        picture, line = gr.Image(format="png", interactive=False), gr.Textbox()
        records = gr.JSON()
        gr.Button().click(
            stylize,
            [photo, painting, style, alpha, style_size, size, norm, color],
            [picture, line],
            api_name="stylize",
            **MODEL,
        )
        gr.Button().click(mix, [photo, weights, alpha, size], [picture, line], api_name="mix", **MODEL)
        gr.Button().click(compare, [photo, style, methods, size], records, api_name="compare", **MODEL)
        gr.Button().click(styles, None, records, api_name="styles")
