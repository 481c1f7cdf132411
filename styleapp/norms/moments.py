"""Mean and variance, and how those of parts merge into those of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.kernels import affine, mean_var, suits

__all__ = ["Moments", "merge", "moments", "weighted_moments"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and biased variance of some elements of a tensor.

    Attributes:
        count: how many elements each mean was taken over, or the sum of their weights.
        mean: E[x], float32 or float64, in a shape that broadcasts against the tensor it came from.
        var: E[(x - E[x])²], same shape; divided by ``count``, not by ``count - 1``.
    """

    count: float
    mean: Tensor
    var: Tensor

    def std(self, eps: float = 0.0) -> Tensor:
        """sqrt(var + eps)."""
        return (self.var + eps).sqrt()


def moments(x: Tensor, over: Sequence[int] = (2, 3)) -> Moments:
    """Mean and biased variance of ``x`` over the dimensions ``over``, which are kept with size 1.

    Computed in float32, or float64 if ``x`` is that, whatever the dtype of ``x``, by the corrected
    two-pass formula (Chan, Golub and LeVeque 1983, eq. 1.7): large means lose no accuracy. Half precision takes
    one pass on a GPU. Where gradients are off, instance moments of channels_last images on a CPU are those of parts
    that are merged, of the same formula, and the number of threads changes no digit of them.

    Args:
        x: any shape; (N, C, H, W) with ``over=(2, 3)`` gives the instance moments, (N, C, 1, 1).
        over: dimensions to average over; must not be empty.

    Raises:
        ValueError: if there is nothing to average (no dimension, or an empty one).
    """
    over = tuple(over)
    count = math.prod([x.shape[dim] for dim in over])
    if not over or count == 0:
        raise ValueError(f"moments need at least one element, got shape {tuple(x.shape)} over {over}")
    if not torch.is_grad_enabled():
        half = x.dtype in (torch.bfloat16, torch.float16)
        if half and x.device.type != "cpu":
            return _single_pass_moments(x, over)
        in_parts = x.dim() == 4 and over == (2, 3) and x.device.type == "cpu"
        eager = not torch.compiler.is_compiling()  # a graph is for any size
        small = half or x.dtype == torch.uint8
        if in_parts and (small or (eager and x.dtype == torch.float32 and x.stride(1) == 1)):
            return _instance_moments(x)
    mean, var = _MeanVar.apply(x, over)
    return Moments(count, mean, var)


def _single_pass_moments(x: Tensor, over: tuple[int, ...]) -> Moments:
    """By Welford's recurrence in float32, in 2 kernels where two passes take 10: a GPU mostly waits for their start.

    What it loses by rounding is far below what half precision has lost of x.
    """
    if tuple(over) == (2, 3) and suits(x):
        return Moments(x.shape[2] * x.shape[3], *mean_var(x))
    var, mean = torch.var_mean(x.float(), over, correction=0, keepdim=True)
    return Moments(math.prod([x.shape[dim] for dim in over]), mean, var)


def _instance_moments(x: Tensor) -> Moments:
    samples = [_sample_moments(sample) for sample in x]
    mean, var = (torch.stack([getattr(m, name) for m in samples])[..., None, None] for name in ("mean", "var"))
    return Moments(samples[0].count, mean, var)


