"""Stylize the bundled photos with several built-in styles: pictures and one grid in out/."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from styleapp import StyleTransfer
from styleapp.compare import compare
from styleapp.files import save_picture
from styleapp.options import Options
from styleapp.process import tune_process

ROOT = Path(__file__).parent.parent
STYLES = ("great-wave", "wheat-field", "pink-cloud", "the-visit", "two-poplars", "bewitched-mill")
COMPARED = ("great-wave", "wheat-field", "the-visit")


def grid(rows: list[list[tuple[str, Image.Image]]], side: int = 256) -> Image.Image:
    """Captioned thumbnails, one row of pictures a photo."""
    margin, caption = 8, 24
    sheet = Image.new(
        "RGB",
        (margin + len(rows[0]) * (side + margin), len(rows) * (side + caption + margin) + margin),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for y, row in enumerate(rows):
        for x, (text, picture) in enumerate(row):
            left, top = margin + x * (side + margin), margin + y * (side + caption + margin)
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
            draw.text((left + side / 2, top + side + 4), text, fill="#333", font=font, anchor="ma")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tune_process()
    transfer = StyleTransfer()
    rows = []
    for photo in sorted((ROOT / "examples").glob("*.jpg")):
        row = [("photo", Image.open(photo))]
        for style in STYLES:
            start = time.perf_counter()
            picture = transfer.stylize(photo, style)
            path = args.out / f"{photo.stem}-{style}.jpg"
            save_picture(picture, path)
            row.append((style, picture))
            print(f"{path}  {time.perf_counter() - start:.2f} s")
        rows.append(row)
    save_picture(grid(rows), args.out / "grid.jpg")
    print(f"{args.out / 'grid.jpg'}: all of them side by side")

    photo = transfer.fit(ROOT / "examples" / "astronaut.jpg", Options(size=384))
    found = compare(transfer, photo, COMPARED, ["adain", "cin", "in", "adaln", "adagn:32"], Options(size=384))
    save_picture(found.grid(), args.out / "compare.jpg")
    print(f"{args.out / 'compare.jpg'}: three styles by five methods")


if __name__ == "__main__":
    main()
