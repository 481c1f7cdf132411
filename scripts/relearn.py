"""Scale what a network's decoder sees of the photo at one layer, and learn the codes of its styles again.

    python scripts/relearn.py --gallery DIR --content DIR --scale relu2_1=0.2 --out runs/cin.safetensors
    python scripts/relearn.py --gallery DIR --content DIR --scale relu2_1=0.2 --network in_great-wave --out FILE

Less of relu2_1 takes the stipple out of fur and skin (weights/HISTORY.md). DIR of the gallery holds one JPEG a
painting, that of the content photos to learn on. Without ``--scale`` codes alone are learned. What it has made is
shipped by ``scripts/release.py --cin FILE`` or ``--instance FILE``. On two cores a code takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors import safe_open

from styleapp.allocator import keep_freed_memory
from styleapp.evaluate import images
from styleapp.files import read_image, save_tensors
from styleapp.images import filled
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.training.cin import learn_code
from styleapp.weights import CIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default=CIN, help="cin, or in_ and a style")
    parser.add_argument("--scale", default="", metavar="LAYER=FACTOR")
    parser.add_argument("--photos", type=int, default=40, help="so many, evenly from all")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=256, help="of the crops of photos")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    files, network = transfer.networks.files, transfer.networks.conditional(args.network)
    stylizer, tensors = network.stylizer, files.load(args.network)
    with safe_open(files.folder / files.entries[args.network].file, "pt") as stored:
        about = stored.metadata()
    if args.scale:
        layer, _, factor = args.scale.partition("=")
        name = f"skip_{layer}.weight"
        scaled = tensors[f"decoder.{name}"] = (tensors[f"decoder.{name}"].float() * float(factor)).half()
        stylizer.decoder.get_parameter(name).copy_(scaled)
        if stylizer.int8 is not None:
            stylizer.use_int8(stylizer.int8)
        about["scaled"] = args.scale
    about["relearned"] = json.dumps({"steps": args.steps, "photos": args.photos, "size": args.size})

    paths = images(args.content)
    paths = paths[:: max(1, len(paths) // args.photos)][: args.photos]
    photos = [filled(transfer.fit(path, Options(size=args.size))).rgb for path in paths]
    rows = []
    for name, start in network.codes.items():
        began = time.perf_counter()
        painting = filled(transfer.fit(read_image(args.gallery / f"{name}.jpg"), Options(size=Options.style_size))).rgb
        learned = learn_code(stylizer, painting, photos, steps=args.steps, size=args.size, start=start)
        rows.append(torch.stack([learned.code.gamma.flatten(), learned.code.beta.flatten()]).half().cpu())
        losses = [f"{value:.2f}" for value in (*learned.before, *learned.after)]
        print(
            f"{name}: content and style {losses[0]}, {losses[1]} -> {losses[2]}, {losses[3]} "
            f"in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    save_tensors(tensors | {"codes": torch.stack(rows)}, args.out, about)


if __name__ == "__main__":
    main()