def _sample_moments(x: Tensor, most: int = 2**19) -> Moments:
    """Of one sample (C, H, W): of blocks that stay in the cache as float32, merged as by :func:`merge`.

    About ``most`` numbers at a time, some rows, in eight blocks for threads to share. torch adds up a block in one
    order, whatever the number of threads is; the statistics of its batch norm take less time, but their last digit
    depends on that number.
    """
    channels, height, width = x.shape
    rows = min(max(1, most // (channels * width) // 8) * 8, height)
    wide = torch.empty(rows, width, channels)  # one for all parts: new memory costs more time than the sums
    counts, means, variances = [], [], []
    for part in x.permute(1, 2, 0).split(rows):
        count = len(part) * width
        blocks = math.gcd(count, 8)
        found = wide[: len(part)].copy_(part).view(blocks, -1, channels)
        mean = found.mean(1)
        centred = found.sub_(mean[:, None])
        # What rounding left in the mean; half precision has lost more of x.
        rest = centred.mean(1) if x.dtype == torch.float32 else torch.zeros(())
        counts += [count / blocks] * blocks
        means.append(mean.double() + rest)
        variances.append(centred.mul_(centred).mean(1).double() - rest.square())
    of_blocks = torch.cat(means)
    share = torch.tensor(counts, dtype=torch.float64)[:, None] / (height * width)
    mean = (share * of_blocks).sum(0)
    var = (share * (torch.cat(variances) + (of_blocks - mean).square())).sum(0)
    return Moments(height * width, mean.float(), var.clamp_min_(0).float())


def weighted_moments(x: Tensor, weight: Tensor) -> Moments:
    """Moments over H and W in which each position counts as much as its weight.

        n = Σ w,  μ = Σ w x / n,  σ² = Σ w (x - μ)² / n

    With weights of 0 and 1 they are the moments of the positions that have 1; :func:`merge` takes them as any others.

    Args:
        x: (N, C, H, W).
        weight: (1, 1, H', W'), 0 or more; averaged down to (H, W) where it is finer.

    Raises:
        ValueError: if no weight is above 0.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = F.adaptive_avg_pool2d(weight.to(x.device, wide), (x.shape[-2], x.shape[-1]))
    count = weight.double().sum()
    if not count > 0:
        raise ValueError("weighted moments need a weight above 0")
    share = (weight / count).to(wide)
    mean = (x * share).sum((2, 3), keepdim=True)
    var = ((x - mean).square() * share).sum((2, 3), keepdim=True)
    return Moments(float(count), mean, var)


class _MeanVar(torch.autograd.Function):
    """Autograd's own backward would keep and walk through several float32 copies of x; this keeps x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
            found = _single_pass_moments(x, over)
            return found.mean, found.var
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = x.mean(over, keepdim=True, dtype=wide)
        centred = x.to(wide, copy=True).sub_(mean)
        rest = centred.mean(over, keepdim=True)  # what rounding left in the mean
        var = centred.mul_(centred).mean(over, keepdim=True) - rest.square()
        return mean + rest, var.clamp_min_(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # type: ignore[override]
        x, ctx.over = inputs
        ctx.save_for_backward(x, output[0])

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """∂/∂x = (∂μ + 2 (x - μ) ∂σ²) / n."""
        x, mean = ctx.saved_tensors
        count = math.prod([x.shape[dim] for dim in ctx.over])
        slope, offset = 2 / count * grad_var, grad_mean / count
        half = x.dtype in (torch.bfloat16, torch.float16)
        if half and ctx.over == (2, 3) and suits(x) and not torch.is_grad_enabled():
            return affine(x, slope, offset - mean * slope), None
        here = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.dim() == 4 and ctx.over == (2, 3)
        if here and not torch.is_grad_enabled():
            # A batch norm of each sample goes over memory once, where the formula below does five times. A GPU would
            # wait for so many kernels, and the gradient of this gradient needs the formula.
            one = torch.ones_like(mean[0].flatten())
            each = zip(x.split(1), mean.flatten(1), slope.flatten(1), offset.flatten(1), strict=True)
            return torch.cat([F.batch_norm(part, m, one, s, o, eps=0.0) for part, m, s, o in each]), None
        return ((x.to(mean.dtype) - mean) * slope + offset).to(x.dtype), None


def merge(*parts: Moments) -> Moments:
    """The moments of the whole from those of its disjoint parts, exactly.

    n = Σ nᵢ,  μ = Σ nᵢ μᵢ / n,  σ² = Σ nᵢ (σᵢ² + (μᵢ - μ)²) / n
    (Chan, Golub and LeVeque 1979). Any partition, any order.

    Raises:
        ValueError: if no part is given.
    """
    if not parts:
        raise ValueError("merge needs at least one part")
    total = parts[0]
    for part in parts[1:]:
        count = total.count + part.count
        share = part.count / count
        delta = part.mean - total.mean
        mean = total.mean + delta * share
        var = total.var + (part.var - total.var) * share + delta.square() * (share * (1 - share))
        total = Moments(count, mean, var)
    return total
