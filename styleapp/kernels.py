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
    "convolved_first",
    "folded",
    "pooled",
    "suits",
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
        return bool((found == 2 * 4 + 2).all())
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
    y = x.new_empty(n, height + 2, width + 2, c).permute(0, 3, 1, 2)
    strides = (*x.stride()[::2], x.stride(3))
    _launch("forward", y, x, x, x, *strides, height, width, c, 1, border == "reflect", False, relu)
    return y


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · scale + shift in float32, in the dtype of ``x``; both (N, C, 1, 1), float32."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height, width, c).permute(0, 3, 1, 2)
    scale, shift = scale.expand(n, c, 1, 1).contiguous(), shift.expand(n, c, 1, 1).contiguous()
    _launch("forward", y, x, scale, shift, *x.stride()[::2], x.stride(3), height, width, c, 0, False, True, False)
    return y


def folded(grad: Tensor, border: Border) -> Tensor:
    """The gradient of :func:`bordered`: each pixel's own, and those of the border pixels that repeat it."""
    n, c, height, width = grad.shape
    y = grad.new_empty(n, height - 2, width - 2, c).permute(0, 3, 1, 2)
    strides = (*grad.stride()[::2], grad.stride(3))
    _launch("backward", y, grad, *strides, height - 2, width - 2, c, 1 if border == "reflect" else 0)
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
    whole = x.new_empty(n, scale * height + 2 * margin, scale * width + 2 * margin, out_channels)
    inner = whole[:, margin:, margin:] if margin else whole
    _convolve(inner, x, weight, bias, relu, scale**2)
    y = whole.permute(0, 3, 1, 2)
    if ring is not None:
        _fill_ring(y, ring)
    return y


def _convolve(inner: Tensor, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, parts: int) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from styleapp import triton_kernels

    n, channels, high, across = x.shape
    rows, kernels = n * high * across, len(weight)
    positions, outputs, inputs, warps, stages = tiling(channels, kernels)
    seen = TensorDescriptor(x, [rows, channels], [channels, 1], [positions, inputs])
    taps = TensorDescriptor(weight, [kernels, 9 * channels], [9 * channels, 1], [outputs, inputs])
    grid = (-(-(rows - 2 * across - 2) // positions) * -(-kernels // outputs),)
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
            *inner.stride()[:3],
            channels,
            kernels // parts,
            rows,
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
    y = x.new_empty(n, height + 2, width + 2, out_channels, dtype=weight.dtype).permute(0, 3, 1, 2)
    count, positions, outputs = n * (height + 2) * (width + 2), 128, 64
    grid = (-(-count // positions), -(-out_channels // outputs))
    shape = (*x.stride(), height, width, channels, out_channels, count)
    with torch.cuda.device_of(x):
        triton_kernels.convolve_first[grid](y, x, weight, bias, *shape, relu, positions, outputs, 32, num_warps=4)
    return y


def pooled(x: Tensor) -> Tensor:
    """``max_pool2x2`` of (N, C, H, W), channels side by side, with a reflected border around it."""
    n, c, height, width = x.shape
    y = x.new_empty(n, (height + 1) // 2 + 2, (width + 1) // 2 + 2, c).permute(0, 3, 1, 2)
    _launch("pool", y, x, *x.stride()[::2], x.stride(3), height, width, c)
    return y


def _fill_ring(whole: Tensor, border: Border) -> None:
    from styleapp import triton_kernels

    n, c, high, across = whole.shape
    side_by_side = _side_by_side(c)
    pixels = 2048 // side_by_side
    grid = (-(-2 * (across + high - 2) // pixels), -(-c // side_by_side), n)
    with torch.cuda.device_of(whole):
        triton_kernels.ring[grid](whole, high - 2, across - 2, c, border == "reflect", pixels, side_by_side)


def _side_by_side(channels: int) -> int:
    """How many channels one block takes."""
    return min(64, channels & -channels if channels % 8 == 0 else 1 << (channels - 1).bit_length())


def _launch(kernel: Literal["forward", "backward", "pool"], y: Tensor, *arguments: Any) -> None:
    from styleapp import triton_kernels

    n, c, height, width = y.shape
    side_by_side = _side_by_side(c)
    pixels = 2048 // side_by_side
    grid = (-(-height * width // pixels), -(-c // side_by_side), n)
    with torch.cuda.device_of(y):
        getattr(triton_kernels, kernel)[grid](y, *arguments, pixels, side_by_side)
