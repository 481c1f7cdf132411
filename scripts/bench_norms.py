"""What each norm costs against torch.nn's on the same tensors, in one run.

python scripts/bench_norms.py > benchmarks/norms.json          (CPU, or --device cuda)

A stock norm is measured against the module of torch.nn that it stands for, any other against the stock
norm nearest to it. The two take turns, so that a slow spell of the machine meets both; the ratio is the
median over the turns of ours / theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from styleapp import norms as n
from styleapp.allocator import keep_freed_memory
from styleapp.bench import machine
from styleapp.devices import find_device

C, GROUPS = 64, 32
IMAGE, TOKENS = (8, C, 64, 64), (8, 196, 768)


class ChannelsLastLayerNorm(nn.Module):
    """What people write with torch.nn for layer norm over the channels at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def cases(device: torch.device) -> dict[str, tuple[Callable[..., Any], nn.Module, tuple[int, ...], bool]]:
    """Name → ours, theirs, shape, whether it is a stock norm."""
    label = torch.randn(8, 3, 64, 64, device=device)
    codes = torch.randn(8, 3, 512, device=device)
    style = n.moments(torch.randn(IMAGE, device=device))
    batch, instance = nn.BatchNorm2d(C), nn.InstanceNorm2d(C, affine=True)
    spade, sean = n.SPADE(C, 3).to(device), n.SEAN(C, 3).to(device)
    cin = n.ConditionalInstanceNorm(C, 24).to(device)
    ids = torch.arange(8, device=device)
    domain = n.DomainBatchNorm(C, 3).to(device)
    virtual, clade, region = (m.to(device) for m in (n.VirtualBatchNorm(C), n.CLADE(C, 3), n.RegionNorm(C, 3)))
    reference, classes = torch.randn(IMAGE, device=device), label.argmax(1)
    modulated = n.ModulatedNorm(n.InstanceNorm(C, affine=False), C, 256).to(device)
    condition = torch.randn(8, 256, device=device)
    return {
        "batch norm, training": (n.BatchNorm(C), batch, IMAGE, True),
        "batch norm, evaluation": (n.BatchNorm(C).eval(), nn.BatchNorm2d(C).eval(), IMAGE, True),
        "instance norm": (n.InstanceNorm(C), instance, IMAGE, True),
        "group norm": (n.GroupNorm(C, num_groups=GROUPS), nn.GroupNorm(GROUPS, C), IMAGE, True),
        "layer norm, images": (n.make_norm("ln", C), nn.GroupNorm(1, C), IMAGE, True),
        "layer norm, tokens": (n.LayerNorm(768), nn.LayerNorm(768), TOKENS, True),
        "layer norm, channels": (n.LayerNorm2d(C), ChannelsLastLayerNorm(), IMAGE, True),
        "RMS norm, tokens": (n.RMSNorm(768), nn.RMSNorm(768, eps=1e-5), TOKENS, True),
        "frozen batch norm": (n.FrozenBatchNorm(C), nn.BatchNorm2d(C).eval(), IMAGE, False),
        "ghost batch norm of 4": (n.GhostBatchNorm(C, virtual_batch_size=4), batch, IMAGE, False),
        "domain batch norm": (lambda x: domain(x, 1), batch, IMAGE, False),
        "batch renormalisation": (n.BatchRenorm(C), batch, IMAGE, False),
        "virtual batch norm": (lambda x: virtual(x, reference), batch, IMAGE, False),
        "representative batch norm": (n.RepresentativeBatchNorm(C), batch, IMAGE, False),
        "moving average batch norm": (n.MovingAverageBatchNorm(C), batch, IMAGE, False),
        "online norm": (n.OnlineNorm(C), batch, IMAGE, False),
        "mode norm": (n.ModeNorm(C), batch, IMAGE, False),
        "decorrelated batch norm": (n.make_norm("dbn", C), batch, IMAGE, False),
        "IterNorm": (n.make_norm("iternorm", C), batch, IMAGE, False),
        "conditional instance norm": (lambda x: cin(x, ids), instance, IMAGE, False),
        "AdaIN": (lambda x: n.adain(x, style), instance, IMAGE, False),
        "modulated instance norm": (lambda x: modulated(x, condition), instance, IMAGE, False),
        "AdaGN": (lambda x: n.adagn(x, style, num_groups=GROUPS), instance, IMAGE, False),
        "attentive norm": (n.AttentiveNorm(C), batch, IMAGE, False),
        "switchable norm": (n.SwitchableNorm(C), batch, IMAGE, False),
        "IBN-a": (n.IBNa(C), batch, IMAGE, False),
        "half instance norm": (n.HalfInstanceNorm(C), instance, IMAGE, False),
        "batch-instance norm": (n.BatchInstanceNorm(C), batch, IMAGE, False),
        "instance-layer norm": (n.InstanceLayerNorm(C), instance, IMAGE, False),
        "MixStyle": (n.MixStyle(p=1), instance, IMAGE, False),
        "positional norm": (n.make_norm("pono", C), ChannelsLastLayerNorm(), IMAGE, False),
        "local response norm": (n.LocalResponseNorm(C), nn.LocalResponseNorm(5), IMAGE, False),
        "local contrast norm": (n.LocalContrastNorm(C), nn.LocalResponseNorm(5), IMAGE, False),
        "filter response norm": (n.FilterResponseNorm(C), instance, IMAGE, False),
        "global response norm": (n.GlobalResponseNorm(C), instance, IMAGE, False),
        "EvoNorm-B0": (n.EvoNormB0(C), batch, IMAGE, False),
        "EvoNorm-S0": (n.EvoNormS0(C, num_groups=GROUPS), nn.GroupNorm(GROUPS, C), IMAGE, False),
        "activation norm": (n.ActNorm(C), batch, IMAGE, False),
        "scale norm, tokens": (n.ScaleNorm(768), nn.LayerNorm(768), TOKENS, False),
        "dynamic tanh, tokens": (n.DynamicTanh(768, dim=-1), nn.LayerNorm(768), TOKENS, False),
        "dynamic erf, tokens": (n.DynamicErf(768, dim=-1), nn.LayerNorm(768), TOKENS, False),
        "SPADE, 128 hidden channels": (lambda x: spade(x, label), instance, IMAGE, False),
        "SEAN, 3 regions": (lambda x: sean(x, label.softmax(1), codes), instance, IMAGE, False),
        "CLADE, 3 classes": (lambda x: clade(x, classes), instance, IMAGE, False),
        "region norm, 3 regions": (lambda x: region(x, label.softmax(1)), instance, IMAGE, False),
        "EFDM": (lambda x: n.efdm(x, x.detach().flip(-1)), instance, IMAGE, False),
        "OT": (lambda x: n.ot(x, x.detach().flip(-1)), instance, IMAGE, False),
        "WCT": (lambda x: n.wct(x, x.detach().flip(-1)), instance, IMAGE, False),
    }


