"""A contact sheet of a run: every result small, with its name."""

from __future__ import annotations

import base64
import html
import io
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw, ImageFont

from styleapp.batch.journal import JOURNAL, read_journal
from styleapp.errors import ImageError
from styleapp.files import check_output, check_place, header, save_picture, writing
from styleapp.images import on_white

__all__ = ["contact_sheet"]

SIDE, MARGIN, CAPTION = 160, 10, 20
MOST = 600
"""Pictures on one sheet: beyond that a picture file grows too large for viewers."""


def contact_sheet(journal: Path, target: Path, *, overwrite: bool = False) -> None:
    """Write a grid of the results of a journal, as a picture or, by the suffix .html, as a page in one file.

    Raises:
        ImageError: if there is no result, or ``target`` cannot be written.
        OptionError: for an unknown format.
    """
    records = read_journal(journal / JOURNAL if journal.is_dir() else journal)
    page = target.suffix.lower() == ".html"
    if not page:
        check_output(target, overwrite)
    else:
        check_place(target, overwrite)
    found: list[tuple[str, str, Image.Image]] = []
    for _, record in sorted(records.items()):
        if "seconds" in record and len(found) < MOST:
            output = Path(record["output"])
            small = _thumbnail(output)
            if small is not None:
                found.append((output.name, f"{Path(record['input']).name}, {record['style']}", small))
    if not found:
        raise ImageError(f"{journal}: has no result to show")
    if page:
        _write_page(found, [f"{r['output']}: {r['error']}" for r in records.values() if "error" in r], target)
    else:
        save_picture(_grid([(name, small) for name, _, small in found]), target)


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        with header(path) as image:
            image.thumbnail((SIDE, SIDE))
            return on_white(image)
    except (OSError, ValueError):
        return None  # moved or removed since


def _grid(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    step = SIDE + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * step, MARGIN + rows * (step + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (name, picture) in enumerate(pictures):
        x, y = MARGIN + i % columns * step, MARGIN + i // columns * (step + CAPTION)
        sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        short = name if len(name) <= 26 else f"{name[:12]}…{name[-12:]}"
        draw.text((x + SIDE / 2, y + SIDE + 3), short, fill="#333", font=font, anchor="ma")
    return sheet


def _write_page(found: list[tuple[str, str, Image.Image]], errors: list[str], target: Path) -> None:
    figures = []
    for name, about, picture in found:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
        figures.append(
            f'<figure><img src="{source}" alt="{html.escape(about, quote=True)}">'
            f"<figcaption>{html.escape(name)}<small>{html.escape(about)}</small></figcaption></figure>"
        )
    failed = "".join(f"<li>{html.escape(text)}</li>" for text in errors)
    template = Template(resources.files("styleapp").joinpath("pages/sheet.html").read_text(encoding="utf-8"))
    text = template.substitute(
        count=len(found), figures="".join(figures), failed=f"<h2>Failed</h2><ul>{failed}</ul>" if failed else ""
    )
    with writing(target, len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # names of files may be in no encoding at all
