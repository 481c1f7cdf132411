"""Our own convolutions and what goes with them (kernels.py) as functions that have gradients: for Hopper GPUs.

What is a picture with its border is one tensor here. The gradient of a convolution is first folded inward from that
border, cut where the ReLU cut, and given a border of zeros: then the gradient of its input is a convolution too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from styleapp import kernels
from styleapp.kernels import Border

__all__ = ["convolved", "convolved_first", "inner", "pooled", "relu_bordered"]


def convolved(x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: int, ring: Border | None) -> Tensor:
    """:func:`styleapp.kernels.convolved`."""
    found: Tensor = _Convolved.apply(x, weight, bias, relu, scale, ring)
    return found


def convolved_first(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """:func:`styleapp.kernels.convolved_first`, with a gradient for ``x`` alone."""
    found: Tensor = _ConvolvedFirst.apply(x, weight, bias, relu)
    return found


def pooled(x: Tensor) -> Tensor:
    """:func:`styleapp.kernels.pooled`."""
    found: Tensor = _Pooled.apply(x)
    return found


def relu_bordered(x: Tensor, border: Border) -> Tensor:
    """:func:`styleapp.kernels.bordered` with a ReLU."""
    found: Tensor = _ReluBordered.apply(x, border)
    return found


def inner(whole: Tensor) -> Tensor:
    """A picture without the border of one pixel around it: a view of it."""
    found: Tensor = _Inner.apply(whole)
    return found


class _Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:  # type: ignore[override]
        return whole[:, :, 1:-1, 1:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return kernels.inward(_channels_last(grad), None, zeros_around=True)


class _ReluBordered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, border: Border) -> Tensor:  # type: ignore[override]
        ctx.border = border
        y = kernels.bordered(x, border, relu=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return kernels.inward(_channels_last(grad), ctx.border, y[:, :, 1:-1, 1:-1]), None


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return kernels.pooled(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return kernels.unpooled(_channels_last(grad), *ctx.saved_tensors)


class _ConvolvedFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:  # type: ignore[override]
        y = kernels.convolved_first(x, weight, bias, relu)
        ctx.relu = relu
        ctx.save_for_backward(weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        weight, y = ctx.saved_tensors
        seen = None if y is None else y[:, :, 1:-1, 1:-1]
        own = kernels.inward(_channels_last(grad), "reflect", seen, zeros_around=True)
        return kernels.folded(kernels.convolved_back(own, weight), "reflect"), None, None, None


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, scale: int, ring: Border | None
    ) -> Tensor:
        y = kernels.convolved(x, weight, bias, relu, scale, ring)
        ctx.scale, ctx.ring = scale, ring
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, y = ctx.saved_tensors
        seen = y if y is None or ctx.ring is None else y[:, :, 1:-1, 1:-1]
        own = kernels.inward(_channels_last(grad), ctx.ring, seen, ctx.scale, zeros_around=True)
        needs = ctx.needs_input_grad
        to_x = kernels.convolved_back(own, weight) if needs[0] else None
        to_weight = to_bias = None
        if needs[1]:
            # With a border of zeros around both: what would be beyond x meets these alone.
            like = weight if len(weight) == own.shape[1] else weight.new_empty(own.shape[1], *weight.shape[1:])
            one, none = [1, 1], [0, 0]
            mask = [False, True, False]
            found = torch.ops.aten.convolution_backward(own, x, like, None, one, one, one, False, none, 1, mask)
            to_weight = found[1][: len(weight)]
        if needs[2]:
            sums = own.sum((0, 2, 3), dtype=torch.float32)[: len(weight)]
            to_bias = sums.view(ctx.scale**2, -1).sum(0).to(weight.dtype)
        return to_x, to_weight, to_bias, None, None, None


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
