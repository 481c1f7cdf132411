"""What a GPU does between two convolutions in one kernel each, in Triton, where PyTorch takes several.

Everything here has a form in plain PyTorch too, which is taken where :func:`suits` says no.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

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
    try:
        x = torch.ones(1, 8, 2, 2, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        two = torch.full((1, 8, 1, 1), 2.0, device=device)
        found = affine(folded(bordered(x, "reflect"), "reflect"), two, two)
        return bool((found == 2 * 4 + 2).all())
    except Exception:  # whatever is missing: Triton, a compiler, a driver that is new enough, room to write to
        return False


def bordered(x: Tensor, border: Border) -> Tensor:
    """``F.pad(x, (1, 1, 1, 1), border)``: (N, C, H, W) to (N, C, H + 2, W + 2), channels side by side."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height + 2, width + 2, c).permute(0, 3, 1, 2)
    _launch("forward", y, x, x, x, *x.stride()[::2], x.stride(3), height, width, c, 1, border == "reflect", False)
    return y


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · scale + shift in float32, in the dtype of ``x``; both (N, C, 1, 1), float32."""
    n, c, height, width = x.shape
    y = x.new_empty(n, height, width, c).permute(0, 3, 1, 2)
    scale, shift = scale.expand(n, c, 1, 1).contiguous(), shift.expand(n, c, 1, 1).contiguous()
    _launch("forward", y, x, scale, shift, *x.stride()[::2], x.stride(3), height, width, c, 0, False, True)
    return y


def folded(grad: Tensor, border: Border) -> Tensor:
    """The gradient of :func:`bordered`: each pixel's own, and those of the border pixels that repeat it."""
    n, c, height, width = grad.shape
    y = grad.new_empty(n, height - 2, width - 2, c).permute(0, 3, 1, 2)
    strides = (*grad.stride()[::2], grad.stride(3))
    _launch("backward", y, grad, *strides, height - 2, width - 2, c, 1 if border == "reflect" else 0)
    return y


def _launch(kernel: Literal["forward", "backward"], y: Tensor, *arguments: Any) -> None:
    from styleapp import triton_kernels

    n, c, height, width = y.shape
    side_by_side = min(64, c & -c if c % 8 == 0 else 1 << (c - 1).bit_length())
    pixels = 2048 // side_by_side
    grid = (-(-height * width // pixels), -(-c // side_by_side), n)
    with torch.cuda.device_of(y):
        getattr(triton_kernels, kernel)[grid](y, *arguments, pixels, side_by_side)
