"""The one layer that both networks are made of: a 3x3 convolution with reflection padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ReflectConv2d", "corrected_conv2d", "reflect_conv2d", "reflected"]


def reflect_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with a 3x3 kernel after reflecting one pixel at each border.

    Equals ``F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)`` up to rounding, in the way that suits:
    that itself where gradients are wanted, :func:`corrected_conv2d` on a CPU, :func:`reflected` on a GPU.

    Args:
        x: (N, C, H, W) with H, W >= 2.
        weight: (O, C, 3, 3).
        bias: (O,) or None.

    Returns:
        (N, O, H, W).

    Raises:
        ValueError: if H or W is below 2 (there is nothing to reflect).
    """
    if min(x.shape[-2:]) < 2:
        raise ValueError(f"reflection padding needs at least 2x2 pixels, got {x.shape[-2]}x{x.shape[-1]}")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)
    if x.is_cuda:
        return F.conv2d(reflected(x), weight, bias)
    return corrected_conv2d(x, weight, bias)


def reflected(x: Tensor) -> Tensor:
    """``F.pad(x, (1, 1, 1, 1), mode="reflect")`` in the memory format of ``x``.

    PyTorch's own gives up channels_last on a GPU, and the convolution after it makes another copy to have it back.
    """
    n, c, height, width = x.shape
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format  # of a part of a picture too
    y = torch.empty((n, c, height + 2, width + 2), dtype=x.dtype, device=x.device, memory_format=layout)
    y[:, :, 1:-1, 1:-1] = x
    y[:, :, 0, 1:-1], y[:, :, -1, 1:-1] = x[:, :, 1], x[:, :, -2]
    y[..., 0], y[..., -1] = y[..., 2], y[..., -3]
    return y


def corrected_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`reflect_conv2d`, without a padded copy of ``x``.

    The convolution pads with zeros, and what the reflected ring of pixels would have added is then added to the
    one-pixel border of the result.
    """
    y = F.conv2d(x, weight, bias, padding=1)
    # The rows carry the corners of the ring, so the columns are padded with zeros along their length.
    above, below = (F.pad(x[:, :, i : i + 1], (1, 1, 0, 0), mode="reflect") for i in (1, x.shape[2] - 2))
    y[:, :, :1] += F.conv2d(above, weight[:, :, :1])
    y[:, :, -1:] += F.conv2d(below, weight[:, :, 2:])
    y[..., :1] += F.conv2d(x[..., 1:2], weight[..., :1], padding=(1, 0))
    y[..., -1:] += F.conv2d(x[..., -2:-1], weight[..., 2:], padding=(1, 0))
    return y


class ReflectConv2d(nn.Conv2d):
    """3x3 convolution with reflection padding, as :func:`reflect_conv2d`; state dicts of ``nn.Conv2d`` fit."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H, W)."""
        return reflect_conv2d(x, self.weight, self.bias)
