"""How far tiles and low precision are from the picture in one piece and in float32, over photos and paintings.

python scripts/bench_precision.py --content eval/content --style eval/style [--every 2] > benchmarks/precision.json

The network is compared with one code for both, and besides with the code that each finds for itself: sixteen steps of
Adam make more of what rounding changes than a picture does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.devices import find_device, find_precision
from styleapp.evaluate import images
from styleapp.images import Picture
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB; 100 where they are equal."""
    return float(-10 * (a - b).square().mean().clamp(min=1e-10).log10())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--style", type=Path, required=True)
    parser.add_argument("--every", type=int, default=2, help="take every so many of the photos and of the paintings")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tile", type=int, default=192)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    device = find_device(args.device)
    lower = dict.fromkeys(find_precision("auto", device, integers=i) for i in (False, True))
    transfers = {precision: StyleTransfer(args.device, precision) for precision in dict.fromkeys(["fp32", *lower])}
    options = Options(size=args.size, tile="off", norm="cin")
    photos, paintings = images(args.content)[:: args.every], images(args.style)[:: args.every]
    largest: list[float] = []
    found_psnr: dict[str, list[float]] = defaultdict(list)
    for i, photo in enumerate(photos):
        picture = transfers["fp32"].fit(photo, options)
        image = Picture(picture.rgb)  # in float: no rounding to 8 bits hides anything; it is what int8 is not for
        seen = {name: picture if name == "int8" else image for name in transfers}
        for painting in paintings:
            codes = {
                name: transfer.styles.code(painting, options.style_size, "cin") for name, transfer in transfers.items()
            }
            found = {
                (name, tile): transfer.picture(seen[name], codes["fp32"], replace(options, tile=tile)).rgb
                for name, transfer in transfers.items()
                for tile in ("off", str(args.tile))
            }
            whole = found["fp32", "off"]
            largest.append(float((found["fp32", str(args.tile)] - whole).abs().max()))
            for low in lower:
                own = transfers[low].picture(seen[low], codes[low], options).rgb
                found_psnr[f"{low}_tiled_psnr"].append(psnr(found[low, str(args.tile)], found[low, "off"]))
                found_psnr[f"{low}_against_fp32_psnr"].append(psnr(found[low, "off"], whole))
                found_psnr[f"{low}_with_its_own_code_psnr"].append(psnr(own, whole))
        print(f"{i + 1} of {len(photos)} photos", file=sys.stderr)
    result = {
        "command": f"python scripts/bench_precision.py --content eval/content --style eval/style --every {args.every}",
        "machine": machine(transfers["fp32"].device),
        "date": time.strftime("%Y-%m-%d"),
        "pairs": len(largest),
        "size": args.size,
        "tile": args.tile,
        "fp32_tiled_largest_difference": max(largest),
        **{k: {"least": min(v), "median": statistics.median(v)} for k, v in found_psnr.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
