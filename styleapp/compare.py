"""The same photo in the same styles by several methods, side by side, with times and losses."""

from __future__ import annotations

import base64
import html
import io
import json
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from styleapp.errors import ImageError, OptionError
from styleapp.images import Picture, filled, on_white, to_pil
from styleapp.models import StyleCode, code_from_moments
from styleapp.models.losses import content_loss, style_loss
from styleapp.norms import moments
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

__all__ = ["METHODS", "Cell", "Comparison", "as_records", "compare", "decoder_sweep", "group_sweep"]

METHODS = ("adain", "cin", "in", "adaln", "adagn:32", "adabn", "efdm", "wct", "ot")
"""What is compared if nothing is asked for; each is a ``norm`` of :class:`styleapp.options.Options`."""


@dataclass(frozen=True)
class Cell:
    """One method on one style.

    Attributes:
        picture: the result; None where the method does not exist for this style.
        seconds: of stylizing, without reading and measuring the style.
        content_loss, style_loss: as in training (:mod:`styleapp.models.losses`); None where the style's moments
            are not known at every layer.
        reason: why there is no picture.
    """

    style: str
    method: str
    picture: Image.Image | None
    seconds: float | None = None
    content_loss: float | None = None
    style_loss: float | None = None
    reason: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {k: v for k, v in asdict(replace(self, picture=None)).items() if k != "picture"}

    @property
    def caption(self) -> str:
        """The numbers, or why there are none."""
        if self.picture is None:
            return self.reason
        losses = "" if self.style_loss is None else f"  content {self.content_loss:.2f}  style {self.style_loss:.2f}"
        return f"{self.seconds:.2f} s{losses}"


@dataclass(frozen=True)
class Comparison:
    """Rows of styles, columns of methods.

    Attributes:
        photo: as it was stylized.
        paintings: a thumbnail of each style, None for a built-in one, whose painting is not shipped.
        titles: of the styles.
        cells: one row a style, one cell a method.
    """

    photo: Image.Image
    paintings: list[Image.Image | None]
    titles: list[str]
    cells: list[list[Cell]]

    def grid(self, side: int = 256, *, bars: bool = False) -> Image.Image:
        """A labelled sheet: photo, style and the methods. With ``bars`` the style loss as a bar under each picture."""
        return _sheet(self, side, bars)

    def page(self) -> str:
        """One HTML file that needs nothing else, with a slider between any two of the pictures."""
        return _page(self)


def group_sweep(num_channels: int) -> list[str]:
    """Group norm from one group, which is layer norm, over the powers of two to C groups, which is instance norm."""
    groups, found = 1, []
    while groups <= num_channels:
        if num_channels % groups == 0:
            found.append(f"adagn:{groups}")
        groups *= 2
    return found


def decoder_sweep(transfer: StyleTransfer) -> list[str]:
    """AdaIN with each of the small decoders, which differ only in the norm inside (Huang and Belongie 2017, 7.1)."""
    return [f"decoder:{norm}" for norm in transfer.networks.ablation_norms]


