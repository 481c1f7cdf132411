"""Norms inside an AdaIN decoder (Huang and Belongie 2017, figures 4 to 6): train, judge and draw them.

    python scripts/ablation.py train --content train/content --style train/style [--minutes 60]
    python scripts/release.py --ablation runs/ablation_*.safetensors
    python scripts/ablation.py judge --content eval/content --style eval/style --every 4 > benchmarks/ablation.json
    python scripts/ablation.py draw        (needs matplotlib: pip install '.[docs]')

``train`` makes one small decoder for each norm in runs/, with the same photos, paintings, steps and seed; given
again, it goes on. ``judge`` evaluates the shipped ones and takes the curves from their logs. ``draw`` makes of them
docs/images/ablation.jpg and ablation_curves.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from styleapp import StyleTransfer
from styleapp.allocator import keep_freed_memory
from styleapp.compare import compare, decoder_sweep
from styleapp.devices import find_device
from styleapp.evaluate import evaluate, images
from styleapp.files import save_picture
from styleapp.images import from_pil
from styleapp.options import DecoderOptions, Options
from styleapp.training.decoder import train_decoder
from styleapp.weights import Weights

ROOT = Path(__file__).parent.parent

NORMS = {"none": "none", "bn": "bn", "in": "in", "ln": "ln", "gn": "gn:8", "switchable": "switchable"}
"""Names of files, and of the factory. Groups of 8 divide every width of the small decoder."""

OPTIONS: dict[str, Any] = {
    "width": 0.25,
    "upsampling": "nearest",
    "batch_size": 4,
    "pairs": 2,
    "lr": 1e-3,
    "warmup": 50,
    "ema": 0.99,
    "identity_weight": 100.0,
}


def options_of(norm: str, steps: int, size: int, compiled: bool) -> DecoderOptions:
    return DecoderOptions(norm=NORMS[norm], skips="", shifts=False, steps=steps, size=size, compile=compiled, **OPTIONS)


def train(args: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * args.minutes
    for norm in args.norm or NORMS:
        out = args.runs / f"ablation_{norm}.safetensors"
        options = options_of(norm, args.steps, args.size, args.compile)
        minutes = max(0.0, (end - time.monotonic()) / 60)
        train_decoder(
            Weights().encoder(),
            args.content,
            args.style,
            out,
            options,
            device=find_device(args.device),
            minutes=minutes,
            report=lambda r, norm=norm: print(norm, json.dumps(r), file=sys.stderr, flush=True),  # type: ignore[misc]
        )


def judge(args: argparse.Namespace) -> None:
    transfer = StyleTransfer()
    rows = {}
    for norm in NORMS:
        start = time.perf_counter()
        unchanged, row = evaluate(transfer, args.content, args.style, every=args.every, norm=f"decoder:{norm}")
        rows[norm] = {**asdict(row), "curve": curve(args.runs / f"ablation_{norm}.log.jsonl")}
        print(f"{norm}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    options = [options_of_log(args.runs / f"ablation_{norm}.log.jsonl") for norm in NORMS]
    if any({**o, "norm": ""} != {**options[0], "norm": ""} for o in options):
        raise SystemExit("the decoders were not trained alike")
    result = {
        "command": f"python scripts/ablation.py judge --content eval/content --style eval/style --every {args.every}",
        "training": {k: v for k, v in options[0].items() if k != "norm"},
        "photos": len(images(args.content)[:: args.every]),
        "paintings": len(images(args.style)[:: args.every]),
        "size": 512,
        "precision": transfer.precision,
        "torch": torch.__version__,
        "unchanged": asdict(unchanged),
        "decoders": rows,
    }
    print(json.dumps(result, indent=1))


def options_of_log(log: Path) -> dict[str, Any]:
    """What the last turn was told."""
    lines = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [line["options"] for line in lines if "options" in line][-1]  # type: ignore[no-any-return]


def curve(log: Path, points: int = 20) -> list[list[float]]:
    """[step, content, style] in so many equal spans of steps, means weighted by the steps between the log's lines."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rows = [(r["step"], r["content"], r["style"]) for r in lines if "content" in r]
    last, found = rows[-1][0], []
    for i in range(points):
        low, high = last * i / points, last * (i + 1) / points
        weights, sums, before = 0.0, [0.0, 0.0], 0
        for step, *losses in rows:
            weight = max(0.0, min(step, high) - max(before, low))
            sums = [s + weight * loss for s, loss in zip(sums, losses, strict=True)]
            weights, before = weights + weight, step
        if weights:
            found.append([round(high), *(round(s / weights, 4) for s in sums)])
    return found


def draw(args: argparse.Namespace) -> None:
    import matplotlib.pyplot as plt

    found = json.loads((ROOT / "benchmarks" / "ablation.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for i, loss in enumerate(("content loss", "style loss")):
        for norm, row in found["decoders"].items():
            points = row["curve"][1:]  # the first is far above all others
            steps, values = [r[0] for r in points], [r[1 + i] for r in points]
            axes[i].plot(steps, values, label=norm, linewidth=2.4 if norm == "none" else 1.3)
        axes[i].set(xlabel="steps", ylabel=loss)
        axes[i].spines[["top", "right"]].set_visible(False)
    axes[0].legend(title="norm in the decoder", frameon=False, ncols=2)
    figure.savefig(args.images / "ablation_curves.png", dpi=110)
    transfer, options = StyleTransfer(), Options(size=384)
    photo = transfer.fit(ROOT / "examples" / "astronaut.jpg", options)
    grid = compare(transfer, photo, ["great-wave", "wheat-field"], decoder_sweep(transfer), options).grid()
    save_picture(from_pil(grid), args.images / "ablation.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb in (train, judge, draw):
        sub = verbs.add_parser(verb.__name__)
        sub.set_defaults(run=verb)
        if verb is draw:
            sub.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
            continue
        sub.add_argument("--content", type=Path, required=True)
        sub.add_argument("--style", type=Path, required=True)
        sub.add_argument("--runs", type=Path, default=Path("runs"))
        if verb is judge:
            sub.add_argument("--every", type=int, default=1, help="take every so many of photos and paintings")
            continue
        sub.add_argument("--norm", choices=list(NORMS), action="append", help="only this one; repeat")
        sub.add_argument("--steps", type=int, default=10_000)
        sub.add_argument("--size", type=int, default=128)
        sub.add_argument("--minutes", type=float, default=float("inf"))
        sub.add_argument("--device", default="auto")
        sub.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    args.run(args)


if __name__ == "__main__":
    main()
