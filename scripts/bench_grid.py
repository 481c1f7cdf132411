"""How much of the fine detail goes by the pixels' grid, and not by the photo, in what AdaIN, CIN and IN make of photos.

python scripts/bench_grid.py --content eval/content [--every 4] > benchmarks/grid.json

Means over photos and built-in styles (IN: those that have a network), on pictures as they are saved. "grid" is
:func:`styleapp.models.losses.grid_loss` of the whole picture; "shifted" and "turned" are
:func:`styleapp.models.losses.equivariance_loss` of the middle 256 x 256 pixels,
shifted by (3, 4) or turned by 30 degrees.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.evaluate import images
from styleapp.images import Picture, quantized
from styleapp.models.losses import grid_loss
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.training.moves import followed, motion

CROP = 256
MOTIONS = {"shifted": motion(CROP, 0, 3, 4), "turned": motion(CROP, math.radians(30))}


def measured(transfer: StyleTransfer, photo: Picture, style: str, options: Options) -> dict[str, float]:
    def stylize(image: Tensor) -> Tensor:
        return transfer.picture(Picture(quantized(image, torch.uint8)), style, options).rgb

    crop = v2.functional.center_crop(photo.rgb, [CROP, CROP])
    picture = stylize(crop)
    found = {name: followed(crop, picture, moved, stylize).item() for name, moved in MOTIONS.items()}
    return {"grid": grid_loss(transfer.picture(photo, style, options).rgb).item(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="take every so many of the photos")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer()
    options = Options(size=args.size)
    found: dict[str, list[dict[str, float]]] = {"adain": [], "cin": [], "in": []}
    files = images(args.content)[:: args.every]
    photos = []
    for i, file in enumerate(files):
        photo = transfer.fit(file, options)
        photos.append(grid_loss(photo.rgb).item())
        for style in transfer.styles.gallery.styles:
            for norm in ("adain", "cin", *(["in"] if style in transfer.networks.instance_styles else [])):
                found[norm].append(measured(transfer, photo, style, replace(options, norm=norm)))
        print(f"{i + 1} of {len(files)} photos", file=sys.stderr)
    result: dict[str, Any] = {
        "command": f"python scripts/bench_grid.py --content eval/content --every {args.every}",
        "machine": machine(transfer.device),
        "date": time.strftime("%Y-%m-%d"),
        "photos": len(files),
        "styles": len(transfer.styles.gallery.styles),
        "size": args.size,
    }
    for name in ("grid", *MOTIONS):
        result[name] = {norm: round(statistics.mean(row[name] for row in rows), 5) for norm, rows in found.items()}
    result["grid"]["photo"] = round(statistics.mean(photos), 5)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
