"""Learn codes of the built-in styles: for the CIN network at other stroke sizes than the one it was trained at.

    python scripts/learn_sizes.py --gallery DIR --content DIR --out runs/cin_sizes.safetensors
    python scripts/learn_sizes.py --network adain --gallery DIR --content DIR --out runs/adain_codes.safetensors

DIR of the gallery holds one JPEG a painting, that of the content photos to learn on. Each code of CIN begins as that of
the usual size, so that those between two sizes can be interpolated; one of AdaIN as what is predicted for the painting
at its size, and only what the decoder is told changes. Goes on where it was stopped; what it has made is shipped by
``scripts/release.py --cin-sizes FILE`` and ``--adain-codes FILE``. On two cores a code takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from styleapp.allocator import keep_freed_memory
from styleapp.evaluate import images
from styleapp.files import read_image, save_tensors
from styleapp.images import filled
from styleapp.models import StyleCode
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.training.cin import learn_code
from styleapp.weights import CIN, DECODER


@dataclass(frozen=True)
class How:
    """The stroke sizes at which codes are learned, and with what."""

    sizes: list[int]
    options: dict[str, float]


HOW = {
    CIN: How([256, 1024], {}),
    "adain": How([256, 512, 1024], {"lr": 0.05, "style_weight": 4.0, "damping": 1.5}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(HOW), default=CIN)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", help="256 and 1024, for AdaIN 512 besides")
    parser.add_argument("--photos", type=int, default=40, help="so many, evenly from all")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=256, help="of the crops of photos")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    how = HOW[args.network]
    file, stylizer = DECODER, transfer.networks.adain
    starts: Mapping[str, StyleCode | None] = dict.fromkeys(transfer.styles.gallery.styles)
    if args.network == CIN:
        network = transfer.networks.conditional(CIN)
        file, stylizer, starts = CIN, network.stylizer, network.codes
    about = {f"{file}_sha256": transfer.networks.checksum(file), "steps": str(args.steps), "photos": str(args.photos)}
    done: dict[str, torch.Tensor] = {}
    if args.out.exists():
        with safe_open(args.out, "pt") as stored:
            if stored.metadata() != about:
                parser.error(f"{args.out} was made otherwise: {json.dumps(stored.metadata())}, now {json.dumps(about)}")
        done = load_file(args.out)
    paths = images(args.content)
    paths = paths[:: max(1, len(paths) // args.photos)][: args.photos]
    photos = [filled(transfer.fit(path, Options(size=args.size))).rgb for path in paths]
    for name, start in starts.items():
        for size in args.sizes or how.sizes:
            key = f"{name}.{size}"
            if key in done:
                continue
            began = time.perf_counter()
            painting = filled(transfer.fit(read_image(args.gallery / f"{name}.jpg"), Options(size=size))).rgb
            more: dict[str, Any] = {"steps": args.steps, "size": args.size, "start": start, **how.options}
            learned = learn_code(stylizer, painting, photos, **more)
            done[key] = torch.stack([learned.code.gamma.flatten(), learned.code.beta.flatten()]).half().cpu()
            save_tensors(done, args.out, about)
            losses = [f"{value:.2f}" for value in (*learned.before, *learned.after)]
            print(
                f"{key}: content and style {losses[0]}, {losses[1]} -> {losses[2]}, {losses[3]} "
                f"in {time.perf_counter() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
