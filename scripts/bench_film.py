"""How steady films are, and how quickly they are made: a camera moves over photos, 3 and 2 pixels from frame to frame.

    python scripts/bench_film.py --content eval/content [--every 5] > benchmarks/film.json

"change" is the mean difference, in levels of 255, between the same places of the scene in two frames that follow one
another, away from the borders: with moments smoothed over half a second, as ``styleapp stylize clip.mp4`` does it, and
with each frame's own. "seconds" is the median time of a frame of 320 x 320 pixels, without reading and writing films.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.evaluate import images
from styleapp.images import Picture
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.video import Smoother, stylize_frames

SIDE, FRAMES, MOVE, BORDER = 320, 12, (2, 3), 48
STYLES = ("great-wave", "wheat-field", "the-visit")


def pan(photo: Picture) -> Iterator[tuple[float, Picture]]:
    for i in range(FRAMES):
        top, left = (i * move for move in MOVE)
        yield i / 25, Picture(photo.pixels[..., top : top + SIDE, left : left + SIDE])


def change(frames: list[Picture]) -> float:
    inner = slice(BORDER, SIDE - BORDER)
    later = (..., *(slice(BORDER - move, SIDE - BORDER - move) for move in MOVE))
    return 255 * statistics.mean(
        float((b.rgb[later] - a.rgb[..., inner, inner]).abs().mean()) for a, b in pairwise(frames)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=Path, required=True)
    parser.add_argument("--every", type=int, default=5, help="take every so many of the photos")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    files = images(args.content)[:: args.every]
    changes: dict[str, dict[str, list[float]]] = {norm: {"smoothed": [], "own": []} for norm in ("adain", "cin")}
    seconds: dict[str, list[float]] = {norm: [] for norm in changes}
    for i, file in enumerate(files):
        photo = transfer.fit(file, Options(size=SIDE + FRAMES * max(MOVE)))
        for norm, found in changes.items():
            for style in STYLES:
                for how, smooth in (("smoothed", 0.5), ("own", 0.0)):
                    start = time.perf_counter()
                    frames = list(stylize_frames(transfer, pan(photo), style, Options(norm=norm), Smoother(smooth)))
                    seconds[norm].append((time.perf_counter() - start) / FRAMES)
                    found[how].append(change(frames))
        print(f"{i + 1} of {len(files)} photos", file=sys.stderr)
    result = {
        "command": f"python scripts/bench_film.py --content eval/content --every {args.every}",
        "machine": machine(transfer.device),
        "date": time.strftime("%Y-%m-%d"),
        "precision": transfer.precision,
        "photos": len(files),
        "styles": list(STYLES),
        "frames": FRAMES,
        "change": {
            norm: {how: round(statistics.mean(values), 2) for how, values in found.items()}
            for norm, found in changes.items()
        },
        "seconds": {norm: round(statistics.median(values), 3) for norm, values in seconds.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
