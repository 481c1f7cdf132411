"""Write docs/compare.md and its pictures from the shipped weights and benchmarks/compare.json.

    python scripts/compare_doc.py

The text says what the numbers say: where a number decides a sentence, the sentence is chosen here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from styleapp import StyleTransfer
from styleapp.compare import Comparison, compare, group_sweep
from styleapp.files import save_picture
from styleapp.images import to_pil
from styleapp.options import Options

ROOT = Path(__file__).parent.parent
STYLES = ["great-wave", "wheat-field", "the-visit"]


def strip(pictures: list[tuple[str, Image.Image]], side: int = 200) -> Image.Image:
    """Pictures in a row, with their captions."""
    sheet = Image.new("RGB", (len(pictures) * (side + 8) + 8, side + 32), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (text, picture) in enumerate(pictures):
        x = 8 + i * (side + 8)
        sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, 4))
        draw.text((x + side / 2, side + 8), text, fill="#333", font=font, anchor="ma")
    return sheet


def pictures(transfer: StyleTransfer, out: Path) -> Comparison:
    """Everything that the page shows; the sweep over groups is returned."""
    options = Options(size=384)
    photo = transfer.fit(ROOT / "examples" / "astronaut.jpg", options)
    methods = ["adain", "cin", "in", "adaln", "adagn:32"]
    save_picture(compare(transfer, photo, STYLES, methods, options).grid(), out / "compare.jpg", quality=88)
    sweep = compare(transfer, photo, STYLES[:1], group_sweep(transfer.networks.adain.encoder.num_channels), options)
    save_picture(sweep.grid(180, bars=True), out / "compare_groups.jpg", quality=88)
    for norm in ("adain", "cin"):
        chosen = Options(size=384, norm=norm)
        mixes = [
            (f"{w:g}", to_pil(transfer.picture(photo, {STYLES[0]: 1 - w, STYLES[2]: w}, chosen)))
            for w in (0, 0.25, 0.5, 0.75, 1)
        ]
        strengths = [
            (f"alpha {a:g}", to_pil(transfer.picture(photo, STYLES[1], Options(size=384, norm=norm, alpha=a))))
            for a in (0, 0.25, 0.5, 0.75, 1)
        ]
        save_picture(strip(mixes), out / f"compare_mix_{norm}.jpg", quality=88)
        save_picture(strip(strengths), out / f"compare_alpha_{norm}.jpg", quality=88)
    return sweep


def widths() -> str:
    """Of the decoders of the three methods, as shipped."""
    files = json.loads(Path("weights/manifest.json").read_text(encoding="utf-8"))["files"]
    names = {"adain_decoder": "AdaIN", "cin": "CIN", "in_great-wave": "IN"}
    return ", ".join(f"{files[file]['config']['width']:g} ({method})" for file, method in names.items())


def load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def mean(d: dict[str, Any], method: str, key: str) -> str:
    return f"{d['means'][method][key]:.2f}" if method in d["means"] else "-"


def page(d: dict[str, Any], sweep: Comparison) -> str:
    """The text."""
    p, seconds, styles = d["parameters"], d["seconds"], len(d["styles"])
    trained = {
        "adain": "any painting, measured",
        "cin": f"{styles} in one network, and any painting, predicted or learned",
        "in": "one each",
    }
    names = {"adain": "AdaIN", "cin": "CIN", "in": "IN"}
    rows = "".join(
        f"| {names[m]} | {trained[m]} | {mean(d, m, 'content')} | {mean(d, m, 'style')} | {seconds[m]:.2f} s | "
        f"{p[m]['decoder'] / 1e6:.2f} million | {p[m]['style']:,} | {p[m]['bytes_per_pixel']} |\n"
        for m in names
        if p.get(m)
    )
    three = [s for s, found in d["styles"].items() if "in" in found]
    pairs = "".join(
        f"| {s} | "
        + " | ".join(f"{d['styles'][s][m]['content']:.2f} / {d['styles'][s][m]['style']:.2f}" for m in names)
        + " |\n"
        for s in three
    )
    below = d["cin_below_adain"]
    losses = [(cell.method.partition(":")[2], cell.style_loss or 0.0) for cell in sweep.cells[0]]
    unseen = "".join(
        f"| {names[m]} | {row['content_loss']:.2f} | {row['style_loss']:.2f} | "
        + " / ".join(f"{median(loss):.2f}" for loss in zip(*row["by_painting"].values(), strict=True))
        + " |\n"
        for m, row in (("adain", load("evaluate")[1]), ("cin", load("evaluate_cin")[1]))
    )
    line = ", ".join(f"{g}: {value:.2f}" for g, value in losses)
    falls = all(b[1] <= a[1] + 1e-9 for a, b in pairwise(losses))
    return f"""# IN, CIN and AdaIN compared

