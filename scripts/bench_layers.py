"""Ways of making the one layer of the networks, in turn: some to reflect at the borders, some to upsample before it.

python scripts/bench_layers.py > benchmarks/layers.json          (CPU, or --device cuda --batch 1 --batch 8)

Reflecting is timed in the whole network, upsampling in the shipped decoder and in ones of full width (random filters).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.models import Decoder
from styleapp.models.layers import (
    UPSAMPLINGS,
    convolves,
    corrected_conv2d,
    padded,
    reflect_conv2d,
    upsampled_conv2d,
)
from styleapp.pipeline import StyleTransfer

Layer = Callable[..., Tensor]


def with_pad(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)
    return F.relu_(y) if relu else y


def with_own_pad(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    y = F.conv2d(padded(x, "reflect"), weight, bias)
    return F.relu_(y) if relu else y


def upsampled_first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mode: str = "nearest",
    kernels: object = None,
    relu: bool = False,
) -> Tensor:
    wide = F.pad(F.interpolate(x, scale_factor=2.0, mode=mode), (1, 1, 1, 1), mode="replicate")
    y = F.conv2d(wide, weight, bias)
    return F.relu_(y) if relu else y


REFLECTING: dict[str, Layer] = {
    "F.pad": with_pad,
    "own pad": with_own_pad,
    "corrected": corrected_conv2d,
    "as shipped": reflect_conv2d,  # the last two by size on a CPU; oneDNN or cuDNN adds the bias and cuts at 0 too
}
UPSAMPLING: dict[str, Layer] = {"F.interpolate": upsampled_first, "four kernels": upsampled_conv2d}
OWN = "own convolutions"
"""By the kernels of kernels.py, on a GPU for which they are made: they do all of both."""


def in_turn(
    function: str, ways: dict[str, Layer], run: Callable[[], object], wait: Callable[[], None], runs: int
) -> Any:
    """Median seconds of ``run`` with each way in the place of a function of the layer."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 2):  # in turn, so that a slow spell of the machine meets all
        for name, way in ways.items():
            own = mock.patch("styleapp.kernels.convolve", lambda *which: name == OWN)  # noqa: B023
            with own, mock.patch(f"styleapp.models.layers.{function}", way):
                wait()
                start = time.perf_counter()
                run()
                wait()
                times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(found[2:]), 5) for name, found in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    keep_freed_memory()
    transfer = StyleTransfer(args.device)
    stylizer, device = transfer.networks.adain, transfer.device
    code = transfer.styles.code("great-wave").to(device)
    dtype, channels = next(stylizer.parameters()).dtype, stylizer.encoder.num_channels
    decoders = {"decoder": stylizer.decoder}
    for mode in UPSAMPLINGS:
        wide = Decoder(channels, upsampling=mode).to(device, dtype)
        decoders[f"decoder_full_width_{mode}"] = wide.to(memory_format=torch.channels_last)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    if convolves(decoders["decoder"].children(), torch.empty(0, device=device, dtype=dtype)):
        for ways, way in ((REFLECTING, reflect_conv2d), (UPSAMPLING, upsampled_conv2d)):
            ways[OWN] = way
    rows = []
    for batch in args.batch or [1]:
        image = torch.rand(batch, 3, args.size, args.size).to(device, memory_format=torch.channels_last)
        features = stylizer.encoder(image)
        row: dict[str, Any] = {"batch": batch}
        row["network"] = in_turn("reflect_conv2d", REFLECTING, lambda: stylizer(image, code), wait, args.runs)  # noqa: B023
        for name, decoder in decoders.items():
            row[name] = in_turn("upsampled_conv2d", UPSAMPLING, lambda: decoder(features), wait, args.runs)  # noqa: B023
        rows.append(row)
    about = {"machine": machine(device), "date": time.strftime("%Y-%m-%d"), "precision": transfer.precision}
    print(json.dumps({**about, "size": args.size, "width": stylizer.decoder.width, "seconds": rows}, indent=1))


if __name__ == "__main__":
    main()
