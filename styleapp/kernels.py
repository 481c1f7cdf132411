"""What a GPU does between two convolutions in one kernel each, in Triton, where PyTorch takes several.

Everything here has a form in plain PyTorch too, which is taken where :func:`suits` says no.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Border",
    "affine",
    "bordered",
    "convolve",
    "convolved",
    "convolved_back",
    "convolved_first",
    "folded",
    "inward",
    "mean_var",
    "pooled",
    "suits",
    "unpooled",
    "work",
]

Border = Literal["reflect", "replicate"]

_HALVES = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float32, *_HALVES)


def suits(x: Tensor) -> bool:
    """Whether these kernels take ``x``: (N, C, H, W) on a GPU with its channels side by side, in at most 32 bits."""
    if not x.is_cuda or x.dtype not in _DTYPES or x.dim() != 4 or x.stride(1) != 1 or torch.compiler.is_compiling():
        return False
    return work(x.device, x.dtype)


@functools.cache
def work(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether Triton is there, and compiles each of these for this GPU and dtype. Found out once."""
    try:
        x = torch.ones(1, 8, 2, 2, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        two = torch.full((1, 8, 1, 1), 2.0, device=device)
        found = affine(folded(bordered(x, "reflect"), "reflect"), two, two)
        mean, var = mean_var(x)
        return bool((found == 2 * 4 + 2).all() and (mean == 1).all() and (var == 0).all())
    except Exception:  # whatever is missing: Triton, a compiler, a driver that is new enough, room to write to
        return False


@functools.cache
def convolve(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether :func:`convolved` and what goes with it are to be taken on this GPU, and are right. Found out once.

    They are made for Hopper GPUs (compute capability 9.0), and measured on these alone.
    """
    if device.type != "cuda" or dtype not in _HALVES or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    try:
        x = torch.linspace(-1, 1, 3 * 16 * 18, device=device, dtype=dtype).view(1, 3, 16, 18)
        first, then = (torch.linspace(1, -1, 16 * c * 9, device=device).view(16, 3, 3, c) for c in (3, 16))
        bias = torch.linspace(-1, 1, 16, device=device, dtype=dtype)
        kernels = [w.to(dtype).permute(0, 3, 1, 2) for w in (first, then / 4)]
        found = convolved(pooled(convolved_first(x, kernels[0], bias, True)[..., 1:-1, 1:-1]), kernels[1], bias, True)
        seen = [t.double() for t in (x, *kernels, bias)]
        wanted = F.conv2d(F.pad(seen[0], (1, 1, 1, 1), mode="reflect"), seen[1], seen[3]).relu()
        wanted = F.conv2d(F.pad(F.max_pool2d(wanted, 2), (1, 1, 1, 1), mode="reflect"), seen[2], seen[3]).relu()
        return bool((found - wanted).norm() < 4 * torch.finfo(dtype).eps * wanted.norm())
    except Exception:  # as in :func:`work`
        return False


def bordered(x: Tensor, border: Border, relu: bool = False) -> Tensor:
    """``F.pad(x, (1, 1, 1, 1), border)``: (N, C, H, W) to (N, C, H + 2, W + 2), channels side by side; its ReLU."""
    n, c, height, width = x.shape
    y = _empty(x, n, c, height + 2, width + 2)
    strides = (*x.stride()[::2], x.stride(3))
    _launch("forward", y, x, x, x, *strides, height, width, c, 1, border == "reflect", False, relu)
    return y


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · scale + shift in float32, in the dtype of ``x``; both (N, C, 1, 1), float32."""
    n, c, height, width = x.shape
    y = _empty(x, n, c, height, width)
    scale, shift = scale.expand(n, c, 1, 1).contiguous(), shift.expand(n, c, 1, 1).contiguous()
    _launch("forward", y, x, scale, shift, *x.stride()[::2], x.stride(3), height, width, c, 0, False, True, False)
    return y


def mean_var(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over H and W, (N, C, 1, 1), float32: of parts in two passes each, and merged."""
    from styleapp import triton_kernels

    n, c, height, width = x.shape
    side_by_side, rounds, count = _side_by_side(c), 16, height * width
    pixels = 2048 // side_by_side
    parts = -(-count // (rounds * pixels))
    means, spreads = x.new_empty(2, n, parts, c, dtype=torch.float32)
    mean, var = torch.empty(2, n, c, 1, 1, dtype=torch.float32, device=x.device)
    strides = (*x.stride()[::2], x.stride(3))
    blocks = -(-c // side_by_side)
    with torch.cuda.device_of(x):
        triton_kernels.moments[parts, blocks, n](
            means, spreads, x, *strides, width, count, c, rounds, pixels, side_by_side
        )
        triton_kernels.merged[1, blocks, n](
            mean, var, means, spreads, x, strides[0], parts, rounds * pixels, count, c, pixels, side_by_side
        )
    return mean, var


def folded(grad: Tensor, border: Border) -> Tensor:
    """The gradient of :func:`bordered`: each pixel's own, and those of the border pixels that repeat it."""
    return inward(grad, border)


def inward(
    grad: Tensor, border: Border | None, seen: Tensor | None = None, scale: int = 1, *, zeros_around: bool = False
) -> Tensor:
    """What a gradient is before a border was put around it, or none, and before a ReLU.

    Args:
        grad: (N, C, H, W), or with its border two pixels more.
        seen: (N, C, H, W), what came out of the ReLU; None where there was none.
        scale: 2 to put pixels of even and odd rows and columns beside one another, as :func:`convolved` takes them.
        zeros_around: a border of these around what is found, and channels of these to a multiple of 8.

    Returns:
        (N, scale² · C, H / scale, W / scale), or larger by zeros.
    """
    n, c, height, width = grad.shape
    margin, around = 0 if border is None else 1, int(zeros_around)
    height, width, outputs = height - 2 * margin, width - 2 * margin, -(-c // 8) * 8 if zeros_around else c
    y = _empty(grad, n, scale**2 * outputs, height // scale + 2 * around, width // scale + 2 * around)
    like = grad if seen is None else seen
    strides = (*grad.stride()[::2], grad.stride(3), *like.stride()[::2], like.stride(3))
    repeated = 1 if border == "reflect" else 0
    _launch("inward", y, grad, seen, *strides, height, width, c, outputs, margin, repeated, scale, around)
    return y


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: int = 1, ring: Border | None = None
) -> Tensor:
    """A 3x3 convolution of what has its border already: (N, C, H + 2, W + 2), contiguous in channels_last.

    Args:
        weight: (scale² · O, C, 3, 3), channels_last.
        bias: (O,).
        relu: whether one follows.
        scale: 2 if the kernels are those of even and odd rows and columns (:func:`..models.layers.subpixel_kernels`).
        ring: the border that the result gets; None for none.

    Returns:
        (N, O, scale · H, scale · W), or with its border two pixels more.
    """
    n, across = x.shape[0], x.shape[3]
    height, width, out_channels = x.shape[2] - 2, across - 2, len(weight) // scale**2
    margin = 0 if ring is None else 1
    y = _empty(x, n, out_channels, scale * height + 2 * margin, scale * width + 2 * margin)
    _convolve(y[:, :, margin:, margin:], x, weight, bias, relu, scale**2, everywhere=False)
    if ring is not None:
        _fill_ring(y, ring)
    return y


def convolved_back(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of what :func:`convolved` took, its border too.

    Args:
        grad: (N, O, H + 2, W + 2), of the result of the convolution, zeros in the border, O a multiple of 8.
        weight: (O or less, C, 3, 3).

    Returns:
        (N, C, H + 2, W + 2).
    """
    n, outputs, high, across = grad.shape
    channels = weight.shape[1]
    back = weight.new_zeros(channels, 3, 3, outputs) if len(weight) < outputs else None
    turned = weight.flip(2, 3).permute(1, 2, 3, 0)
    if back is not None:
        back[..., : len(weight)] = turned
    kernel = (turned.contiguous() if back is None else back).permute(0, 3, 1, 2)
    y = _empty(grad, n, channels, high, across)
    _convolve(y[:, :, 1:, 1:], grad, kernel, None, False, 1, everywhere=True)
    return y


def _convolve(
    inner: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, parts: int, *, everywhere: bool
) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from styleapp import triton_kernels

    n, channels, high, across = x.shape
    rows, kernels = n * high * across, len(weight)
    positions, outputs, inputs, warps, stages = tiling(channels, kernels)
    seen = TensorDescriptor(x, [rows, channels], [channels, 1], [positions, inputs])
    taps = TensorDescriptor(weight, [kernels, 9 * channels], [9 * channels, 1], [outputs, inputs])
    count = rows if everywhere else rows - 2 * across - 2
    grid = (-(-count // positions) * -(-kernels // outputs),)
    with torch.cuda.device_of(x):
        triton_kernels.convolve[grid](
            inner,
            seen,
            taps,
            bias,
            across,
            high * across,
            high - 2,
            across - 2,
            *inner.stride()[::2],
            inner.stride(3),
            channels,
            kernels // parts,
            rows,
            everywhere,
            relu,
            parts,
            -(-channels // inputs),
            positions,
            outputs,
            inputs,
            num_warps=warps,
            num_stages=stages,
        )


def tiling(channels: int, kernels: int) -> tuple[int, int, int, int, int]:
    """Positions, outputs and inputs of one block, its warps and stages, for a convolution of so many channels.

    Of 14 ways that an H200 tried on each layer of the networks these are the fastest, or within 8% of it.
    """
    inputs = 64 if channels > 32 else 32 if channels > 16 else 16
    return 128, 16 if kernels <= 16 else 64 if kernels <= 64 else 128, inputs, 4, 3


def convolved_first(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """A 3x3 convolution of at most 3 channels, with reflected borders before and after it.

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3), channels_last.

    Returns:
        (N, O, H + 2, W + 2).
    """
    from styleapp import triton_kernels

    n, channels, height, width = x.shape
    out_channels = len(weight)
    y = _empty(weight, n, out_channels, height + 2, width + 2)
    count, positions, outputs = n * (height + 2) * (width + 2), 128, 64
    grid = (-(-count // positions), -(-out_channels // outputs))
    shape = (*x.stride(), height, width, channels, out_channels, count)
    with torch.cuda.device_of(x):
        triton_kernels.convolve_first[grid](y, x, weight, bias, *shape, relu, positions, outputs, 32, num_warps=4)
    return y


def pooled(x: Tensor) -> Tensor:
    """``max_pool2x2`` of (N, C, H, W), channels side by side, with a reflected border around it."""
    n, c, height, width = x.shape
    y = _empty(x, n, c, (height + 1) // 2 + 2, (width + 1) // 2 + 2)
    _launch("pool", y, x, *x.stride()[::2], x.stride(3), height, width, c)
    return y


def unpooled(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of :func:`pooled`: (N, C, H, W) of (N, C, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2), contiguous in channels_last."""
    n, c, height, width = x.shape
    y = _empty(x, n, c, height, width)
    _launch("unpool", y, grad, x, *x.stride()[::2], x.stride(3), height, width, c)
    return y


def _fill_ring(whole: Tensor, border: Border) -> None:
    from styleapp import triton_kernels

    n, c, high, across = whole.shape
    side_by_side = _side_by_side(c)
    pixels = 2048 // side_by_side
    grid = (-(-2 * (across + high - 2) // pixels), -(-c // side_by_side), n)
    with torch.cuda.device_of(whole):
        triton_kernels.ring[grid](whole, high - 2, across - 2, c, border == "reflect", pixels, side_by_side)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """(N, C, H, W) with channels side by side."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _side_by_side(channels: int) -> int:
    """How many channels one block takes."""
    return min(64, channels & -channels if channels % 8 == 0 else 1 << (channels - 1).bit_length())


def _launch(kernel: Literal["forward", "inward", "pool", "unpool"], y: Tensor, *arguments: Any) -> None:
    from styleapp import triton_kernels

    n, c, height, width = y.shape
    side_by_side = _side_by_side(c)
    pixels = (2048 if kernel in ("forward", "pool") else 1024) // side_by_side
    grid = (-(-height * width // pixels), -(-c // side_by_side), n)
    with torch.cuda.device_of(y):
        getattr(triton_kernels, kernel)[grid](y, *arguments, pixels, side_by_side)
