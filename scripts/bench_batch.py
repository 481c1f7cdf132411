"""Photos a second of a run over a folder, against the bare network, in one process and in two.

    python scripts/bench_batch.py [--count 60] > benchmarks/batch.json

JPEG of 512 x 512 in and out. The bare network is ``Stylizer.forward`` on one photo in memory, in the same minutes:
its runs before and after the folders are averaged. Then the same photos once more on a Ray cluster of two workers,
where Ray is installed; the results of all must be the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from styleapp.allocator import keep_freed_memory
from styleapp.batch import Done, Settings, Task, Worker, find_photos, make_jobs
from styleapp.batch.cluster import run_ray
from styleapp.batch.processes import run_processes, settings_of_workers
from styleapp.errors import OptionError
from styleapp.files import example_photos
from styleapp.memory import resident
from styleapp.options import Options

STYLE = "great-wave"


def fill(folder: Path, count: int) -> None:
    """Crops of the demo's photos."""
    photos = [Image.open(path).convert("RGB").resize((768, 768)) for path in example_photos()]
    for i in range(count):
        x, y = 37 * i % 256, 53 * i % 256
        photos[i % len(photos)].crop((x, y, x + 512, y + 512)).save(folder / f"{i:04}.jpg", quality=92)


def bare(worker: Worker, photo: Path, runs: int = 8) -> list[float]:
    """Seconds of the network alone."""
    transfer = worker.transfer
    image = transfer.fit(photo, Options()).rgb.to(transfer.device, memory_format=torch.channels_last)
    code = transfer.styles.code(STYLE).to(transfer.device)
    times = []
    with torch.inference_mode():
        for _ in range(runs):
            start = time.perf_counter()
            transfer.networks.adain(image, code)
            if transfer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return times[1:]


def timed(engine: Callable[[list[Task]], Iterator[Done]], folder: Path, out: Path) -> tuple[float, list[int]]:
    """Photos a second from the first result to the last, and the memory of this process at each result."""
    jobs = make_jobs(find_photos([str(folder)]), [STYLE], str(out))
    stamps, memory = [], []
    for done in engine([Task(job) for job in jobs]):
        assert not done.error, done.error
        stamps.append(time.perf_counter())
        memory.append(resident())
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]), memory


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("*.jpg")))).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    settings = Settings(Options(norm="adain"), args.device)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "in").mkdir()
        fill(root / "in", args.count)
        worker = Worker(settings)
        before = bare(worker, root / "in" / "0000.jpg")
        one, memory = timed(worker.run, root / "in", root / "one")
        after = bare(worker, root / "in" / "0000.jpg")
        two, _ = timed(lambda tasks: run_processes(settings_of_workers(settings, 2), tasks), root / "in", root / "two")
        same = digest(root / "one") == digest(root / "two")
        try:
            cluster, _ = timed(lambda tasks: run_ray(settings, tasks, workers=2), root / "in", root / "ray")
            same_ray = digest(root / "one") == digest(root / "ray")
        except OptionError:
            cluster, same_ray = None, None
    rate = 1 / statistics.median(before + after)
    on = "" if args.device == "auto" else f"--device {args.device} "
    result = {
        "command": f"python scripts/bench_batch.py {on}--count {args.count}",
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": str(worker.transfer.device),
        "precision": worker.transfer.precision,
        "batch_size": worker.batch_size,
        "torch": torch.__version__,
        "photos": args.count,
        "bare_images_per_second": rate,
        "one_process": {"images_per_second": one, "of_bare": one / rate},
        "two_processes": {"images_per_second": two, "of_bare": two / rate, "same_bytes": same},
        "ray_two_workers": {"images_per_second": cluster, "same_bytes": same_ray},
        "memory_growth_bytes": memory[-1] - memory[len(memory) // 10],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
