"""Photos far larger than memory would hold in one piece: seconds and peak memory of the command line.

python scripts/bench_large.py > benchmarks/large.json

Each photo is stylized by a process of its own, started as a user would; the peak is that of the process
as the system accounts it (ru_maxrss), the interpreter, PyTorch and the photo itself included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from styleapp.bench import machine

OWN = "--work-size 0"  # the network sees the photo at its own size
CASES = [
    (100, 20_000, f"adain {OWN} --max-memory 2GB"),
    (20_000, 100, f"adain {OWN} --max-memory 2GB"),
    (3_000, 4_000, f"adain {OWN}"),  # as a telephone takes them
    (3_000, 4_000, f"adain {OWN} --tile off"),
    (3_000, 4_000, f"cin {OWN}"),
    (3_000, 4_000, f"cin {OWN} --tile off"),
    (4_000, 4_000, f"adain {OWN} --max-memory 1500MB"),
    (4_000, 4_000, f"cin {OWN} --max-memory 1500MB"),
    (10_000, 10_000, f"adain {OWN} --max-memory 2GB"),
    (10_000, 10_000, f"cin {OWN} --max-memory 2GB"),
    (3_000, 4_000, "adain"),
    (3_000, 4_000, "cin"),
    (10_000, 10_000, "adain --max-memory 2GB"),
    (10_000, 10_000, "cin --max-memory 2GB"),
]


def scene(height: int, width: int, file: Path) -> None:
    """The example photo, scaled up: real structure at every size."""
    with Image.open("examples/astronaut.jpg") as photo:
        photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for height, width, how in CASES:
            photo, out = Path(folder) / "photo.jpg", Path(folder) / "out.jpg"
            done = subprocess.run([sys.executable, __file__, "scene", str(height), str(width), str(photo)], check=True)
            command = f"styleapp stylize photo.jpg --style great-wave --norm {how} -o out.jpg"
            child = [sys.executable, "-m", *command.split(), "--overwrite", "--json"]
            child[child.index("photo.jpg")], child[child.index("out.jpg")] = str(photo), str(out)
            script = (
                "import subprocess, resource, sys, json;"
                "d = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
                "print(json.dumps([d.returncode, d.stdout, d.stderr,"
                " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
            )
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", script, *child], capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
            code, stdout, stderr, peak = json.loads(done.stdout)
            if code:
                sys.exit(stderr)
            with Image.open(out) as result:
                size = list(result.size)
            rows.append(
                {
                    "photo": f"{width}x{height}",
                    "result": size,
                    "command": command,
                    "seconds": round(seconds, 1),
                    "stylize_seconds": json.loads(stdout)["seconds"]["stylize"],
                    "microseconds_per_pixel": round(1e6 * json.loads(stdout)["seconds"]["stylize"] / height / width, 3),
                    "peak_rss_mb": round(peak * 1024 / 1e6),
                }
            )
            print(rows[-1], file=sys.stderr)
    about = {"machine": machine(torch.device("cpu")), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(about)[:-1] + ',\n "runs": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["scene"]:
        Image.MAX_IMAGE_PIXELS = None
        scene(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        Image.MAX_IMAGE_PIXELS = None
        main()