Made by `python scripts/compare_doc.py` from the shipped weights and [benchmarks/compare.json](../benchmarks/compare.json)
(`{d["command"]}`). The networks are provisional ([model cards](../weights/README.md)): decoders with {widths()} of the paper's channels.

![Three styles by five methods](images/compare.jpg)

All three are `y = γ · (x - μ) / sqrt(σ² + ε) + β` with μ and σ of each channel of the photo. They differ in where γ and β come from, and in how many
layers there are of them:

- **IN** (Ulyanov et al. 2017): one vector, learned. One style a network.
- **CIN** (Dumoulin et al. 2017): one row of a table for each style, learned; here at relu4_1 and after each hidden convolution of the decoder.
  One row of it is an IN network, which the tests prove.
- **AdaIN** (Huang and Belongie 2017): measured from the painting, before the decoder: at relu4_1 as in the paper, and at relu1_1 to relu3_1 on the way to it. Any painting, no training. What the decoder is told besides is learned for the built-in styles and refined for others.

| | styles | content loss | style loss | time, {d["size"]} px | decoder | numbers a style | memory, bytes a pixel (planned) |
|---|---|---|---|---|---|---|---|
{rows}
Means over {d["photos"]} photos that no training saw and the {styles} paintings (IN: its {len(three)}), {d["precision"]}; times on {d["machine"]["threads"]} cores of an {d["machine"]["device"]} ({d["machine"]["instructions"]}).
CIN's style loss is below AdaIN's for {below["style"]} of the {styles} paintings, and its content loss for {below["content"]} of them.

For the paintings that have all three, content loss / style loss:

| | AdaIN | CIN | IN |
|---|---|---|---|
{pairs}
What one sees: AdaIN brings over contrasts, some strokes and, since what its decoder is told is learned or refined ([architecture](architecture.md)), the colours; but outlines fray and small faces are smeared, because
no norm corrects what comes after it. CIN and IN have learned palettes and outlines: the Great Wave's cream and blue, the Visit's yellow, red and blue. The decoders
differ in more than their norms: all see the photo's fine detail too, those of CIN and IN features of relu1_1 and relu2_1 as they are, before a norm, AdaIN's those of relu1_1 to relu3_1 with the painting's moments
([architecture](architecture.md)), where the paper's knows relu4_1 alone. All three upsample bilinearly, where the paper has nearest neighbours, behind which a decoder that has seen few steps draws a grain of dots
and dashes, and were trained against detail that does not follow the photo (benchmarks/grid.json). These paintings were among those that AdaIN's decoder
was trained on; what it does with others, `styleapp evaluate` measures ([model card](../weights/README.md)).

## Paintings that no training saw

CIN has no row for a painting that somebody has just uploaded. Its code is predicted: measured on what the decoder makes of the painting, corrected by two small layers that
were trained with the network, tried on a small photo, and corrected once more by what shows there (`CodePredictor`; Ghiasi et al. 2017, Marino et al. 2018). Then sixteen gradient
steps refine it on the same small photo, as `styleapp learn` would with more of them (`--refine`). AdaIN measures (γ, β) at relu1_1 to relu4_1, and the same steps
refine what its decoder is told besides.

| 17 paintings, 20 photos | content loss | style loss | medians over the paintings |
|---|---|---|---|
{unseen}
(`styleapp evaluate --content eval/content --style eval/style`, and `--norm cin`.)

## When to take which

- **CIN** for pictures: what it paints is closer to the painting, with a learned code and, without one, with a predicted one; mixing and strength work in the same way. Truer
  still is a code of its own, `styleapp learn painting.jpg --name mine`: minutes on two cores, and the others stay as they are to the last bit. The norms inside the decoder cost time (the
  first table) and more passes when a photo is tiled.
- **AdaIN** for very large photos (two passes in tiles, not ten) and, with `--refine 0`, where a painting's code shall be there at once.
- **IN** where there is one style for good and nothing else is wanted: its rows are not shared with anything.

## Which axis?

Group norm from one group, which is layer norm, to as many as there are channels, which is instance norm:

![Group norm with 1 to 512 groups](images/compare_groups.jpg)

Style loss by the number of groups ({sweep.cells[0][0].style}): {line}. {"It falls with every step: the more channels have statistics of their own, the more of the painting comes over." if falls else "It falls on the whole, though not at every step: the more channels have statistics of their own, the more of the painting comes over."}

