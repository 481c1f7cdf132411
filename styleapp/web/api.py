"""The endpoints for programs: named, typed, described; see docs/api.md."""

from __future__ import annotations

from collections import deque
from typing import Any

import gradio as gr
from PIL import Image

from styleapp.compare import as_records
from styleapp.options import COLOURS, NORM_EXAMPLES, Options
from styleapp.web.batch import stylize_all
from styleapp.web.compare import compared
from styleapp.web.fields import number, upload
from styleapp.web.service import Service, told

__all__ = ["endpoints"]


class _Endpoints:
    """What each does; Gradio reads names, types and descriptions from here."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def stylize(
        self,
        photo: str | None,
        painting: str | None = None,
        style: str | None = None,
        alpha: float = 1.0,
        style_size: float = 512,
        size: float = 0,
        norm: str = "auto",
        color: str = "none",
        detail: float = 1.0,
        work_size: float = Options.work_size,
    ) -> tuple[Image.Image, str]:
        """Stylize a photo.

        Args:
            photo: image file.
            painting: image file whose style is taken; if None, ``style`` is used.
            style: name of a built-in style, see /styles.
            alpha: strength of the style, 0 to 1.
            style_size: pixels at which the painting is measured: larger means broader strokes.
            size: short side of the result in pixels, 0 for that of the photo.
            norm: auto (cin for paintings, and for styles learned at this style_size; else adain), or what is
                matched: adain, cin, in, adaln, adagn:32, adabn, efdm, wct or ot.
            color: none, luma, coral, histogram or palette.
            detail: how much of the photo's fine texture cin and in see: from 0, broad and smooth strokes, to 1, as
                they were trained.
            work_size: short side that is painted at most: larger photos are reduced for it and the result is enlarged
                again, so that strokes are as broad as on a small photo; 0 for the photo's own, with fine strokes.

        Returns:
            The picture, and a line with its size, the seconds it took and the device.
        """
        with told():
            options = Options(
                alpha=alpha,
                style_size=round(style_size),
                size=round(size),
                norm=norm or "auto",
                color=color or "none",
                detail=detail,
                work_size=round(work_size),
            )
        _, after, line = self.service.stylize(photo, painting or style, options, files=(painting,))
        return after, line

    def mix(self, photo: str | None, weights: dict[str, float], alpha: float, size: float) -> tuple[Image.Image, str]:
        """Stylize a photo with a mix of styles.

        Args:
            photo: image file.
            weights: JSON object of names of built-in styles and their weights, normalised to sum 1.
            alpha: strength of the style, 0 to 1.
            size: short side of the result in pixels, 0 for that of the photo.

        Returns:
            The picture, and a line about it.
        """
        if not isinstance(weights, dict) or not all(isinstance(w, int | float) for w in weights.values()):
            raise gr.Error('weights is a JSON object such as {"great-wave": 0.7, "wheat-field": 0.3}')
        with told():
            self.service.check_names(*weights)
            norm = self.service.network(*weights)
            options = Options(alpha=alpha, size=round(size), style_size=self.service.stroke, norm=norm)
        _, after, line = self.service.stylize(photo, list(weights.items()), options, kind="mix")
        return after, line

    def compare(
        self, photo: str | None, style: str | None, methods: list[str], size: float, painting: str | None = None
    ) -> list[dict[str, Any]]:
        """Stylize a photo by several methods.

        Args:
            photo: image file.
            style: name of a built-in style.
            methods: JSON list of norms, such as ["adain", "cin", "adagn:32"].
            size: short side of the pictures in pixels.
            painting: image file whose style is taken instead, which wct, ot and efdm need.

        Returns:
            For each method its seconds, content loss and style loss, or the reason why there is no result.
        """
        if not isinstance(methods, list):
            raise gr.Error('methods is a JSON list such as ["adain", "cin", "adagn:32"]')
        return as_records(compared(self.service, photo, painting or style, [str(m) for m in methods], size))

    def regions(
        self,
        photo: str | None,
        masks: list[str] | None,
        regions: list[dict[str, Any]],
        rest: str,
        feather: float,
        size: float,
    ) -> tuple[Image.Image, str]:
        """Stylize parts of a photo, each in its own style.

        Args:
            photo: image file.
            masks: grey image files: white takes the style.
            regions: JSON list of one object a mask, such as [{"style": "great-wave", "alpha": 0.8}].
            rest: name of the style of everything else; empty to leave it as it is.
            feather: softness of the borders, in pixels of the result.
            size: short side of the result in pixels, 0 for that of the photo.

        Returns:
            The picture, and a line about it.
        """
        masks = masks or []
        if not isinstance(regions, list) or not all(isinstance(r, dict) and "style" in r for r in regions):
            raise gr.Error('regions is a JSON list such as [{"style": "great-wave", "alpha": 0.8}]')
        strengths = [r.get("alpha", 1) for r in regions]
        if any(isinstance(a, bool) or not isinstance(a, int | float) for a in strengths):
            raise gr.Error(f"alpha of a region is a number from 0 to 1, got {strengths}", print_exception=False)
        if len(regions) != len(masks):
            raise gr.Error(f"regions has {len(regions)} entries for {len(masks)} masks")
        names = [str(r["style"]) for r in regions] + ([rest] if rest else [])
        with told():
            self.service.check_names(*names)
            norm = self.service.network(*names)
            options = Options(feather=feather, size=round(size), style_size=self.service.stroke, norm=norm)
        chosen = [(m, str(r["style"]), a) for m, r, a in zip(masks, regions, strengths, strict=True)]
        _, after, line = self.service.stylize(
            photo, rest or None, options, regions=chosen, kind="regions", files=tuple(masks)
        )
        return after, line

    def batch(
        self, photos: list[str] | None, names: list[str], alpha: float, style_size: float, size: float
    ) -> tuple[str | None, list[str]]:
        """Stylize many photos, each in every style.

        Args:
            photos: up to 200 image files.
            names: JSON list of names of built-in styles.
            alpha: strength of the style, 0 to 1.
            style_size: pixels at which a painting is measured, where the style is not learned.
            size: short side of the results in pixels, 0 for those of the photos.

        Returns:
            A zip of JPEGs, and a line for each photo that failed.
        """
        with told():
            options = Options(alpha=alpha, style_size=round(style_size), size=round(size))
        if not isinstance(names, list):
            raise gr.Error('names is a JSON list such as ["great-wave", "wheat-field"]')
        with told():
            self.service.check_names(*map(str, names))
        (found,) = deque(stylize_all(self.service, photos, names, options), maxlen=1)
        return (str(found.archive) if found.done else None), found.failed

    def styles(self) -> list[dict[str, str]]:
        """The named styles: name, title, artist, year, museum and licence, and whether the CIN network knows it."""
        learned = self.service.transfer.styles.learned_styles
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
            for s in self.service.transfer.styles.gallery.styles.values()
        ]


def endpoints(service: Service) -> None:
    """Add them to the page, without anything to see."""
    does = _Endpoints(service)
    sizes = service.transfer.styles.gallery.sizes
    with gr.Group(visible=False):
        photo, painting = upload("photo"), upload("painting")
        style = gr.Dropdown([name for _, name in service.choices], label="style", value=None)
        alpha = number(gr.Slider, 1.0, "alpha", minimum=0, maximum=1)
        style_size = number(gr.Slider, service.stroke, "style_size", minimum=sizes[0], maximum=sizes[-1])
        size = number(gr.Number, 0, "size")
        norm = gr.Textbox("auto", label="norm", info=", ".join(NORM_EXAMPLES))
        color = gr.Dropdown(COLOURS, value="none", label="color")
        detail = number(gr.Slider, 1.0, "detail", minimum=0, maximum=1)
        work_size = number(gr.Number, Options.work_size, "work_size")
        weights, methods = gr.JSON(label="weights"), gr.JSON(label="methods")
        masks, parts = gr.File(label="masks", file_count="multiple"), gr.JSON(label="regions")
        rest, feather = gr.Textbox("", label="rest"), number(gr.Number, 8, "feather")
        photos, names = gr.File(label="photos", file_count="multiple"), gr.JSON(label="names")
        archive, failures = gr.File(label="results", interactive=False), gr.JSON(label="failures")
        picture, line = gr.Image(format="png", interactive=False), gr.Textbox()
        records = gr.JSON()
        gr.Button().click(
            does.stylize,
            [photo, painting, style, alpha, style_size, size, norm, color, detail, work_size],
            [picture, line],
            api_name="stylize",
            **service.queue,
        )
        gr.Button().click(does.mix, [photo, weights, alpha, size], [picture, line], api_name="mix", **service.queue)
        gr.Button().click(
            does.compare, [photo, style, methods, size, painting], records, api_name="compare", **service.queue
        )
        gr.Button().click(
            does.regions,
            [photo, masks, parts, rest, feather, size],
            [picture, line],
            api_name="regions",
            **service.queue,
        )
        gr.Button().click(
            does.batch, [photos, names, alpha, style_size, size], [archive, failures], api_name="batch", **service.queue
        )
        gr.Button().click(does.styles, None, records, api_name="styles")