def once(norm: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, backward: bool) -> float:
    """Seconds of a forward, or of a forward and backward."""
    x = x.detach().requires_grad_(backward)
    synchronize(x.device)
    start = time.perf_counter()
    if backward:
        norm(x).backward(grad)
    else:
        with torch.inference_mode():
            norm(x)
    synchronize(x.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(ours: Any, theirs: Any, x: Tensor, backward: bool, turns: int) -> dict[str, float]:
    grad = torch.randn_like(x)
    pairs = [[once(norm, x, grad, backward) for norm in (ours, theirs)] for _ in range(turns + 3)][3:]
    a, b = zip(*pairs, strict=True)
    ratio = statistics.median(p / q for p, q in pairs)
    return {"ms": statistics.median(a) * 1e3, "torch_ms": statistics.median(b) * 1e3, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=201)
    args = parser.parse_args()
    device = find_device(args.device)
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for name, (ours, theirs, shape, stock) in cases(device).items():
        theirs.to(device)
        if isinstance(ours, nn.Module):
            ours.to(device)
        for layout in ("contiguous", "channels_last") if stock and len(shape) == 4 else ("contiguous",):
            x = torch.randn(shape, device=device)
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            row = {"norm": name, "stock": stock, "against": type(theirs).__name__, "shape": shape, "layout": layout}
            for step, backward in (("forward", False), ("forward_backward", True)):
                found = compare(ours, theirs, x, backward, args.turns if stock else args.turns // 4)
                row[step] = {k: round(v, 3) for k, v in found.items()}
            rows.append(row)
    about = {"machine": machine(device), "date": time.strftime("%Y-%m-%d"), "dtype": "float32", "turns": args.turns}
    print(json.dumps(about)[:-1] + ',\n "norms": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n]}")


if __name__ == "__main__":
    main()