## Strength and mixing

A code is a point, a mix the way between two styles. Strength is with AdaIN the way from the photo's own code to the style's, with CIN the share of the finished picture. At the ends it is each style, or the photo, exactly.

AdaIN, wheat-field:
![Strength of AdaIN](images/compare_alpha_adain.jpg)
CIN, wheat-field:
![Strength of CIN](images/compare_alpha_cin.jpg)
AdaIN, great-wave to the-visit:
![Mixes of AdaIN](images/compare_mix_adain.jpg)
CIN, great-wave to the-visit:
![Mixes of CIN](images/compare_mix_cin.jpg)

## By yourself

    styleapp compare photo.jpg --style great-wave --style painting.jpg -o grid.png --html page.html
    styleapp compare photo.jpg --style great-wave --sweep groups -o groups.png
    styleapp weights import candy.pth && styleapp compare photo.jpg --style candy --methods in

The page has a slider between any two pictures. WCT, OT and EFDM need the painting itself, so give a file.
"""


NAMES = {"none": "none", "bn": "batch norm", "in": "instance norm", "ln": "layer norm", "gn": "group norm (8 groups)",
         "switchable": "switchable norm"}  # fmt: skip


def ablation(d: dict[str, Any]) -> str:
    """The section on norms inside the decoder."""
    training, rows = d["training"], d["decoders"]
    none = rows["none"]

    def last_quarter(row: dict[str, Any]) -> float:
        points = row["curve"][-len(row["curve"]) // 4 :]
        return sum(style for _, _, style in points) / len(points)

    table = "".join(
        f"| {NAMES[norm]} | {last_quarter(r):.1f} | {r['content_loss']:.2f} | {r['style_loss']:.2f} | "
        f"{r['identity_psnr']:.1f} dB |\n"
        for norm, r in rows.items()
    )

    def listed(better: bool, loss: Callable[[dict[str, Any]], float]) -> str:
        found = [NAMES[n] for n, r in rows.items() if n != "none" and (loss(r) < loss(none)) == better]
        return ", ".join(found) or "none of the others"

    pictures = training["batch_size"] * training["pairs"]
    return f"""
## Norms inside the decoder

Figures 4 to 6 of the AdaIN paper, repeated small: {len(rows)} decoders of width {training["width"]:g}, alike but for the norm after each hidden convolution, with the same
photos, paintings, seed and {training["steps"]:,} steps of {pictures} pictures at {training["size"]} px (the paper: batches of 8 at 256 px, full width, far longer), so the pictures are rough.
Losses in the last quarter of the training, and on {d["photos"]} photos and {d["paintings"]} paintings that no training saw, {d["size"]} px
(`{d["command"]}`; the unchanged photo has content {d["unchanged"]["content_loss"]:.2f} and style {d["unchanged"]["style_loss"]:.2f}):

| norm in the decoder | style loss in training | content loss | style loss | the photo back at strength 0 |
|---|---|---|---|---|
{table}
In training, the style loss without a norm is below that with {listed(False, last_quarter)}. On new pictures it is below that with
{listed(False, lambda r: r["style_loss"])}; {listed(True, lambda r: r["style_loss"])} came out lower there{" (batch norm then uses the statistics of the whole training, not of one picture)" if rows["bn"]["style_loss"] < none["style_loss"] else ""}.
With instance norm it is {rows["in"]["style_loss"] / none["style_loss"]:.1f} times that without, and the grid shows why: the two styles give nearly the same picture. AdaIN has just set the moments
of each channel to the style's, and a norm that looks at one picture takes them off again. That is what the paper found for instance norm (section 7.1).

![Losses over the training](images/ablation_curves.png)
![The same photo in two styles by each](images/ablation.jpg)

The decoders are shipped (under 1 MB each): `styleapp compare photo.jpg --style great-wave --sweep decoders`, or `--norm decoder:bn` anywhere.
"""


def main() -> None:
    transfer = StyleTransfer()
    sweep = pictures(transfer, ROOT / "docs" / "images")
    d = json.loads((ROOT / "benchmarks" / "compare.json").read_text(encoding="utf-8"))
    text = page(d, sweep)
    if (measured := ROOT / "benchmarks" / "ablation.json").exists():
        before, heading, after = text.partition("\n## By yourself")
        text = before + ablation(json.loads(measured.read_text(encoding="utf-8"))) + heading + after
    (ROOT / "docs" / "compare.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
