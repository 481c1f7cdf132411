"""How much of the fine detail repeats on the grid of 8x8 pixels, in photos and in what AdaIN, CIN and IN make of them.

python scripts/bench_grid.py --content eval/content [--every 4] > benchmarks/grid.json

Means of :func:`styleapp.models.losses.grid_loss` over photos and built-in styles (IN: those that have a network), on
the picture as it is saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.evaluate import images
from styleapp.images import Picture
from styleapp.models.losses import grid_loss
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer


def grid(picture: Picture) -> float:
    return float(grid_loss(picture.rgb))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="take every so many of the photos")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer()
    options = Options(size=args.size)
    found: dict[str, list[float]] = {"photo": [], "adain": [], "cin": [], "in": []}
    files = images(args.content)[:: args.every]
    for i, file in enumerate(files):
        photo = transfer.fit(file, options)
        found["photo"].append(grid(photo))
        for style in transfer.gallery.styles:
            for norm in ("adain", "cin", *(["in"] if style in transfer.instance_styles else [])):
                found[norm].append(grid(transfer.picture(photo, style, replace(options, norm=norm))))
        print(f"{i + 1} of {len(files)} photos", file=sys.stderr)
    result = {
        "command": f"python scripts/bench_grid.py --content eval/content --every {args.every}",
        "machine": machine(transfer.device),
        "date": time.strftime("%Y-%m-%d"),
        "photos": len(files),
        "styles": len(transfer.gallery.styles),
        "size": args.size,
        "grid": {name: round(statistics.mean(values), 5) for name, values in found.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
