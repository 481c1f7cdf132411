"""What a GPU does between two convolutions in one kernel each, in Triton, where PyTorch takes several.

Everything here has a form in plain PyTorch too, which is taken where :func:`suits` says no.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # as on Windows
    triton = None

__all__ = ["Border", "affine", "bordered", "folded", "suits", "work"]

Border = Literal["reflect", "replicate"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def suits(x: Tensor) -> bool:
    """Whether these kernels take ``x``: (N, C, H, W) on a GPU with its channels side by side, in at most 32 bits."""
    if not x.is_cuda or x.dtype not in _DTYPES or x.dim() != 4 or x.stride(1) != 1 or torch.compiler.is_compiling():
        return False
    return work(x.device, x.dtype)


@functools.cache
def work(device: torch.device, dtype: torch.dtype = torch.float16) -> bool:
    """Whether Triton is there, and compiles each of these for this GPU and dtype. Found out once."""
    if triton is None:
        return False
    try:
        x = torch.ones(1, 8, 2, 2, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        two = torch.full((1, 8, 1, 1), 2.0, device=device)
        found = affine(folded(bordered(x, "reflect"), "reflect"), two, two)
        return bool((found == 2 * 4 + 2).all())
    except Exception:  # whatever is missing: a compiler, a driver that is new enough, room to write to
        return False


def bordered(x: Tensor, border: Border) -> Tensor:
    """``F.pad(x, (1, 1, 1, 1), border)``: (N, C, H, W) to (N, C, H + 2, W + 2), channels side by side."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height + 2, width + 2, c).permute(0, 3, 1, 2)
    _launch(_forward, y, x, x, x, *x.stride()[::2], x.stride(3), height, width, c, 1, border == "reflect", False)
    return y


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · scale + shift in float32, in the dtype of ``x``; both (N, C, 1, 1), float32."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height, width, c).permute(0, 3, 1, 2)
    scale, shift = scale.expand(n, c, 1, 1).contiguous(), shift.expand(n, c, 1, 1).contiguous()
    _launch(_forward, y, x, scale, shift, *x.stride()[::2], x.stride(3), height, width, c, 0, False, True)
    return y


def folded(grad: Tensor, border: Border) -> Tensor:
    """The gradient of :func:`bordered`: each pixel's own, and those of the border pixels that repeat it."""
    n, c, height, width = grad.shape
    y = grad.new_empty(n, height - 2, width - 2, c).permute(0, 3, 1, 2)
    strides = (*grad.stride()[::2], grad.stride(3))
    _launch(_backward, y, grad, *strides, height - 2, width - 2, c, 1 if border == "reflect" else 0)
    return y


def _launch(kernel: Any, y: Tensor, *arguments: Any) -> None:
    n, c, height, width = y.shape
    side_by_side = min(64, c & -c if c % 8 == 0 else triton.next_power_of_2(c))
    pixels = 2048 // side_by_side
    grid = (triton.cdiv(height * width, pixels), triton.cdiv(c, side_by_side), n)
    with torch.cuda.device_of(y):
        kernel[grid](y, *arguments, pixels, side_by_side)


if triton is not None:

    @triton.jit
    def _forward(
        y,
        x,
        scale,
        shift,
        per_sample,
        per_row,
        per_column,
        height,
        width,
        channels,
        margin: tl.constexpr,
        reflects: tl.constexpr,
        scales: tl.constexpr,
        pixels: tl.constexpr,
        side_by_side: tl.constexpr,
    ):
        """Each pixel of the result from the one of ``x`` that it repeats."""
        sample = tl.program_id(2).to(tl.int64)
        across = width + 2 * margin
        pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
        channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
        row, column = pixel // across - margin, pixel % across - margin
        if reflects:
            row, column = tl.abs(row), tl.abs(column)
            row = tl.where(row < height, row, 2 * height - 2 - row)
            column = tl.where(column < width, column, 2 * width - 2 - column)
        else:
            row = tl.minimum(tl.maximum(row, 0), height - 1)
            column = tl.minimum(tl.maximum(column, 0), width - 1)
        count = (height + 2 * margin) * across
        inside = (pixel < count)[:, None] & (channel < channels)[None, :]
        place = row.to(tl.int64) * per_row + column.to(tl.int64) * per_column
        value = tl.load(x + sample * per_sample + place[:, None] + channel[None, :], mask=inside)
        if scales:
            of_channel = sample * channels + channel
            gamma = tl.load(scale + of_channel, mask=channel < channels)
            beta = tl.load(shift + of_channel, mask=channel < channels)
            value = value.to(tl.float32) * gamma[None, :] + beta[None, :]
        out = (sample * count + pixel).to(tl.int64) * channels
        tl.store(y + out[:, None] + channel[None, :], value.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _backward(
        y,
        grad,
        per_sample,
        per_row,
        per_column,
        height,
        width,
        channels,
        repeated: tl.constexpr,
        pixels: tl.constexpr,
        side_by_side: tl.constexpr,
    ):
        """Each pixel's own gradient, and those of the border, which repeats what is ``repeated`` pixels inside."""
        sample = tl.program_id(2).to(tl.int64)
        pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
        channel = tl.program_id(1) * side_by_side + tl.arange(0, side_by_side)
        row, column = pixel // width, pixel % width
        inside = (pixel < height * width)[:, None] & (channel < channels)[None, :]
        top, bottom = (row == repeated)[:, None], (row == height - 1 - repeated)[:, None]
        left, right = (column == repeated)[:, None], (column == width - 1 - repeated)[:, None]
        base = grad + sample * per_sample + channel[None, :]
        beside = ((row + 1).to(tl.int64) * per_row)[:, None]
        below = ((column + 1).to(tl.int64) * per_column)[:, None]
        last_row, last_column = tl.cast(height + 1, tl.int64) * per_row, tl.cast(width + 1, tl.int64) * per_column
        total = tl.load(base + beside + below, mask=inside).to(tl.float32)
        total += tl.load(base + below, mask=inside & top, other=0).to(tl.float32)
        total += tl.load(base + last_row + below, mask=inside & bottom, other=0).to(tl.float32)
        total += tl.load(base + beside, mask=inside & left, other=0).to(tl.float32)
        total += tl.load(base + beside + last_column, mask=inside & right, other=0).to(tl.float32)
        total += tl.load(base, mask=inside & top & left, other=0).to(tl.float32)
        total += tl.load(base + last_column, mask=inside & top & right, other=0).to(tl.float32)
        total += tl.load(base + last_row, mask=inside & bottom & left, other=0).to(tl.float32)
        total += tl.load(base + last_row + last_column, mask=inside & bottom & right, other=0).to(tl.float32)
        out = (sample * height * width + pixel).to(tl.int64) * channels
        tl.store(y + out[:, None] + channel[None, :], total.to(y.dtype.element_ty), mask=inside)
