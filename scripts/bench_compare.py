"""Every built-in style by AdaIN, CIN and, where there is one, IN: losses over photos, time, parameters, memory.

    python scripts/bench_compare.py --content eval/content [--every 4] > benchmarks/compare.json

Losses as in training, against the moments of the painting that are shipped with its code, at a short side of 512 px;
the picture that is judged is the 8-bit one that would be saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from styleapp import StyleTransfer
from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.compare import compare
from styleapp.evaluate import images
from styleapp.options import Options
from styleapp.tiles import bytes_per_pixel

METHODS = ["adain", "cin", "in"]


def parameters(transfer: StyleTransfer, method: str) -> dict[str, int]:
    """Of the decoder with its norms, and of each style."""
    name = {"adain": None, "cin": "cin", "in": f"in_{(transfer.networks.instance_styles or [''])[0]}"}[method]
    if name is not None and not transfer.networks.has(name):
        return {}
    network = transfer.networks.adain if name is None else transfer.networks.conditional(name).stylizer
    parts = [network.decoder] if network.shifts is None else [network.decoder, network.shifts]
    decoder = sum(p.numel() for part in parts for p in part.parameters())
    told = 0 if network.shifts is None else sum(network.decoder.hidden.values())  # a β each, and no γ
    style = 2 * network.code_channels - told
    return {"decoder": decoder, "style": style, "bytes_per_pixel": bytes_per_pixel(network)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="take every so many of the photos")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer()
    files = images(args.content)[:: args.every]
    styles = list(transfer.styles.gallery.styles)
    sums: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    start = time.perf_counter()
    for i, file in enumerate(files):
        photo = transfer.fit(file, Options(size=args.size))
        for row in compare(transfer, photo, styles, METHODS, Options(size=args.size)).cells:
            for cell in row:
                if cell.picture is not None:
                    sums[cell.style][cell.method].append((cell.content_loss, cell.style_loss, cell.seconds))
        print(f"{i + 1} of {len(files)} photos, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    table = {
        style: {
            method: dict(
                zip(("content", "style"), (statistics.mean(v) for v in list(zip(*found, strict=True))[:2]), strict=True)
            )
            for method, found in methods.items()
        }
        for style, methods in sums.items()
    }
    seconds = {
        m: statistics.median(t[2] for s in sums.values() for t in s.get(m, []))
        for m in METHODS
        if any(m in s for s in sums.values())
    }
    result = {
        "command": f"python scripts/bench_compare.py --content eval/content --every {args.every}",
        "photos": len(files),
        "size": args.size,
        "precision": transfer.precision,
        "torch": torch.__version__,
        "machine": machine(torch.device("cpu")),
        "seconds": seconds,
        "parameters": {m: parameters(transfer, m) for m in METHODS},
        "styles": table,
        "means": {
            m: {k: statistics.mean(s[m][k] for s in table.values() if m in s) for k in ("content", "style")}
            for m in METHODS
            if any(m in s for s in table.values())
        },
        "cin_below_adain": {
            k: sum(s["cin"][k] < s["adain"][k] for s in table.values() if "cin" in s) for k in ("content", "style")
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
