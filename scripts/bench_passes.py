"""CIN over a photo in tiles: every pass from the beginning, and from what the pass before has kept.

python scripts/bench_passes.py > benchmarks/passes.json          (CPU, or --device cuda)

The demo's first photo at a short side of --size, in one piece and in tiles: with the output of each layer kept in
memory or on disk, with its features alone, with nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.controls import Layer
from styleapp.engine import render
from styleapp.files import example_photos
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.tiles import Plan, even, make_plan, one_piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1536)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    network = transfer.networks.of("cin")
    layers = [Layer(transfer.styles.code("great-wave", norm="cin"), 1.0)]
    photo = transfer.fit(example_photos()[0], Options(size=args.size))
    tile = even(photo.size, args.tile)
    room = make_plan(network, photo.size, transfer.device, tile=args.tile).room
    plans = {
        "one piece": one_piece(photo.size),
        "tiles, outputs kept": Plan(tile, keep=True, room=room),
        "tiles, outputs kept on disk": Plan(tile, keep=True, disk=10**12),
        "tiles, features kept": Plan(tile, keep=True),
        "tiles, nothing kept": Plan(tile, keep=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(args.runs + 1):
        for name, plan in plans.items():
            start = time.perf_counter()
            render(network, photo, layers, plan)
            if transfer.device.type == "cuda":
                torch.cuda.synchronize(transfer.device)
            seconds[name].append(time.perf_counter() - start)
    result = {
        "command": f"python scripts/bench_passes.py --runs {args.runs}",
        "machine": machine(transfer.device),
        "date": time.strftime("%Y-%m-%d"),
        "precision": transfer.precision,
        "size": list(photo.size),
        "tile": list(tile),
        "room_mb": round(room / 1e6),
        "runs": args.runs,
        "seconds": {name: round(statistics.median(found[1:]), 2) for name, found in seconds.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