@torch.inference_mode()
def compare(
    transfer: StyleTransfer,
    photo: Picture,
    styles: Sequence[str],
    methods: Sequence[str] = METHODS,
    options: Options | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Stylize ``photo``, of final size, by every method in every style.

    A method that a style does not have (no network, no painting to look at) is a cell that says why. A ``detail`` other
    than 1 is for cin and in, which alone see it.

    Raises:
        OptionError: for an unknown style or method.
        ImageError: for a painting that cannot be used.
    """
    options = options or Options()
    for method in methods:
        replace(options, norm=method)  # an unknown one is told before anything is done
    image = filled(photo).rgb.to(transfer.device, memory_format=torch.channels_last)
    network = transfer.networks.adain
    features = network.encoder(image)
    transfer.picture(photo, network.measure(image), replace(options, norm="adain", detail=1.0))  # the first is slower
    rows = []
    for i, style in enumerate(styles):
        wanted = transfer.styles.layer_codes(style, options.style_size)
        row = []
        for j, method in enumerate(methods):
            detail = options.detail if method in ("cin", "in") else 1.0
            row.append(_cell(transfer, photo, features, style, wanted, replace(options, norm=method, detail=detail)))
            progress(i * len(methods) + j + 1, len(styles) * len(methods))
        rows.append(row)
    return Comparison(
        on_white(to_pil(photo)),
        [transfer.styles.painting(style) for style in styles],
        [transfer.styles.title(style) for style in styles],
        rows,
    )


def _cell(
    transfer: StyleTransfer,
    photo: Picture,
    features: Tensor,
    style: str,
    wanted: list[StyleCode] | None,
    options: Options,
) -> Cell:
    try:
        prepared = transfer.prepare(style, options)
        start = time.perf_counter()
        result = transfer.picture(photo, prepared, options)
        if transfer.device.type == "cuda":
            torch.cuda.synchronize(transfer.device)
        seconds = time.perf_counter() - start
    except (OptionError, ImageError) as error:
        return Cell(style, options.norm, None, reason=str(error))
    losses: tuple[float, float] | tuple[None, None] = (None, None)
    if wanted is not None:
        network = transfer.networks.adain
        found = network.encoder.features(result.rgb.to(features.device, memory_format=torch.channels_last))
        target = network.apply_code(features, wanted[-1])
        codes = [code_from_moments(moments(f)) for f in found]
        losses = (float(content_loss(found[-1], target)), float(style_loss(codes, wanted)))
    return Cell(style, options.norm, on_white(to_pil(result)), seconds, *losses)


# As a picture


def _sheet(c: Comparison, side: int, bars: bool) -> Image.Image:
    margin, head, foot = 10, 28, 64 if bars else 40
    methods = [cell.method for cell in c.cells[0]]
    width = margin + (2 + len(methods)) * (side + margin)
    sheet = Image.new("RGB", (width, head + len(c.cells) * (side + foot + margin) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    most = max((cell.style_loss or 0 for row in c.cells for cell in row), default=0) or 1

    def left(column: int) -> int:
        return margin + column * (side + margin)

    for column, text in enumerate(["photo", "style", *methods]):
        draw.text((left(column) + side / 2, 7), text, fill="#111", font=large, anchor="ma")
    for y, (row, painting, title) in enumerate(zip(c.cells, c.paintings, c.titles, strict=True)):
        top = head + y * (side + foot + margin)
        sheet.paste(_square(c.photo, side), (left(0), top))
        if painting is None:
            _text_tile(draw, (left(1), top), side, title, large)
        else:
            sheet.paste(_square(painting, side), (left(1), top))
            _text(draw, (left(1), top + side + 4), side, title, small)
        for x, cell in enumerate(row):
            at = (left(2 + x), top)
            if cell.picture is None:
                _text_tile(draw, at, side, cell.reason, small)
                continue
            sheet.paste(_square(cell.picture, side), at)
            _text(draw, (at[0], top + side + 4), side, cell.caption, small)
            if bars and cell.style_loss is not None:
                length = round(side * cell.style_loss / most)
                draw.rectangle((at[0], top + side + 44, at[0] + length, top + side + 54), fill="#4466aa")
    return sheet


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture."""
    edge = min(picture.size)
    x, y = (picture.width - edge) // 2, (picture.height - edge) // 2
    middle = picture.convert("RGB").crop((x, y, x + edge, y + edge))
    return middle.resize((side, side), Image.Resampling.LANCZOS)


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, text: str, font: Any, lines: int = 2) -> None:
    """Text in lines no wider than ``width``, at most so many of them."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            found[-1] = longer
        else:
            found.append(word)
    draw.multiline_text(at, "\n".join(found[:lines]), fill="#333", font=font)


def _text_tile(draw: ImageDraw.ImageDraw, at: tuple[int, int], side: int, text: str, font: Any) -> None:
    draw.rectangle((at[0], at[1], at[0] + side - 1, at[1] + side - 1), fill="#f1efe9")
    _text(draw, (at[0] + 14, at[1] + side // 4), side - 28, text, font, lines=side // 30)


# As a page


def _page(c: Comparison) -> str:
    pictures: list[dict[str, str]] = []

    def add(picture: Image.Image, name: str, note: str, shown: str) -> str:
        data = io.BytesIO()
        picture.convert("RGB").save(data, "JPEG", quality=90)
        source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
        pictures.append({"name": name, "note": note, "src": source})
        number = len(pictures) - 1
        label = html.escape(f"{name}. {note}", quote=True)
        return (
            f'<button class="tile" data-i="{number}" aria-label="{label}">'
            f'<span class="view"><img src="{source}" alt="{label}"></span>'
            f"<b>{html.escape(name)}</b><small>{html.escape(shown)}</small></button>"
        )

    photo = add(c.photo, "photo", "", "")
    rows: list[str] = []
    for row, painting, title in zip(c.cells, c.paintings, c.titles, strict=True):
        tiles = [photo if not rows else ""]
        if painting is not None:
            tiles.append(add(painting, "style", title, ""))
        for cell in row:
            if cell.picture is None:
                tiles.append(
                    f'<div class="tile none"><b>{html.escape(cell.method)}</b>'
                    f"<small>{html.escape(cell.reason)}</small></div>"
                )
            else:
                numbers = cell.caption.replace("  ", " · ")
                tiles.append(add(cell.picture, cell.method, f"{title.partition(':')[0]} · {numbers}", numbers))
        rows.append(f'<h2>{html.escape(title)}</h2><div class="row">{"".join(tiles)}</div>')
    template = resources.files("styleapp").joinpath("pages/compare.html").read_text(encoding="utf-8")
    data = json.dumps(pictures).replace("</", "<\\/")
    return string.Template(template).substitute(rows="".join(rows), data=data)


def as_records(c: Comparison) -> list[dict[str, Any]]:
    """What ``--json`` prints: one record a cell."""
    return [cell.about for row in c.cells for cell in row]
