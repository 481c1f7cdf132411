"""How long a stylized photo takes, and what of it the network is."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from styleapp.images import Picture, to_pil
from styleapp.pipeline import Options, StyleTransfer

__all__ = ["Timing", "bench", "machine", "matmul_rate"]


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing."""

    name: str
    size: int
    median: float
    fastest: float
    slowest: float
    runs: int


def bench(transfer: StyleTransfer, sizes: Sequence[int], runs: int = 7) -> dict[str, Any]:
    """Median and spread, after two runs of warm-up, of the network alone and of ``stylize`` on a PIL image.

    Returns a dict that fits in JSON: machine, versions, device, precision, matmul rate, timings.
    """
    timings = []
    code = transfer.measure(Picture(_scene(256)), 256)
    for size in sizes:
        picture = Picture(_scene(size))
        photo = to_pil(picture)
        image = picture.rgb.to(transfer.device, memory_format=torch.channels_last)

        network = torch.inference_mode()(partial(transfer.stylizer, image, code))
        timings.append(_timed("network", size, network, transfer.device, runs))
        timings.append(_timed("stylize", size, partial(transfer.stylize, photo, code), transfer.device, runs))
    return {
        "machine": machine(transfer.device),
        "precision": transfer.precision,
        "matmul_tflops": matmul_rate(transfer.device, next(transfer.stylizer.parameters()).dtype),
        "options": asdict(Options()),
        "timings": [asdict(t) for t in timings],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int = 2048) -> float:
    """TFLOP/s of an n x n matrix product of random numbers."""
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    timing = _timed("matmul", n, lambda: a @ b, device, 9)
    return 2 * n**3 / timing.median / 1e12


def _timed(name: str, size: int, run: Callable[[], object], device: torch.device, runs: int) -> Timing:
    seconds = []
    for i in range(runs + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return Timing(name, size, statistics.median(seconds), min(seconds), max(seconds), runs)


def _scene(size: int) -> torch.Tensor:
    """A square of smooth noise: the time does not depend on what is in the picture."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)
