"""Three ways of reflecting at the borders, in the whole network: PyTorch's pad, a pad that keeps the layout, none.

python scripts/bench_padding.py > benchmarks/padding.json          (CPU, or --device cuda --batch 1 --batch 8)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.allocator import keep_freed_memory
from styleapp.bench import flops, machine, matmul_rate
from styleapp.models.layers import corrected_conv2d, reflected
from styleapp.pipeline import StyleTransfer


def torchs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def copied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(reflected(x), weight, bias)


WAYS = {"F.pad": torchs, "reflected": copied, "corrected": corrected_conv2d}


def seconds(transfer: StyleTransfer, image: Tensor) -> float:
    def wait() -> None:
        if transfer.device.type == "cuda":
            torch.cuda.synchronize(transfer.device)

    code = transfer.code("great-wave").to(transfer.device)
    wait()
    start = time.perf_counter()
    transfer.stylizer(image, code)
    wait()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    rate = matmul_rate(transfer.device, next(transfer.stylizer.parameters()).dtype)
    rows = []
    for batch in args.batch or [1]:
        image = torch.rand(batch, 3, args.size, args.size).to(transfer.device, memory_format=torch.channels_last)
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        with torch.inference_mode():
            for _ in range(args.runs + 2):  # in turn, so that a slow spell of the machine meets all
                for name, way in WAYS.items():
                    with mock.patch("styleapp.models.layers.reflect_conv2d", way):
                        times[name].append(seconds(transfer, image))
        medians = {name: statistics.median(found[2:]) for name, found in times.items()}
        ideal = flops(transfer.stylizer, args.size, args.size) * batch / rate / 1e12
        rows.append(
            {
                "batch": batch,
                "seconds": {n: round(s, 5) for n, s in medians.items()},
                "of_matmul_rate": {n: round(ideal / s, 3) for n, s in medians.items()},
            }
        )
    about = {"machine": machine(transfer.device), "date": time.strftime("%Y-%m-%d"), "precision": transfer.precision}
    print(json.dumps({**about, "size": args.size, "matmul_tflops": round(rate, 3), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
